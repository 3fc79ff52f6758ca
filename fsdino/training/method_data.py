"""Training episodes of the SAM2 systems: pixels, beside them cached maps of FSSAM's frozen encoder where there are any.

SANSA's adapters sit inside its encoder, so nothing of it can be cached. Pixels stay in the batch in any case, because
both systems run SAM2 on them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsdino.cache.cache import EmbeddingCache
from fsdino.cache.image_list import ImageList
from fsdino.methods.fssam.method import Fssam
from fsdino.training.episode_data import MetaData


class FssamMaps:
    """What FSSAM's priors compare, as a cache source.

    Args:
        method: its encoder is frozen; rows are `method.features`, (N, C).
    """

    name = "fssam"

    def __init__(self, method: Fssam) -> None:
        self.method = method
        self.img_size = method.img_size

    @property
    def fingerprint(self) -> str:
        """sha256 over the encoder's weights and both sizes."""
        encoder = self.method.encoder
        digest = hashlib.sha256(repr((encoder.taps, encoder.img_size, self.img_size)).encode())
        for key, value in sorted(encoder.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """(N, C)."""
        grid = self.method.encoder.grid_size
        return (grid * grid, self.method.encoder.dim)

    def to(self, device: torch.device | str) -> FssamMaps:
        """Moves the method."""
        self.method.to(device)
        return self

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) float in [0, 1] -> (N, tokens, C)."""
        return self.method.features(images)


class EpisodesWithMaps(Dataset):
    """Episodes that bring cached maps of their images along.

    Args:
        episodes: a data set of episodes without augmentation.
        cache: rows (N, C), plain views.
        images: the cache's list.
    """

    def __init__(self, episodes: Dataset, cache: EmbeddingCache, images: ImageList) -> None:
        self.episodes, self.cache = episodes, cache
        self.place = {image: i for i, image in enumerate(images.ids)}

    def __len__(self) -> int:
        return len(self.episodes)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """The episode with `query_features` (N, C) and `support_features` (K, N, C), float16."""
        item = self.episodes[i]
        query, *supports = (self.cache[self.place[name]] for name in (item["query_id"], *item["support_ids"]))
        return {**item, "query_features": query, "support_features": torch.stack(supports)}


class MethodData(MetaData):
    """As `MetaData`, but cached maps come beside the pixels, not in their place."""

    def _with_features(self, episodes: Dataset, flip_key: tuple[int, int] | None) -> Dataset:
        if self.cache is None or self.images is None:
            return episodes
        return EpisodesWithMaps(episodes, self.cache, self.images)
