"""More images at the end of a list: the shards of its beginning are taken from the cache that holds them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from fsdino.cache.image_list import ImageList
from fsdino.cache.shards import MANIFEST, CacheRecipe, read_manifest, shard_path


def is_beginning(found: CacheRecipe, images: ImageList) -> bool:
    """Whether a cache is one of a list's first images, or of all of them."""
    count = found.num_images
    if count > len(images):
        return False
    # By the pixels of the same 64 images that named the list when it was shorter.
    first = images if count == len(images) else dataclasses.replace(images, ids=images.ids[:count])
    return found.images_sha256 == first.sha256


def full_shards(found: CacheRecipe) -> range:
    """The shards that a longer list has as well; the last one, where it is not full, holds other images there."""
    return range(found.num_images // found.shard_size)


def adopt(folder: Path, recipe: CacheRecipe, images: ImageList, caches: Iterable[Path]) -> int:
    """Begin a cache with what others hold of it; the number of shards.

    Files are linked, not copied: they take no room, the other cache stays as it is, and either may be deleted.

    Args:
        folder: of the cache that is to be made; nothing is done where there is one.
        caches: folders that may hold the same network's maps of the first images of the list.
    """
    if (folder / MANIFEST).is_file():
        return 0
    taken = 0
    for other in sorted(caches):
        try:
            found = read_manifest(other)[0]
        # A damaged cache is refused where it is opened, with what to do about it.
        except (FileNotFoundError, ValueError):
            continue
        shorter = dataclasses.replace(
            recipe,
            source=found.source,
            images=found.images,
            images_sha256=found.images_sha256,
            num_images=found.num_images,
        )
        if found != shorter or not is_beginning(found, images):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        taken += sum(_linked(other, folder, shard) for shard in full_shards(found))
    return taken


def _linked(other: Path, folder: Path, shard: int) -> bool:
    pairs = [(shard_path(other, shard, suffix), shard_path(folder, shard, suffix)) for suffix in (".npy", ".json")]
    if not all(source.is_file() and not target.exists() for source, target in pairs):
        return False
    try:
        for source, target in pairs:
            os.link(source, target)
    except FileExistsError:
        # Another process does the same, or has begun to make it.
        return False
    except OSError as error:
        print(f"{pairs[0][0]} cannot be linked to {folder} ({error}); it is made again", flush=True)
        return False
    return True
