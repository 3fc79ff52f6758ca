"""Results as `supervision.Detections`, for its annotators, trackers and counters, and detections as references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fsdino.base.reference import ImageLike, Reference, image_array
from fsdino.base.result import Instance, Segmentation

try:
    import supervision as sv
except ImportError as error:
    raise ImportError(f"{error.name} is missing; install it with `pip install fsdino[annotate]`.") from error


def to_detections(found: Mapping[str, Segmentation], split_instances: bool = True) -> sv.Detections:
    """What was found in one image, as detections with masks.

    Args:
        found: class name to result: `scene.classes` of a `LabelMap`, or `{"cat": result}`.
        split_instances: one detection per connected part, otherwise one per class that is there.

    Returns:
        With `mask` (N, H, W) bool, `xyxy` whose x1 and y1 are the first column and row past the mask, `confidence` in
        [0, 1], `class_id` counted from 0 in the order of `found`, and the names in `data["class_name"]`.
    """
    names = list(found)
    parts = [part for name, one in found.items() for part in _parts(name, one, split_instances)]
    if not parts:
        # With the same fields, so that what is made of many images can be merged.
        size = next((one.mask.shape for one in found.values()), (0, 0))
        parts_mask, boxes = np.zeros((0, *size), bool), np.zeros((0, 4), np.float32)
    else:
        parts_mask = np.stack([part.mask for part in parts])
        boxes = np.array([part.box for part in parts], np.float32)
    return sv.Detections(
        xyxy=boxes,
        mask=parts_mask,
        confidence=np.array([part.score for part in parts], np.float32),
        class_id=np.array([names.index(part.name) for part in parts], int),
        data={"class_name": np.array([part.name for part in parts], dtype=str)},
    )


def _parts(name: str, one: Segmentation, split_instances: bool) -> list[Instance]:
    if split_instances:
        return one.instances(name=name)
    rows, columns = np.flatnonzero(one.mask.any(1)), np.flatnonzero(one.mask.any(0))
    if not len(rows):
        return []
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return [Instance(one.mask, box, one.score, name)]


def to_references(
    image: ImageLike, detections: sv.Detections, names: Mapping[int, str] | None = None, name: str = "detections"
) -> dict[str, Reference]:
    """Detections in one image as a reference per class, whose mask is the union of the class's masks.

    Args:
        image: as `Reference.image`.
        detections: with masks, and with class names in `data["class_name"]` or class ids. Without masks each class
            must have a single box, which becomes the reference's.
        names: class id to name, for detections without names; without either an id is its own name.
        name: what messages call the image.

    Raises:
        ValueError: if there are no classes, or several boxes of a class without masks.
    """
    shown = image_array(image, name)
    classes = _class_names(detections, names, name)
    references: dict[str, Reference] = {}
    for class_name in sorted(set(classes)):
        of_class = [k for k, other in enumerate(classes) if other == class_name]
        if detections.mask is not None:
            mask = np.any([np.asarray(detections.mask[k], bool) for k in of_class], axis=0)
            if mask.shape != shown.shape[:2]:
                raise ValueError(f"{name}: the masks are {mask.shape}, the image is {shown.shape[:2]} (rows, columns).")
            references[class_name] = Reference(image, mask=mask, name=f"{name} ({class_name})")
        elif len(of_class) == 1:
            # A box ends with its last pixel, whose centre is one before where the detection ends.
            x0, y0, x1, y1 = (float(value) for value in detections.xyxy[of_class[0]])
            references[class_name] = Reference(image, box=(x0, y0, x1 - 1, y1 - 1), name=f"{name} ({class_name})")
        else:
            raise ValueError(
                f"{name}: {len(of_class)} boxes of '{class_name}' without masks; a reference has one box, so give "
                "masks, or detections of a single object."
            )
    return references


def _class_names(detections: sv.Detections, names: Mapping[int, str] | None, name: str) -> list[str]:
    given: Any = detections.data.get("class_name")
    if given is not None:
        return [str(one) for one in given]
    if detections.class_id is None:
        raise ValueError(f"{name}: the detections have no classes; set class_id, or data['class_name'].")
    return [(names or {}).get(int(number), str(int(number))) for number in detections.class_id]
