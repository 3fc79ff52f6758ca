"""The files of an embedding cache: a manifest that says what was cached, and fp16 shards with marks of what is done.

    cache/manifest.json      the recipe; once all shards are done, also their digests
    cache/shard-00000.npy    (images, *entry_shape) float16
    cache/shard-00000.part   while the shard is written: one byte an image, 1 = its row is complete
    cache/shard-00000.json   after that: {"sha256": ..., "images": ...}

A shard holds a fixed run of the image list and has one writer, so any number of processes can share the work and a
run that was killed goes on, also with another number of processes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.base.digest import file_sha256
from fsdino.base.texts import plain_json

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
    _write_json(Path(folder) / MANIFEST, {"recipe": dataclasses.asdict(recipe), "shards": shards})


def shard_path(folder: str | Path, shard: int, suffix: str = ".npy") -> Path:
    """The file of a shard: its data (.npy), its progress (.part) or its mark of completion (.json)."""
    return Path(folder) / f"shard-{shard:05d}{suffix}"


def shard_bytes(recipe: CacheRecipe, shard: int) -> int:
    """Size of a shard's data file with its header, in bytes."""
    shape = (len(recipe.shard_images(shard)), *recipe.entry_shape)
    # The header is written by NumPy itself: its length depends on the shape, padded to a multiple of 64 bytes.
    dtype, header = np.dtype(recipe.dtype), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return len(header.getvalue()) + math.prod(shape) * dtype.itemsize


def cache_bytes(recipe: CacheRecipe) -> int:
    """Size of all data files of a cache: images x the numbers of an entry x 2 bytes, and the files' headers."""
    return sum(shard_bytes(recipe, shard) for shard in range(recipe.num_shards))


class ShardStore:
    """The writing side of a cache. Two stores may work on one folder if they never write the same shard.

    Raises:
        ValueError: if the folder holds a cache with another recipe.
    """

    def __init__(self, folder: str | Path, recipe: CacheRecipe) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST).is_file():
            found, _ = read_manifest(self.folder)
            found.check_same(recipe, self.folder)
            # Its shard size rules: the marks of finished shards are places in shards of that size.
            recipe = found
        else:
            write_manifest(self.folder, recipe, {})
        self.recipe = recipe
        self._open: dict[int, tuple[np.memmap, np.memmap]] = {}

    @property
    def is_finished(self) -> bool:
        """Whether every shard is there with its mark, and the manifest lists them all."""
        listed = len(read_manifest(self.folder)[1]) == self.recipe.num_shards
        return listed and all(self._is_done(shard) for shard in range(self.recipe.num_shards))

    def pending(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Images that one writer still has to embed, as places in the list; shard s is writer s mod `world_size`'s."""
        places: list[int] = []
        for shard in range(rank, self.recipe.num_shards, world_size):
            if self._is_done(shard):
                continue
            part = shard_path(self.folder, shard, ".part")
            images = self.recipe.shard_images(shard)
            marks = np.fromfile(part, np.uint8) if part.is_file() else np.zeros(len(images), np.uint8)
            places += [place for place, done in zip(images, marks) if not done]
            # The run was killed between the last image and the mark of completion: nothing is left to embed.
            if marks.all():
                self._finish(shard)
        return places

    def put(self, places: list[int], rows: np.ndarray) -> None:
        """Writes images: places in the image list, and their rows (N, *entry_shape).

        Raises:
            ValueError: if a number does not fit float16, or a row has another shape than the recipe's.
        """
        if rows.shape[1:] != self.recipe.entry_shape:
            raise ValueError(
                f"expected rows of shape {self.recipe.entry_shape}, got {rows.shape[1:]}; "
                "the network does not give what the recipe says."
            )
        # A number above 65,504 becomes infinite in float16, which the check below reports with the image it is of.
        with np.errstate(over="ignore"):
            rows = rows.astype(self.recipe.dtype)
        if not np.isfinite(rows).all():
            bad = places[int(np.argmin([np.isfinite(row).all() for row in rows]))]
            raise ValueError(
                f"embedding of image {bad} is not finite in {self.recipe.dtype}; "
                "check the image and the network's weights."
            )
        for shard in sorted({place // self.recipe.shard_size for place in places}):
            self._put_shard(shard, places, rows)

    def finalize(self) -> None:
        """Writes all digests into the manifest if every shard is done; called by one process, after the others."""
        shards = {}
        for shard in range(self.recipe.num_shards):
            mark = shard_path(self.folder, shard, ".json")
            if not self._is_done(shard):
                return
            try:
                shards[shard_path(self.folder, shard).name] = plain_json(mark.read_text(encoding="utf-8"))["sha256"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{mark} is damaged ({error}); delete it and run `fsdino run` again.") from error
        write_manifest(self.folder, self.recipe, shards)

    def _is_done(self, shard: int) -> bool:
        return all(shard_path(self.folder, shard, suffix).is_file() for suffix in (".json", ".npy"))

    def _put_shard(self, shard: int, places: list[int], rows: np.ndarray) -> None:
        data, marks = self._maps(shard)
        mine = [i for i, place in enumerate(places) if place // self.recipe.shard_size == shard]
        local = [places[i] - shard * self.recipe.shard_size for i in mine]
        # First the rows, flushed, then their marks, so that a mark never promises what a killed run did not write.
        data[local] = rows[mine]
        data.flush()
        marks[local] = 1
        marks.flush()
        if marks.all():
            del self._open[shard]
            self._finish(shard)

    def _maps(self, shard: int) -> tuple[np.memmap, np.memmap]:
        """The open files of a shard, data and marks; made where they are missing."""
        if shard not in self._open:
            count = len(self.recipe.shard_images(shard))
            path, part = shard_path(self.folder, shard), shard_path(self.folder, shard, ".part")
            if not part.is_file():
                # A fresh pair starts with the data, and the marks appear whole: they never outlive their rows, nor are
                # they read half-written.
                shape = (count, *self.recipe.entry_shape)
                np.lib.format.open_memmap(path, "w+", dtype=np.dtype(self.recipe.dtype), shape=shape).flush()
                temporary = part.with_suffix(".part.tmp")
                temporary.write_bytes(bytes(count))
                os.replace(temporary, part)
            data = np.lib.format.open_memmap(path, "r+")
            self._open[shard] = (data, np.memmap(part, np.uint8, "r+", shape=(count,)))
        return self._open[shard]

    def _finish(self, shard: int) -> None:
        sha256, images = file_sha256(shard_path(self.folder, shard)), len(self.recipe.shard_images(shard))
        # The mark of completion comes before the progress is removed: killed in between, the shard still counts as
        # done.
        _write_json(shard_path(self.folder, shard, ".json"), {"sha256": sha256, "images": images})
        shard_path(self.folder, shard, ".part").unlink(missing_ok=True)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    # Written beside the file and moved over it, so that it is never seen half-written; the process number keeps writers
    # that share a folder apart.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(temporary, path)
