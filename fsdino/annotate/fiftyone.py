"""FiftyOne: predictions written into the samples of a data set, and references from a field that is labelled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np

from fsdino.annotate.drawn import Draw, Drawn, reference
from fsdino.annotate.lessons import Lessons, NothingShown
from fsdino.annotate.outlines import filled
from fsdino.base.reference import Reference
from fsdino.base.result import LabelMap
from fsdino.data.images import read_image
from fsdino.predict.engines import Engine
from fsdino.predict.support import Support

try:
    import fiftyone as fo
except ImportError as error:
    raise ImportError(f"{error.name} is missing; install it with `pip install fiftyone`.") from error

UNREADABLE = (ValueError, OSError)


def to_detections(found: LabelMap) -> fo.Detections:
    """What was found in an image as one detection with its mask per connected part."""
    height, width = found.labels.shape
    made = []
    for part in found.instances():
        x0, y0, x1, y1 = part.box
        box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
        mask = part.mask[y0:y1, x0:x1]
        made.append(fo.Detection(label=part.name, bounding_box=box, mask=mask, confidence=part.score))
    return fo.Detections(detections=made)


def to_segmentation(found: LabelMap) -> fo.Segmentation:
    """What was found as one label map; label k is the k-th class, see `mask_targets`."""
    return fo.Segmentation(mask=found.labels)


def mask_targets(class_names: Iterable[str]) -> dict[int, str]:
    """What `dataset.mask_targets[field]` has to be for the label maps of these classes."""
    return dict(enumerate(class_names, start=1))


def references(
    samples: Iterable[Any],
    field: str,
    targets: Mapping[int, str] | None = None,
    max_references: int = 10,
    draw: Draw | None = None,
) -> dict[str, list[Reference]]:
    """References from the labels of samples: a data set, a view, or any samples.

    Args:
        field: of Detections or a Detection (with masks, or boxes where `draw` is given), closed Polylines, or a
            Segmentation.
        targets: value of a Segmentation's mask to class name; its other values are left out.
        max_references: samples used per class, the first of them; 0 takes all.
        draw: gives the mask of a box: `model.draw_mask` of a model that takes hints.

    Raises:
        ValueError: if no sample has a label in the field that shows an area.
    """
    found: dict[str, list[Reference]] = {}
    for sample in samples:
        label = sample[field] if sample.has_field(field) else None
        if label is None:
            continue
        image = read_image(sample.filepath)
        for name, drawn in _drawn(label, image.shape[:2], targets or {}).items():
            known = found.setdefault(name, [])
            if not max_references or len(known) < max_references:
                one = reference(drawn, image, f"{sample.filepath} ({name})", draw)
                known += [one] if one is not None else []
    found = {name: known for name, known in sorted(found.items()) if known}
    if not found:
        raise ValueError(f"field '{field}' shows no area in any sample; expected masks, polylines or label maps.")
    return found


def predict_into(
    samples: Any,
    engine: Engine,
    known: Mapping[str, list[Reference]],
    field: str = "fsdino",
    make: Callable[[LabelMap], Any] = to_detections,
) -> dict[str, str]:
    """Search the pictures of samples and write what is found into a field.

    Args:
        samples: a data set or a view, which is saved as it goes, or any samples.
        engine: a model of `fsdino.load`, or `EngineChoice(...).open()`.
        known: class name to references.
        field: name of the field; a sample that has it already is left as it is, so that a second run goes on.
        make: `to_detections`, `to_segmentation`, or what else is made of a `LabelMap`.

    Returns:
        Path to reason of the pictures that could not be read.
    """
    lessons = Lessons(engine, Support({name: list(given) for name, given in known.items()}))
    failed: dict[str, str] = {}
    # Data sets and views save in batches by themselves; a list of samples cannot.
    steps = partial(samples.iter_samples, autosave=True) if hasattr(samples, "iter_samples") else partial(iter, samples)
    for sample in steps():
        if sample.has_field(field) and sample[field] is not None:
            continue
        try:
            sample[field] = make(lessons.find(read_image(sample.filepath)))
        except NothingShown:
            raise
        except UNREADABLE as error:
            failed[sample.filepath] = str(error)
    return failed


def _drawn(label: Any, size: tuple[int, int], targets: Mapping[int, str]) -> dict[str, Drawn]:
    """What a label shows in an image of size (H, W), by class."""
    found: dict[str, Drawn] = {}
    if isinstance(label, fo.Segmentation):
        values = label.get_mask()
        for value, name in targets.items() if values is not None else ():
            if (values == value).any():
                found.setdefault(name, Drawn()).add(np.asarray(values == value))
        return found
    parts = getattr(label, "detections", None) or getattr(label, "polylines", None) or [label]
    for one in parts:
        if isinstance(one, fo.Polyline) and one.closed and one.label:
            for corners in one.points or ():
                pixels = np.asarray(corners, np.float64) * (size[1], size[0])
                found.setdefault(one.label, Drawn()).add(filled(pixels, size))
        elif isinstance(one, fo.Detection) and one.label:
            _add_detection(found.setdefault(one.label, Drawn()), one, size)
    return found


def _add_detection(drawn: Drawn, one: Any, size: tuple[int, int]) -> None:
    height, width = size
    left, top, wide, high = one.bounding_box
    x0, y0 = max(0, round(left * width)), max(0, round(top * height))
    x1, y1 = min(width, round((left + wide) * width)), min(height, round((top + high) * height))
    part = one.get_mask()
    if part is None:
        drawn.boxes.append((x0, y0, x1 - 1, y1 - 1))
    elif x1 > x0 and y1 > y0:
        mask = np.zeros(size, bool)
        # A mask is kept at any size and covers its box.
        fitted = cv2.resize(np.asarray(part, np.uint8), (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)
        mask[y0:y1, x0:x1] = fitted > 0
        drawn.add(mask)
