"""Positional debiasing: directions of feature space that tell where a position is, not what is there, are left out.

Rotary positions (RoPE) leave traces of the place in the maps of DINOv3 and its like, so that places and not objects
match between images. A picture of noise shows nothing, so what its maps vary in is mostly the place: the leading
directions of their singular value decomposition are projected out (INSID3, arXiv 2603.28480, which takes 500 of 1,024
channels). The gain is that literature's; it was not measured here, for want of pretrained rotary weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fsdino.models.encoder import FeatureEncoder


def wanted_directions(encoder: FeatureEncoder, count: int | None = None) -> int:
    """How many directions to leave out; None: none for learnt positions, half of the channels for rotary ones.

    Raises:
        ValueError: if the count is negative, or a map has not so many directions.
    """
    fewer = min(encoder.dim, encoder.grid_size**2)
    if count is None:
        # The published share; on a grid with few positions it would be all that a map can say.
        return fewer // 2 if encoder.rotary else 0
    if not 0 <= count < fewer:
        raise ValueError(
            f"debias {count} is out of range: maps of {encoder.grid_size} x {encoder.grid_size} positions and "
            f"{encoder.dim} channels allow 0 to {fewer - 1} directions."
        )
    return count


@torch.no_grad()
def positional_directions(encoder: FeatureEncoder, count: int, seed: int = 0) -> Tensor:
    """What a picture of noise varies in most, at every tap of an encoder and at its native size.

    Args:
        count: directions to find at each tap, see `wanted_directions`.
        seed: of the noise; equal seeds give equal directions.

    Returns:
        (L, C, count) float32, orthonormal columns, the strongest first.
    """
    count = wanted_directions(encoder, count)
    side, generator = encoder.img_size, torch.Generator().manual_seed(seed)
    # Normal in the encoder's own units, where every patch of noise looks alike; drawn on the CPU, so that the device
    # does not change the directions.
    noise = torch.randn(1, 3, side, side, generator=generator).to(encoder.mean.device)
    maps = encoder(noise * encoder.std.float() + encoder.mean.float())
    # The right singular vectors of a map's positions are the eigenvectors of its channels' products, which are fewer.
    flat = torch.stack([m[0].flatten(1).double() for m in maps])  # (L, C, h*w)
    return torch.linalg.eigh(flat @ flat.mT).eigenvectors.flip(-1)[..., :count].float()


def without_directions(maps: Tensor, directions: Tensor) -> Tensor:
    """Feature maps (N, C, h, w) without their part along orthonormal directions (C, r); not of unit length."""
    if directions.shape[-1] == 0:
        return maps
    # Two thin products cost less than the C x C projector.
    flat = maps.flatten(2)
    return (flat - directions @ (directions.transpose(-1, -2) @ flat)).unflatten(2, maps.shape[-2:])
