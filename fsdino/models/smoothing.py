"""Tokens of several blocks side by side, and maps that are smoothed over an image's own similarities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdino.models.layers import unit_tokens


@dataclass(frozen=True)
class ChainRule:
    """Numbers of the training-free chain, which `fsdino.methods.chain.ChainMethod` explains and takes as defaults."""

    background_weight: float = 0.25
    smoothing_steps: int = 6
    smoothing_scale: float = 10.0
    own_share: float = 0.075
    own_weight: float = 0.3
    own_rounds: int = 1
    cut: float = 0.4
    sharpness: float = 20.0


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


def own_cosines(values: Tensor, tokens: Tensor, number: int) -> Tensor:
    """Cosines (N, G, Q) to the mean token of the positions with the `number` highest values of each map.

    Args:
        values: (N, G, Q), G maps of each image.
        tokens: (N, L, Q, C) of unit length; the L blocks of a position count as one long token.
        number: between 1 and Q; positions that tie with the last one count too.
    """
    # As weights and a product, not by index: the same few operations for every class, and any runtime has them.
    last = values.topk(number, dim=-1).values[..., -1:]
    weights = (values >= last).to(tokens.dtype)
    weights = weights / weights.sum(-1, keepdim=True)
    own = weights[:, None] @ tokens  # (N, L, G, C): the long tokens themselves are never formed
    # In float32: the square of a small share leaves half precision's range.
    length = own.float().square().sum((1, 3), keepdim=True).sqrt().clamp_min(1e-5)
    own = own / length.to(own.dtype)
    return (own @ tokens.transpose(-1, -2)).float().sum(1) / tokens.shape[1] ** 0.5


def chain_scores(
    to_object: Tensor, to_background: Tensor, tokens: Tensor, similar: Tensor, rule: ChainRule
) -> tuple[Tensor, list[Tensor]]:
    """Scores of the chain: reference against background, smoothed, then again with the image's own prototype.

    Args:
        to_object: (N, G, Q) cosines of N images' positions to the object prototypes of G classes.
        to_background: (N, G, Q) to those of the background.
        tokens: (N, L, Q, C) of L blocks, of unit length.
        similar: (N, Q, Q) of `affinity`.

    Returns:
        The score (N, G, Q), and every map on the way to it: scores before and after smoothing, and cosines to the own
        prototypes.
    """
    number = max(1, round(rule.own_share * tokens.shape[2]))
    target, score, seen = to_object, to_object, []
    for remaining in range(rule.own_rounds, -1, -1):
        raw = target - rule.background_weight * to_background
        score = smooth(raw, similar, rule.smoothing_steps)
        seen += [raw, score]
        if remaining:
            own = own_cosines(score, tokens, number)
            target = (1 - rule.own_weight) * to_object + rule.own_weight * own
            seen.append(own)
    return score, seen


def relative_margin(score: Tensor, cut: Tensor | float) -> Tensor:
    """How far each score of a map (..., Q) is above the cut: 0 is the map's mean and 1 its maximum."""
    mean, peak = score.mean(-1, keepdim=True), score.amax(-1, keepdim=True)
    return score - mean - cut * (peak - mean)
