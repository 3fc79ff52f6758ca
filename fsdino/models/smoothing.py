"""Tokens of several blocks side by side, and maps that are smoothed over an image's own similarities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.models.layers import unit_tokens


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps (N, C, h, w) of L blocks as tokens (N, h*w, L*C) of unit length, all blocks with equal weight.

    The product of two such tokens is the mean over the blocks of their cosines; it is below 1 in length where a block's
    token is 0.
    """
    # Each block is made unit length by itself: late blocks would drown the early ones, whose channels spread less.
    return torch.cat([unit_tokens(m) for m in maps], dim=-1) / len(maps) ** 0.5


def affinity(tokens: Tensor, scale: float) -> Tensor:
    """Similarities (N, Q, Q) of tokens (N, Q, D) within each image, softmax(scale * cosine): every row sums to 1."""
    return (scale * (tokens @ tokens.transpose(-1, -2)).float()).softmax(-1)


def smooth(values: Tensor, similar: Tensor, steps: int) -> Tensor:
    """Replace each value by the mean of its similar positions' values, `steps` times.

    Args:
        values: (N, G, Q), G maps of each image.
        similar: (N, Q, Q) of `affinity`.
        steps: 0 leaves the values as they are.
    """
    for _ in range(steps):
        values = values @ similar.transpose(-1, -2).to(values.dtype)
    return values


def best_prototype(values: Tensor, tokens: Tensor, number: int) -> Tensor:
    """Mean token (N, G, D), of unit length, of the positions with the `number` highest values of each map.

    Args:
        values: (N, G, Q), G maps of each image.
        tokens: (N, Q, D).
        number: between 1 and Q; positions that tie with the last one count too.
    """
    # As weights and a product, not by index: the same few operations for every class, and any runtime has them.
    last = values.topk(number, dim=-1).values[..., -1:]
    weights = (values >= last).to(tokens.dtype)
    weights = weights / weights.sum(-1, keepdim=True)
    return F.normalize(weights @ tokens, dim=-1, eps=1e-5)
