"""What the segmenter keeps of the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.base.memory import Memory
from fsdino.models.layers import unit_tokens


@dataclass
class SupportMemory(Memory):
    """References as the segmenter needs them; the compact variants keep the prototypes alone.

    Args:
        prototypes: (B, L, 2, C) unit-length mean tokens, foreground then background; 0 where there is none of a kind.
        tokens: (B, L, M, C) unit-length tokens of all references, M = K * h * w or fewer, see `in_cells`.
        fg: (B, M) share of the object in each position, in [0, 1].
        bg: (B, M) share of the rest in each position, in [0, 1].
    """

    growing: ClassVar[Mapping[str, int]] = {"tokens": 2, "fg": 1, "bg": 1}
    prototypes: Tensor
    tokens: Tensor | None = None
    fg: Tensor | None = None
    bg: Tensor | None = None

    def positions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, object and background shares; a ValueError if only the prototypes were kept."""
        if self.tokens is None or self.fg is None or self.bg is None:
            raise ValueError("this memory holds prototypes alone; remember the references again with the full model.")
        return self.tokens, self.fg, self.bg


def support_tokens(feats: Tensor, num_episodes: int) -> Tensor:
    """Feature maps (B*K, C, h, w) of B episodes' references to unit-length tokens (B, K*h*w, C)."""
    return unit_tokens(feats).reshape(num_episodes, -1, feats.shape[1])


def grid_weights(masks: Tensor, size: tuple[int, int], negative: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Share of object and of background in each grid position.

    Args:
        masks: (B, K, S, S) float in [0, 1].
        size: (h, w) of the grid.
        negative: (B, K) bool, references that show what is not meant; None: there are none.

    Returns:
        Foreground and background, (B, K*h*w) float in [0, 1].
    """
    # Shares and not a yes or no: an object smaller than a patch would otherwise have no position at all.
    fg = F.interpolate(masks.float(), size=size, mode="area").flatten(2)  # (B, K, h*w)
    if negative is None:
        return fg.flatten(1), 1.0 - fg.flatten(1)
    # What was pointed out as "not this" is background, and weighs as much as all other background together, since it is
    # what would be mistaken for the object; the rest of such images is not known and weighs nothing.
    named = negative[..., None] * fg
    fg = torch.where(negative[..., None], 0.0, fg)
    rest = torch.where(negative[..., None], 0.0, 1.0 - fg)
    # The lighter of the two kinds keeps its weights and the heavier is scaled down to its sum: weights are shares of a
    # position and may not rise above 1.
    ratio = named.sum((1, 2), keepdim=True) / rest.sum((1, 2), keepdim=True).clamp_min(1e-6)
    bg = named / ratio.clamp_min(1.0) + rest * torch.where(ratio > 0, ratio, 1.0).clamp_max(1.0)
    return fg.flatten(1), bg.flatten(1)


def in_cells(
    layers: Sequence[Tensor], fg: Tensor, bg: Tensor, grid: tuple[int, int], stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the references, `stride` x `stride` neighbours as one: mean tokens, of unit length, and mean shares.

    Args:
        layers: tokens (B, K*h*w, C) of each block.
        fg: (B, K*h*w) as from `grid_weights`, and `bg`.
        grid: (h, w); at its lower and right edge cells may be of fewer positions.
        stride: 1 leaves all as it is.

    Returns:
        (B, L, M, C), (B, M), (B, M).
    """
    if stride == 1:
        return torch.stack([*layers], dim=1), fg, bg

    def means(values: Tensor) -> Tensor:
        maps = values.unflatten(1, (-1, *grid)).flatten(0, 1).permute(0, 3, 1, 2)  # (B*K, C, h, w)
        cells = F.avg_pool2d(maps, stride, ceil_mode=True, count_include_pad=False)
        return cells.flatten(2).transpose(1, 2).reshape(len(values), -1, values.shape[-1])

    tokens = torch.stack([F.normalize(means(tokens), dim=-1, eps=1e-5) for tokens in layers], dim=1)
    shares = means(torch.stack([fg, bg], dim=-1))
    return tokens, shares[..., 0], shares[..., 1]


def stack_memories(memories: Sequence[SupportMemory]) -> SupportMemory:
    """Make one memory of batch N of N classes' of batch 1, whatever their numbers of references."""
    # Shorter ones are filled up with positions of weight 0, which have no influence.
    longest = max(memories, key=lambda memory: 0 if memory.fg is None else memory.fg.shape[-1])
    stacked: dict[str, Any] = {}
    for name, like in longest.tensors().items():
        parts = [getattr(memory, name) for memory in memories]
        if name in ("tokens", "fg", "bg"):
            axis = -2 if name == "tokens" else -1
            parts = [_fill(part, like.shape[axis], name) for part in parts]
        stacked[name] = torch.cat(parts)
    return SupportMemory(**stacked)


def _fill(tensor: Tensor, length: int, name: str) -> Tensor:
    missing = length - tensor.shape[-2 if name == "tokens" else -1]
    return F.pad(tensor, (0, 0, 0, missing) if name == "tokens" else (0, missing))


def prototypes(tokens: Tensor, fg: Tensor, bg: Tensor) -> Tensor:
    """Means (B, 2, C), of unit length, of tokens (B, M, C) under two weights (B, M); 0 where all of a kind are 0."""
    weights = torch.stack([fg, bg], dim=1)  # (B, 2, M)
    # Divided first: the sum over thousands of positions would leave half precision's range.
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    return F.normalize(weights.to(tokens.dtype) @ tokens, dim=-1, eps=1e-5)
