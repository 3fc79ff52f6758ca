"""Losses against their formulas."""

import pytest
import torch

from fsdino.training.losses import (
    bce_loss,
    dice_loss,
    embedding_cosine_smooth_l1,
    embedding_mse,
    focal_loss,
    mask_agreement,
    resize_embedding,
)


@pytest.fixture()
def masks():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 4, generator=generator)
    truth = (torch.rand(2, 4, 4, generator=generator) > 0.5).float()
    valid = (torch.rand(2, 4, 4, generator=generator) > 0.3).float()
    return logits, truth, valid


def test_mask_losses_are_means_over_valid_pixels(masks):
    logits, truth, valid = masks
    for row in range(2):
        keep = valid[row] > 0
        x, t = logits[row][keep], truth[row][keep]
        p = x.sigmoid()
        right = torch.where(t > 0, p, 1 - p)
        alpha = torch.where(t > 0, torch.tensor(0.25), torch.tensor(0.75))
        assert bce_loss(logits, truth, valid)[row] == pytest.approx(-right.log().mean().item(), rel=1e-5)
        focal = (-alpha * (1 - right) ** 2 * right.log()).mean().item()
        assert focal_loss(logits, truth, valid)[row] == pytest.approx(focal, rel=1e-5)
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        assert dice_loss(logits, truth, valid)[row] == pytest.approx(dice.item(), rel=1e-5)


def test_ignored_pixels_change_nothing(masks):
    logits, truth, valid = masks
    changed = torch.where(valid > 0, logits, logits + 7)
    for loss in (focal_loss, bce_loss, dice_loss):
        torch.testing.assert_close(loss(changed, truth, valid), loss(logits, truth, valid))
        assert torch.isfinite(loss(logits, truth, torch.zeros_like(valid))).all()


def test_resized_embedding_keeps_constants_and_places():
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    half = resize_embedding(ramp, (4, 4))
    torch.testing.assert_close(half[0, 0, 0, 1:3], torch.tensor([2.5, 4.5]))  # centres of pairs: no half-cell shift
    assert resize_embedding(ramp, (8, 8)) is ramp
    torch.testing.assert_close(resize_embedding(torch.ones(1, 2, 4, 4), (7, 7)), torch.ones(1, 2, 7, 7))


def test_embedding_losses():
    generator = torch.Generator().manual_seed(0)
    teacher = 3 + 2 * torch.randn(2, 5, 4, 4, generator=generator)
    mean, std = teacher.transpose(0, 1).flatten(1).mean(1), teacher.transpose(0, 1).flatten(1).std(1)
    assert embedding_mse(teacher + 1, teacher) == pytest.approx(1.0, rel=1e-5)
    assert embedding_cosine_smooth_l1(teacher, teacher, mean, std) == pytest.approx(0.0, abs=1e-6)
    opposite = 2 * mean[:, None, None] - teacher
    assert embedding_cosine_smooth_l1(opposite, teacher, mean, std) > 2  # a cosine of -1 alone costs 2
    scaled = embedding_cosine_smooth_l1(10 * opposite, 10 * teacher, 10 * mean, 10 * std)
    torch.testing.assert_close(scaled, embedding_cosine_smooth_l1(opposite, teacher, mean, std))


def test_masks_agree_with_themselves_best():
    logits = 20 * torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)).sign()
    assert mask_agreement(logits, logits) < 1e-3 < mask_agreement(-logits, logits)
