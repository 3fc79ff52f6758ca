"""Embeddings of an image list: what a cache of them is made of, and reading it back memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fsdino.base.digest import file_sha256
from fsdino.cache.image_list import ImageList
from fsdino.cache.seen import note_seen, was_seen
from fsdino.cache.shards import CacheRecipe, read_manifest, shard_bytes, shard_path


class EmbeddingSource(Protocol):
    """Anything frozen that turns images into rows of a cache; `SamTeacher` is one."""

    @property
    def name(self) -> str:
        """How manifests call it."""

    @property
    def img_size(self) -> int:
        """Side of the images it wants, in pixels."""

    @property
    def fingerprint(self) -> str:
        """sha256 over its weights and sizes."""

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """Shape of one image's embedding."""

    def to(self, device: torch.device | str) -> Any:
        """Moves it."""

    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) float in [0, 1] -> (N, *entry_shape)."""


def cache_recipe(
    source: EmbeddingSource,
    images: ImageList,
    *,
    resize_mode: str = "squash",
    views: tuple[str, ...] = ("plain",),
    shard_size: int = 512,
    precision: str = "32-true",
) -> CacheRecipe:
    """What a cache of an image list must say in its manifest; `precision` is Lightning's, that of the network.

    Raises:
        ValueError: for a view other than "plain" and "hflip".
    """
    for view in views:
        if view not in ("plain", "hflip"):
            raise ValueError(f"unknown view {view!r}; use 'plain' and 'hflip'.")
    return CacheRecipe(
        source=source.name,
        fingerprint=source.fingerprint,
        images=images.name,
        images_sha256=images.sha256,
        num_images=len(images),
        img_size=source.img_size,
        resize_mode=resize_mode,
        views=tuple(views),
        entry_shape=(len(views), *source.entry_shape),
        shard_size=shard_size,
        precision=precision,
    )


class EmbeddingCache:
    """A finished cache, read by memory mapping; cheap to send to worker processes.

    Args:
        expected: refuse a cache that was made with another recipe; None takes any.
        verify: compare a shard's digest when it is first read, once on each machine, see `fsdino.cache.seen` (about a
            second per gigabyte); sizes are always checked, and at once.
        written: shards that this process has just written, with their digests; they are not read again.

    Raises:
        FileNotFoundError: if there is no cache or a shard is gone.
        ValueError: if it is unfinished, made with another recipe, or a shard is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        expected: CacheRecipe | None = None,
        verify: bool = True,
        written: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.recipe, shards = read_manifest(folder)
        if expected is not None:
            self.recipe.check_same(expected, self.folder)
        # The manifest lists the shards only once all of them are done, so a cache that is still written is not read.
        if len(shards) < self.recipe.num_shards:
            raise ValueError(f"cache {folder} is unfinished; run the same `fsdino run` command again, it goes on.")
        for shard in range(self.recipe.num_shards):
            self._check_size(shard)
        known = written or {}
        self._unread = {name: digest for name, digest in shards.items() if verify and known.get(name) != digest}
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.recipe.num_images

    def __getitem__(self, index: int) -> Tensor:
        """The plain `view` of an image."""
        return self.view(index, "plain")

    def view(self, index: int, view: str) -> Tensor:
        """One view ("plain" or "hflip") of the image at a place of the list, as the source embedded it, in float16.

        Raises:
            IndexError: if the list is shorter.
            ValueError: if the cache does not hold that view, or the shard is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} is outside the cache's {len(self)} images.")
        if view not in self.recipe.views:
            raise ValueError(f"cache {self.folder} holds the views {self.recipe.views}, not {view!r}; cache it again.")
        shard, row = divmod(index, self.recipe.shard_size)
        if shard not in self._maps:
            self._check_digest(shard)
            self._maps[shard] = np.load(shard_path(self.folder, shard), mmap_mode="r")
        # Copied, since a tensor must not share the memory of a file that is mapped for reading alone.
        return torch.from_numpy(self._maps[shard][row, self.recipe.views.index(view)].copy())

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled with all its numbers; the worker process opens the shards again.
        return {**self.__dict__, "_maps": {}}

    def _check_size(self, shard: int) -> None:
        path = shard_path(self.folder, shard)
        if not path.is_file():
            raise FileNotFoundError(f"cache shard {path} is gone; run the same `fsdino run` command again.")
        # It finds a file that was cut off without reading gigabytes.
        got, expected = path.stat().st_size, shard_bytes(self.recipe, shard)
        if got != expected:
            raise self._damaged(path, f"{got} bytes, expected {expected}")

    def _check_digest(self, shard: int) -> None:
        path = shard_path(self.folder, shard)
        expected = self._unread.get(path.name)
        if expected is None or was_seen(path, expected):
            return
        if (got := file_sha256(path)) != expected:
            raise self._damaged(path, f"sha256 {got}, expected {expected}")
        note_seen(path, expected)

    def _damaged(self, path: Path, how: str) -> ValueError:
        return ValueError(
            f"cache shard {path} is damaged: {how}; delete {path.name} and {path.stem}.json and run `fsdino run` again."
        )
