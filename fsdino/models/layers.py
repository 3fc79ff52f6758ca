"""Small layers that several boxes of the figure share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


def unit_tokens(feats: Tensor) -> Tensor:
    """Feature maps (N, C, h, w) as tokens (N, h*w, C) of unit length, the rows of the grid one after the other."""
    # The default 1e-12 is 0 in half precision, and an all-zero token would become NaN.
    return F.normalize(feats.flatten(2).transpose(1, 2), dim=-1, eps=1e-5)


class Mlp(nn.Module):
    """Linear layers with a ReLU between them, of widths `dims` from input to output."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        # torchvision has such a class as well, but SAM's weights load by these names.
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dims[0]) to (..., dims[-1])."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
