"""The files of an embedding cache: a manifest that says what was cached, and fp16 shards that are whole or not there.

    cache/manifest.json        the recipe; once all shards are whole, also their digests
    cache/shard-00000.npy      (images, *entry_shape) float16
    cache/shard-00000.json     its mark: {"sha256": ..., "images": ...}
    cache/shard-00000.claim-0  while a process makes the shard, see `fsdino.cache.claims`

A shard holds a fixed run of the image list, so any number of processes, jobs and machines can fill one folder.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.base.texts import plain_json
from fsdino.cache.claims import publish, temporary_file

MANIFEST = "manifest.json"
MAX_SIZE = 1_000_000_000


@dataclass(frozen=True)
class CacheRecipe:
    """What a cache holds; two caches with equal recipes are interchangeable.

    Args:
        fingerprint: sha256 over the network's weights and sizes.
        img_size: side of the square the images were brought to, in pixels.
        resize_mode: "squash" or "pad".
        views: what was embedded of each image: "plain", "hflip".
        entry_shape: shape of one image's row, the views first.
        precision: Lightning's precision that the network ran in.
    """

    source: str
    fingerprint: str
    images: str
    images_sha256: str
    num_images: int
    img_size: int
    resize_mode: str
    views: tuple[str, ...]
    entry_shape: tuple[int, ...]
    dtype: str = "float16"
    shard_size: int = 512
    precision: str = "32-true"

    def __post_init__(self) -> None:
        # JSON has no tuples: what is read from a manifest must equal what was made in memory.
        object.__setattr__(self, "views", tuple(self.views))
        object.__setattr__(self, "entry_shape", tuple(self.entry_shape))
        sizes = (self.num_images, self.img_size, self.shard_size, *self.entry_shape)
        if not all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes) or self.dtype != "float16":
            raise ValueError(
                f"a cache's sizes are whole numbers from 1 and its numbers float16, got {sizes}, {self.dtype}"
            )

    @property
    def num_shards(self) -> int:
        """Number of shard files."""
        return -(-self.num_images // self.shard_size)

    def shard_images(self, shard: int) -> range:
        """Places in the image list that a shard holds."""
        return range(shard * self.shard_size, min(self.num_images, (shard + 1) * self.shard_size))

    def check_same(self, expected: CacheRecipe, folder: Path) -> None:
        """Refuses (ValueError) a cache in `folder` that is made of something else; names the first such field."""
        for field in dataclasses.fields(self):
            # The two names are for people, and the shard size decides how the rows are filed, not what they are.
            got, want = getattr(self, field.name), getattr(expected, field.name)
            if got != want and field.name not in ("source", "images", "shard_size"):
                raise ValueError(
                    f"cache {folder} was made with {field.name} = {got!r}, this run needs {want!r}; "
                    "give another cache folder or delete this one."
                )


def read_manifest(folder: str | Path) -> tuple[CacheRecipe, dict[str, str]]:
    """Opens a cache's manifest: the recipe, and shard name -> sha256 of a finished cache (empty before).

    Raises:
        FileNotFoundError: if there is no manifest.
        ValueError: if it cannot be read.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not an embedding cache (no {MANIFEST}); make one with `fsdino run --stages cache`."
        )
    try:
        values = plain_json(path.read_text(encoding="utf-8"))
        recipe, shards = CacheRecipe(**values["recipe"]), dict(values["shards"])
        if shards and (
            len(shards) != recipe.num_shards
            or set(shards) != {shard_path(folder, shard).name for shard in range(recipe.num_shards)}
        ):
            raise ValueError("it lists other shards than its images fill")
        return recipe, shards
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder and run `fsdino run` again.") from error


def write_manifest(folder: str | Path, recipe: CacheRecipe, shards: dict[str, str]) -> None:
    """Writes the manifest in one step; `shards` is name -> sha256, empty until all are done."""
    path = Path(folder) / MANIFEST
    # Of two processes that begin a cache together one decides how large its shards are.
    publish(_written(folder, {"recipe": dataclasses.asdict(recipe), "shards": shards}), path, replace=bool(shards))


def write_mark(folder: str | Path, shard: int, sha256: str, images: int) -> None:
    """Writes the mark of a shard that is whole."""
    publish(_written(folder, {"sha256": sha256, "images": images}), shard_path(folder, shard, ".json"), replace=True)


def shard_path(folder: str | Path, shard: int, suffix: str = ".npy") -> Path:
    """The file of a shard: its data (.npy) or its mark (.json)."""
    return Path(folder) / f"shard-{shard:05d}{suffix}"


def shard_header(recipe: CacheRecipe, shard: int) -> bytes:
    """What a shard's data file begins with."""
    shape = (len(recipe.shard_images(shard)), *recipe.entry_shape)
    header = io.BytesIO()
    # Written by NumPy itself: its length depends on the shape, padded to a multiple of 64 bytes.
    descr = np.dtype(recipe.dtype).str
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def shard_bytes(recipe: CacheRecipe, shard: int) -> int:
    """Size of a shard's data file with its header, in bytes."""
    numbers = len(recipe.shard_images(shard)) * math.prod(recipe.entry_shape)
    return len(shard_header(recipe, shard)) + numbers * np.dtype(recipe.dtype).itemsize


def cache_bytes(recipe: CacheRecipe) -> int:
    """Size of all data files of a cache: images x the numbers of an entry x 2 bytes, and the files' headers."""
    return sum(shard_bytes(recipe, shard) for shard in range(recipe.num_shards))


def _written(folder: str | Path, values: dict[str, Any]) -> Path:
    """A file under a name of its own, that then gets its place: none is seen half-written."""
    temporary = temporary_file(Path(folder))
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    return temporary
