"""Projected features have no part along the directions, and say less about where they are."""

import pytest
import torch
from torch import Tensor

from fsdino.models.debias import positional_directions, wanted_directions, without_directions
from fsdino.models.encoder import FeatureEncoder
from tests.small import rand, randn, refuses

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}


def rotary() -> FeatureEncoder:
    """A DINOv3 of three blocks on an 8 x 8 grid."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureEncoder("vit_small_patch16_dinov3", 128, (1, 2), SMALL)


def placed() -> FeatureEncoder:
    """A ViT on an 8 x 8 grid whose maps say plainly in which row and column a position is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = FeatureEncoder("vit_tiny_patch16_224", 128, (1, 2), SMALL)
        places = torch.cartesian_prod(*2 * (torch.linspace(-1, 1, 8),))
        encoder.backbone.pos_embed[0, 1:] = 3 * places @ torch.randn(2, 32)
    return encoder


def maps(encoder: FeatureEncoder, images: Tensor, count: int = 0) -> Tensor:
    """(L, N, C, h, w) without so many directions."""
    directions = positional_directions(encoder, count)
    return torch.stack([without_directions(*pair) for pair in zip(encoder(images), directions)])


def position_share(found: Tensor) -> float:
    """Share of the variance of maps (L, N, C, h, w) that their position explains."""
    centred = found - found.mean((1, 3, 4), keepdim=True)
    return float(centred.mean(1).square().mean() / centred.square().mean())


def test_nothing_is_left_along_the_directions() -> None:
    encoder = rotary()
    directions = positional_directions(encoder, 5)
    assert directions.shape == (2, 32, 5)
    torch.testing.assert_close(directions.mT @ directions, torch.eye(5).expand(2, 5, 5), atol=1e-5, rtol=0)
    images, (first, second) = rand(2, 3, 128, 128), directions
    before, after = maps(encoder, images), maps(encoder, images, 5)
    for i, one in enumerate((first, second)):
        assert float((one.T @ before[i].flatten(2)).abs().max()) > 1
        assert float((one.T @ after[i].flatten(2)).abs().max()) < 1e-5
        torch.testing.assert_close(without_directions(after[i], one), after[i], atol=1e-5, rtol=0)


def test_the_strongest_directions_are_those_of_the_singular_values() -> None:
    encoder = placed()
    noise = encoder.mean + encoder.std * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(4))
    for flat, found in zip(encoder(noise), positional_directions(encoder, 2, seed=4)):
        expected = torch.linalg.svd(flat[0].flatten(1).T)[2][:2]
        torch.testing.assert_close((expected @ found).abs(), torch.eye(2), atol=1e-4, rtol=0)


def test_other_noise_says_less_of_where_it_is() -> None:
    encoder = placed()
    noise = encoder.mean + encoder.std * randn(24, 3, 128, 128, seed=7)  # not the noise that the directions are from
    shares = [position_share(maps(encoder, noise, count)) for count in (0, 1, 3)]
    assert shares[0] > 0.5 and shares[0] > shares[1] > shares[2] and shares[2] < 0.1


def test_seeds_decide_and_zero_changes_nothing() -> None:
    encoder = rotary()
    assert torch.equal(positional_directions(encoder, 3), positional_directions(encoder, 3))
    assert not torch.equal(positional_directions(encoder, 3), positional_directions(encoder, 3, seed=1))
    some = randn(1, 32, 2, 3)
    assert torch.equal(without_directions(some, positional_directions(encoder, 0)[0]), some)


def test_only_rotary_encoders_are_debiased_by_default() -> None:
    assert wanted_directions(rotary()) == 16
    learnt = FeatureEncoder("vit_small_patch14_dinov2", 56, (1,), {"embed_dim": 32, "depth": 2, "num_heads": 2})
    assert wanted_directions(learnt) == 0
    few = FeatureEncoder("vit_small_patch16_dinov3", 48, (1,), SMALL)
    assert wanted_directions(few) == 4, "half of the nine positions"


@pytest.mark.parametrize("count", [-1, 32])
def test_more_directions_than_channels_are_named(count: int) -> None:
    words = f"debias {count} is out of range: maps of 8 x 8 positions and 32 channels allow 0 to 31 directions"
    refuses(words, positional_directions, rotary(), count)
