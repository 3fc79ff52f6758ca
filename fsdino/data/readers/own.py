"""A user's own folder without folds: all classes are learnt, and some images of each are kept for testing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fsdino.data.catalog import TRAIN_TEST, DataSet
from fsdino.data.class_index import ClassIndex, SubsetIndex
from fsdino.data.files import DataSetError
from fsdino.data.readers.folder import folder

MIN_IMAGES = 6  # of a class: two to learn from, two to choose with, two to test


def own_folder(
    root: str | Path,
    split: Literal["train", "test"] = "train",
    test_share: float = 0.25,
    name: str = "own",
    **options: Any,
) -> ClassIndex:
    """The training or the test images of a folder, in any layout that `folder` knows; one fold tests all classes.

    Args:
        test_share: part of each class's images kept apart, in (0, 1), two at least.
        options: for `folder`.
    """
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"test_share {test_share} leaves nothing to train or to test on; use a part such as 0.25.")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r} of one's own folder; use 'train' or 'test'.")
    whole = folder(root, name, **options)
    whole.folds = [sorted(whole.class_names)]
    for class_id, class_name in whole.class_names.items():
        if 0 < len(whole.images(class_id)) < MIN_IMAGES:
            raise DataSetError(
                f"class '{class_name}' has {len(whole.images(class_id))} images and needs {MIN_IMAGES}: two to "
                "learn from, two to choose with, two to test; add images or take the class out."
            )
    apart = spread_images(whole, test_share)
    return SubsetIndex.of_images(whole, apart) if split == "test" else SubsetIndex.without_images(whole, apart)


def spread_images(index: ClassIndex, share: float, least: int = 2) -> set[str]:
    """Images taken evenly from each class's sorted list; one that shows several classes counts for all of them.

    At least `least` images of a class are taken, where it has twice as many.
    """
    chosen: set[str] = set()
    for class_id in sorted(index.class_names):
        images = index.images(class_id)
        # Neighbours in a sorted list are often shots of one scene: evenly spread images stand for the whole list, and
        # the choice is the same on every machine without a seed.
        wanted = min(max(least, round(share * len(images))), len(images) // 2)
        free = [image for image in images if image not in chosen]
        missing = wanted - (len(images) - len(free))
        if missing > 0:
            chosen.update(free[int((i + 0.5) * len(free) / missing)] for i in range(missing))
    return chosen


DATA_SETS = (DataSet("own", "one's own folder, all classes learnt", own_folder, roles=TRAIN_TEST),)
