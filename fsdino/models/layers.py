"""Small layers that several boxes of the figure share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


def unit_tokens(feats: Tensor) -> Tensor:
    """Feature maps as tokens of unit length.

    Args:
        feats: (N, C, h, w).

    Returns:
        (N, h*w, C), the rows of the grid one after the other.
    """
    return F.normalize(feats.flatten(2).transpose(1, 2), dim=-1, eps=1e-5)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position of a map.

    Positions are normalised one by one: statistics over an image would erase how well it matches as a whole.

    Args:
        dim: Number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Linear layers with a ReLU between them.

    Args:
        dims: Widths from input to output.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dims[0]) to (..., dims[-1])."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
