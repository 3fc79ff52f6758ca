"""Which images of the base classes a fold trains on: the two schools of the field, and none."""

from __future__ import annotations

from typing import Literal

from fsdino.data.class_index import ClassIndex, SubsetIndex

TrainFilter = Literal["none", "hsnet", "pfenet"]
PFENET_MIN_PIXELS = 2 * 32 * 32


def training_view(index: ClassIndex, fold: int, rule: TrainFilter = "none") -> ClassIndex:
    """Images that may be trained on in a fold; novel classes keep their names and have no image.

    - "none", "hsnet": every image of a base class; `novel_as_ignore` says what novel objects in it are.
    - "pfenet": without the images that show a novel class, and without (image, class) pairs of fewer than 2,048 pixels.
    """
    base, novel = index.base_classes(fold), set(index.novel_classes(fold))
    if rule in ("none", "hsnet"):
        return SubsetIndex(index, {class_id: index.images(class_id) for class_id in base})
    if rule != "pfenet":
        raise ValueError(f"there is no training filter '{rule}'; there are 'none', 'hsnet' and 'pfenet'.")
    shown: dict[str, list[int]] = {}
    for class_id in base:
        for image in index.images(class_id):
            shown.setdefault(image, []).append(class_id)
    keep: dict[int, list[str]] = {class_id: [] for class_id in base}
    # Image by image, not class by class: readers keep the last image's masks at hand.
    for image, classes in shown.items():
        if not index.classes_in(image) & novel:
            for class_id in classes:
                if index.object_pixels(image, class_id) >= PFENET_MIN_PIXELS:
                    keep[class_id].append(image)
    return SubsetIndex(index, keep)


def novel_as_ignore(index: ClassIndex, fold: int, rule: TrainFilter = "none") -> list[int]:
    """Classes to give to `TrainEpisodes(ignore_classes=...)`: the novel ones, or none where they are background."""
    return [] if rule == "hsnet" else index.novel_classes(fold)
