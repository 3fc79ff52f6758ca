"""Whether the caches of a run fit on the disk, looked at before the first of them is begun."""

from __future__ import annotations

import shutil
from pathlib import Path

from fsdino.cache.image_list import ImageList
from fsdino.cache.shards import MANIFEST, read_manifest
from fsdino.data.splits import TrainSet
from fsdino.pipeline.needs import CacheNeed, Needs
from fsdino.pipeline.recipe import Recipe


def check_disk(recipe: Recipe, train_set: TrainSet) -> None:
    """Refuse a run whose caches the disk cannot hold, unless `cache.check_disk` is off.

    Raises:
        OSError: says what is needed, how that comes about, and what to do.
    """
    part = recipe.cache
    if not part.check_disk or not (part.teacher or part.features):
        return
    needs = Needs(recipe, len(train_set.images), len(train_set.annotated))
    missing, told, folder = 0, [], Path(part.dir)
    for need in needs.caches:
        images = train_set.images if need.kind == "teacher" else train_set.annotated
        total, there = need.bytes(len(images)), written(need, images, folder)
        missing += max(0, total - there)
        told.append(f"{need.kind}: {need.formula()} = {gigabytes(total)}, {gigabytes(there)} of it there")
    free = free_bytes(folder)
    if missing > free:
        raise OSError(
            f"the caches need {gigabytes(missing)} more in '{folder}' ({'; '.join(told)}), {gigabytes(free)} are free: "
            "make room, name another disk with --cache.dir, or go on all the same with --cache.check_disk false."
        )


def written(need: CacheNeed, images: ImageList, folder: Path) -> int:
    """Bytes that an earlier run has written of such a cache of these images."""
    most = 0
    for manifest in folder.glob(f"{need.kind}-*/{MANIFEST}"):
        try:
            found = read_manifest(manifest.parent)[0]
        # A damaged cache is refused where it is opened, with what to do about it.
        except ValueError:
            continue
        if (found.entry_shape, found.num_images, found.images_sha256) == (need.entry_shape, len(images), images.sha256):
            # By what is on the disk: a shard has its whole length from its first row on, the rest is a hole.
            stats = [path.stat() for path in manifest.parent.glob("*.npy")]
            most = max(most, sum(min(one.st_size, 512 * getattr(one, "st_blocks", 2**50)) for one in stats))
    return most


def free_bytes(folder: Path) -> int:
    """Free room on the disk that a folder lies on or will lie on."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def gigabytes(number: float) -> str:
    """Bytes as people say them."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
