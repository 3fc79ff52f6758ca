import pytest
import torch
import torch.nn.functional as F

from fsdino.base.resize import Resize, ResizeMode
from tests.small import rand, refuses

MODES: list[ResizeMode] = ["squash", "pad"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(40, 20), (17, 93), (32, 32), (1, 50), (300, 7)])
def test_sizes_and_ranges(mode: ResizeMode, size: tuple[int, int]) -> None:
    resize = Resize(32, mode)
    assert resize.image(rand(2, 5, 3, *size)).shape == (2, 5, 3, 32, 32)
    soft = resize.soft_mask(rand(2, *size) > 0.5)
    assert soft.shape == (2, 32, 32) and soft.is_floating_point()
    assert float(soft.min()) >= 0.0 and float(soft.max()) <= 1.0
    truth = resize.truth(torch.ones(size, dtype=torch.long))
    assert truth.shape == (32, 32) and truth.dtype == torch.long
    assert resize.invert(rand(3, 8, 8), size).shape == (3, *size)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid", [16, 28, 56, 112])
def test_a_square_moved_by_one_pixel_is_followed(mode: ResizeMode, grid: int) -> None:
    """The way there and back has no offset, at any grid: the centre of mass moves by the same pixel."""
    resize = Resize(112, mode)

    def centre(top: int, left: int) -> torch.Tensor:
        mask = torch.zeros(90, 130)
        mask[top : top + 30, left : left + 40] = 1
        square = resize.soft_mask(mask)
        back = resize.invert(F.interpolate(square[None, None], size=(grid, grid), mode="area")[0, 0], (90, 130))
        rows, cols = torch.arange(90) + 0.5, torch.arange(130) + 0.5
        return torch.stack([(back.sum(1) * rows).sum(), (back.sum(0) * cols).sum()]) / back.sum()

    start = centre(25, 40)
    assert torch.allclose(start, torch.tensor([40.0, 60.0]), atol=0.15)
    assert torch.allclose(centre(26, 40) - start, torch.tensor([1.0, 0.0]), atol=0.2)
    assert torch.allclose(centre(25, 41) - start, torch.tensor([0.0, 1.0]), atol=0.2)


def test_padding_is_black_background_and_ignored() -> None:
    resize = Resize(32, "pad")
    assert resize.content_size(40, 20) == (32, 16)
    ones = torch.ones(40, 20)
    assert float(resize.image(ones.expand(3, 40, 20))[..., 16:].abs().max()) == 0.0
    soft = resize.soft_mask(ones)
    assert not bool(soft[:, 16:].any()) and bool((soft[:, :16] > 0.9999).all())
    truth = resize.truth(ones.long())
    assert set(truth[:, 16:].unique().tolist()) == {255} and set(truth[:, :16].unique().tolist()) == {1}


def test_padding_never_reaches_the_prediction() -> None:
    logits = torch.full((32, 32), -9.0)
    logits[:, :16] = 3.0
    assert torch.equal(Resize(32, "pad").invert(logits, (32, 16)), torch.full((32, 16), 3.0))


def test_equal_size_is_a_no_op() -> None:
    image = rand(3, 32, 32)
    for mode in MODES:
        assert torch.equal(Resize(32, mode).image(image), image)
        assert torch.allclose(Resize(32, mode).invert(image, (32, 32)), image, atol=1e-6)


def test_truth_keeps_labels_only() -> None:
    truth = torch.randint(0, 3, (41, 67), generator=torch.Generator().manual_seed(0))
    truth[truth == 2] = 255
    assert set(Resize(30).truth(truth).unique().tolist()) <= {0, 1, 255}


def test_soft_mask_holds_the_area() -> None:
    mask = (rand(224, 160) > 0.3).float()
    assert abs(float(Resize(32).soft_mask(mask).mean() - mask.mean())) < 0.01


def test_a_first_size_comes_before_the_square_and_is_what_truths_have() -> None:
    resize = Resize(64, first_size=40, hard_masks=True)
    image = rand(3, 90, 130)
    first = F.interpolate(image[None], (40, 40), mode="bilinear", antialias=True)
    expected = F.interpolate(first, (64, 64), mode="bilinear")[0]
    torch.testing.assert_close(resize.image(image), expected)
    mask = (rand(90, 130, seed=1) > 0.7).float()
    near = F.interpolate(mask[None, None], (40, 40), mode="nearest")
    assert torch.equal(resize.soft_mask(mask), (F.interpolate(near, (64, 64), mode="bilinear")[0, 0] > 0).float())
    assert torch.equal(resize.truth(mask.long()), near[0, 0].long())
    assert resize.invert(rand(16, 16), (90, 130)).shape == (90, 130)


@pytest.mark.parametrize("mode", MODES)
def test_the_fields_truth_is_torchs_nearest(mode: ResizeMode) -> None:
    truth = (rand(90, 130) * 3).long()
    height = 32 if mode == "squash" else 22
    got = Resize(32, mode).truth(truth, exact=False)
    expected = F.interpolate(truth[None, None].float(), (height, 32), mode="nearest")[0, 0].long()
    assert torch.equal(got[:height], expected) and (got[height:] == 255).all()
    assert not torch.equal(got, Resize(32, mode).truth(truth))


def test_errors_say_what_to_do() -> None:
    refuses("first_size 20 with resize mode 'pad': give a positive side", Resize, 32, "pad", first_size=20)
    refuses("not positive; give", Resize, 0)
    refuses("'crop' is unknown; use 'squash' or 'pad'", Resize, 32, "crop")
    assert repr(Resize(32, "pad")) == "Resize(size=32, mode='pad')"
