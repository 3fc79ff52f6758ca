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


def default_directions(encoder: FeatureEncoder) -> int:
    """Directions to leave out: none for learnt positions, half of the channels for rotary ones."""
    # The published share; on a grid with few positions it would be all that a map can say.
    return min(encoder.dim, encoder.grid_size**2) // 2 if encoder.rotary else 0


@torch.no_grad()
def positional_directions(encoder: FeatureEncoder, count: int, seed: int = 0) -> Tensor:
    """What a picture of noise varies in most, at every tap of an encoder and at its native size.

    Args:
        count: directions to find at each tap, fewer than there are channels and positions.
        seed: of the noise; equal seeds give equal directions.

    Returns:
        (L, C, count) float32, orthonormal columns, the strongest first.

    Raises:
        ValueError: if the count is negative, or a map has no so many directions.
    """
    most = min(encoder.dim, encoder.grid_size**2) - 1
    if not 0 <= count <= most:
        raise ValueError(
            f"debias {count} is out of range: maps of {encoder.grid_size} x {encoder.grid_size} positions and "
            f"{encoder.dim} channels allow 0 to {most} directions."
        )
    side, generator = encoder.img_size, torch.Generator().manual_seed(seed)
    # Normal in the encoder's own units, where every patch of noise looks alike; drawn on the CPU, so that the device
    # does not change the directions.
    noise = torch.randn(1, 3, side, side, generator=generator).to(encoder.mean.device)
    maps = encoder(noise * encoder.std.float() + encoder.mean.float())
    found = [torch.linalg.svd(m[0].flatten(1).T.float(), full_matrices=False)[2][:count].T for m in maps]
    return torch.stack(found)


def without_directions(tokens: Tensor, directions: Tensor) -> Tensor:
    """Tokens (..., C) without their part along orthonormal directions (C, r); not of unit length."""
    # Two thin products: they cost less than the C x C projector, and r = 0 leaves the tokens as they are.
    return tokens - (tokens @ directions) @ directions.transpose(-1, -2)
