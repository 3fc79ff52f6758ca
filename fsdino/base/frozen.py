"""The part of a method's work on an image that training never changes, so that it can be read from a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsdino.base.digest import weights_sha256


@dataclass(frozen=True)
class FrozenMaps:
    """A frozen network as a source of cached maps.

    Args:
        network: the frozen network; its weights name the cache.
        settings: whatever else decides the maps: taps, sizes.
        img_size: side of the square images that it wants, in pixels.
        entry_shape: shape of one image's maps.
        compute: (N, 3, S, S) float in [0, 1] -> (N, *entry_shape).
        in_place_of_images: whether an episode with maps needs no pixels, so that mirrored maps may serve as well.
    """

    name: str
    network: nn.Module
    settings: tuple[Any, ...]
    img_size: int
    entry_shape: tuple[int, ...]
    compute: Callable[[Tensor], Tensor]
    in_place_of_images: bool

    @property
    def fingerprint(self) -> str:
        """sha256 over the settings and all weights."""
        return weights_sha256(repr(self.settings), self.network.state_dict())

    def to(self, device: torch.device | str) -> FrozenMaps:
        """Moves the network."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) float in [0, 1] -> (N, *entry_shape)."""
        return self.compute(images)
