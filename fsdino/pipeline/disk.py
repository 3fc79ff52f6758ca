"""Whether the caches of a run fit on the disk, looked at before the first of them is begun."""

from __future__ import annotations

import shutil
from pathlib import Path

from fsdino.cache.append import full_shards, is_beginning
from fsdino.cache.image_list import ImageList
from fsdino.cache.shards import MANIFEST, read_manifest, shard_path
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
            f"make room, name another disk with --cache.dir, {_smaller(recipe)}or go on all the same with "
            "--cache.check_disk false."
        )


def _smaller(recipe: Recipe) -> str:
    """What takes less room, where the recipe distills and has not asked for it."""
    if not (recipe.distills and recipe.cache.teacher):
        return ""
    cells = "" if recipe.cache.grid else "store fewer cells with --cache.grid, "
    return f"{cells}ask the teacher in every step with --cache.teacher false, "


def written(need: CacheNeed, images: ImageList, folder: Path) -> int:
    """Bytes that an earlier run has written of such a cache of these images."""
    most = 0
    for manifest in folder.glob(f"{need.kind}-*/{MANIFEST}"):
        try:
            found = read_manifest(manifest.parent)[0]
        # A damaged cache is refused where it is opened, with what to do about it.
        except ValueError:
            continue
        if found.entry_shape == need.entry_shape and is_beginning(found, images):
            whole = found.num_images == len(images)
            paths = [shard_path(manifest.parent, i) for i in (range(found.num_shards) if whole else full_shards(found))]
            # By what is on the disk: earlier versions gave a shard its whole length from its first row on.
            # What others are at is on its way: of two jobs that begin together none counts the other's part as missing.
            paths += manifest.parent.glob("*.npy.*.tmp") if whole else []
            stats = [path.stat() for path in paths if path.is_file()]
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
