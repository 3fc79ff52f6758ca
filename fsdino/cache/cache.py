"""Embeddings of an image list: what a cache of them is made of, and reading it back memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fsdino.base.digest import file_sha256
from fsdino.cache.image_list import ImageList
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
    """What a cache of an image list must say in its manifest.

    Args:
        source: the frozen network.
        images: the list.
        resize_mode: how images become square.
        views: "plain", optionally also "hflip".
        shard_size: images in a shard.
        precision: Lightning's precision that the network runs in.

    Returns:
        The recipe.

    Raises:
        ValueError: for an unknown view.
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
        folder: the cache.
        expected: refuse a cache that was made with another recipe; None takes any.
        verify: read every shard once and compare its digest (about a second per gigabyte); sizes are always checked.

    Raises:
        FileNotFoundError: if there is no cache or a shard is gone.
        ValueError: if it is unfinished, made with another recipe, or a shard is damaged.
    """

    def __init__(self, folder: str | Path, expected: CacheRecipe | None = None, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.recipe, shards = read_manifest(folder)
        if expected is not None:
            self.recipe.check_same(expected, self.folder)
        if len(shards) < self.recipe.num_shards:
            raise ValueError(f"cache {folder} is unfinished; run the same `fsdino run` command again, it goes on.")
        for shard in range(self.recipe.num_shards):
            self._check(shard, shards, verify)
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.recipe.num_images

    def __getitem__(self, index: int) -> Tensor:
        """(C, h, w) float16 of the plain image at a place of the list."""
        return self.view(index, "plain")

    def view(self, index: int, view: str) -> Tensor:
        """One view of one image.

        Args:
            index: place in the image list.
            view: "plain" or "hflip".

        Returns:
            The source's embedding, float16.

        Raises:
            IndexError: if the list is shorter.
            ValueError: if the cache does not hold that view.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} is outside the cache's {len(self)} images.")
        if view not in self.recipe.views:
            raise ValueError(f"cache {self.folder} holds the views {self.recipe.views}, not {view!r}; cache it again.")
        shard, row = divmod(index, self.recipe.shard_size)
        if shard not in self._maps:  # opened when first asked for, in each worker process by itself
            self._maps[shard] = np.load(shard_path(self.folder, shard), mmap_mode="r")
        return torch.from_numpy(self._maps[shard][row, self.recipe.views.index(view)].copy())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a memory map would be pickled with all its numbers

    def _check(self, shard: int, shards: dict[str, str], verify: bool) -> None:
        path = shard_path(self.folder, shard)
        if not path.is_file():
            raise FileNotFoundError(f"cache shard {path} is gone; run the same `fsdino run` command again.")
        advice = f"delete {path.name} and {path.stem}.json and run `fsdino run` again."
        got_bytes, expected = path.stat().st_size, shard_bytes(self.recipe, shard)
        if got_bytes != expected:
            raise ValueError(f"cache shard {path} is damaged: {got_bytes} bytes, expected {expected}; {advice}")
        if verify and (got := file_sha256(path)) != shards[path.name]:
            raise ValueError(f"cache shard {path} is damaged: sha256 {got}, expected {shards[path.name]}; {advice}")
