"""What the segmenter keeps of the references."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.models.contract import Memory
from fsdino.models.correlation import unit_tokens


@dataclass
class SupportMemory(Memory):
    """References as the segmenter needs them; the compact variants keep the prototypes alone.

    Args:
        prototypes: (B, L, 2, C) unit-length mean tokens, foreground then background; 0 where there is none of a kind.
        embedding_prototypes: (B, 2, D) the same in the adapter's space, where the dense prompt compares that too.
        tokens: (B, L, M, C) unit-length tokens of all references, M = K * h * w.
        fg: (B, M) share of the object in each position, in [0, 1].
        bg: (B, M) share of the rest in each position, in [0, 1].
        grid: (K, h, w), how M splits.
    """

    prototypes: Tensor
    embedding_prototypes: Tensor | None = None
    tokens: Tensor | None = None
    fg: Tensor | None = None
    bg: Tensor | None = None
    grid: tuple[int, int, int] | None = None


def support_tokens(feats: Tensor, num_episodes: int) -> Tensor:
    """Unit-length tokens of an episode's references in one row.

    Args:
        feats: (B*K, C, h, w) feature maps.
        num_episodes: B.

    Returns:
        (B, K*h*w, C).
    """
    return unit_tokens(feats).reshape(num_episodes, -1, feats.shape[1])


def grid_weights(masks: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Share of object and of background in each grid position.

    Args:
        masks: (B, K, S, S) float in [0, 1].
        size: (h, w) of the grid.

    Returns:
        Foreground and background, (B, K*h*w) float in [0, 1].
    """
    fg = F.interpolate(masks.float(), size=size, mode="area").flatten(1)
    return fg, 1.0 - fg


def prototypes(tokens: Tensor, fg: Tensor, bg: Tensor) -> Tensor:
    """Weighted mean tokens, of unit length.

    Args:
        tokens: (B, M, C) unit-length tokens.
        fg: (B, M) foreground weights.
        bg: (B, M) background weights.

    Returns:
        (B, 2, C) foreground and background prototype; 0 where all weights are 0.
    """
    weights = torch.stack([fg, bg], dim=1)  # (B, 2, M)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    return F.normalize(weights.to(tokens.dtype) @ tokens, dim=-1, eps=1e-5)
