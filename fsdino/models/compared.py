"""Which of an image's maps are compared with those of references, and from where."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fsdino.models.encoder import FeatureEncoder


class ComparedMaps(nn.Module):
    """Picks the compared ones among the encoder's maps, and centres them where that is asked for.

    What all images share would count as likeness: attention outputs share most of their length, block outputs less.

    Args:
        encoder: whose maps they are; its attention outputs are all compared.
        taps: blocks whose outputs are compared, in the order of the result.
        centred: whether each map is less its mean over images, zeros until `fit_` sets it.
    """

    means: Tensor | None

    def __init__(self, encoder: FeatureEncoder, taps: Iterable[int], centred: bool) -> None:
        super().__init__()
        blocks = len(encoder.taps)
        self.places = (*map(encoder.taps.index, taps), *range(blocks, encoder.num_maps))
        # None is in no file, so models that are not centred load as they always did.
        self.register_buffer("means", torch.zeros(len(self.places), encoder.dim) if centred else None)

    def __len__(self) -> int:
        return len(self.places)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The compared of all maps (N, C, h, w) of the encoder."""
        chosen = [maps[i] for i in self.places]
        return chosen if self.means is None else [m - mean[:, None, None] for m, mean in zip(chosen, self.means)]

    def fit_(self, means: Tensor) -> None:
        """Centre by these means (L, C) of all maps of the encoder, see `FeatureEncoder.mean_features`."""
        if self.means is not None:
            self.means.copy_(means[list(self.places)])
