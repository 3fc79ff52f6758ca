"""What a project of Label Studio draws on and with, and its regions as masks and hints, and back.

Positions of regions are percentages of the image's width and height, from its corner; a rotation is in degrees
clockwise, of a rectangle around its top left corner and of an ellipse around its centre.
"""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdino.annotate.drawn import Drawn, meant
from fsdino.annotate.label_studio.brush import decode_brush, encode_brush
from fsdino.annotate.outlines import ellipse, filled, outlines, turned
from fsdino.base.result import Instance, LabelMap

# Kinds of regions with labels of their own, those that answers are given in first, the best one in front.
BRUSH, POLYGON, RECTANGLE = "brushlabels", "polygonlabels", "rectanglelabels"
KINDS = (BRUSH, POLYGON, RECTANGLE, "ellipselabels", "keypointlabels")
ANSWERS = KINDS[:3]
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Canvas:
    """The image of a project and what is drawn on it.

    Args:
        image: name of the image's tag.
        field: where a task's data has the image's address.
        tags: kind of region and label to the name of the tag that draws it.
    """

    image: str
    field: str
    tags: Mapping[tuple[str, str], str]

    @property
    def labels(self) -> list[str]:
        """Labels that an answer can be given in, without those for what is not meant."""
        return sorted({label for kind, label in self.tags if kind in ANSWERS and not meant(label)[1]})


def read_canvas(label_config: str) -> Canvas:
    """Read a project's labelling configuration.

    Raises:
        ValueError: if it is not XML, has no image, or nothing that masks can be drawn with.
    """
    # Entities can make a document of a kilobyte fill the memory, and a configuration has no use for them.
    if "<!DOCTYPE" in label_config or "<!ENTITY" in label_config:
        raise ValueError("the labelling configuration declares entities; write it without a DOCTYPE.")
    try:
        root = ET.fromstring(label_config)
    except ET.ParseError as error:
        raise ValueError(f"the labelling configuration is not XML ({error}); repair it in the settings.") from error
    images = {tag.get("name", ""): tag.get("value", "") for tag in root.iter() if tag.tag.lower() == "image"}
    found: dict[str, dict[tuple[str, str], str]] = {}
    for tag in root.iter():
        kind, image = tag.tag.lower(), tag.get("toName", "")
        if kind in KINDS and image in images:
            # A label's alias is what stands in annotations.
            labels = [one.get("alias") or one.get("value") or "" for one in tag if one.tag.lower() == "label"]
            for label in labels:
                found.setdefault(image, {}).setdefault((kind, label), tag.get("name", ""))
    for image, tags in found.items():
        if any(kind in ANSWERS for kind, _ in tags):
            return Canvas(image, images[image].removeprefix("$"), tags)
    raise ValueError(
        "the labelling configuration has no image with BrushLabels, PolygonLabels or RectangleLabels; add one in the "
        "project's settings."
    )


def labels_of(canvas: Canvas, results: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The labels that regions of an annotation have."""
    return frozenset(label for region in results for label in _labels(canvas, region))


def drawn(canvas: Canvas, results: Sequence[Mapping[str, Any]]) -> dict[str, Drawn]:
    """Everything that an annotation's regions show, by label.

    Raises:
        ValueError: if a region is cut, damaged, or of a picture that was turned in the editor.
    """
    found: dict[str, Drawn] = {}
    for region in results:
        for label in _labels(canvas, region):
            try:
                _add(found.setdefault(label, Drawn()), region)
            except (KeyError, TypeError, IndexError, OverflowError) as error:
                text = f"a region of {label!r} is not of Label Studio's form ({error}); draw it again."
                raise ValueError(text) from error
    return found


def clicked(region: Mapping[str, Any]) -> Drawn:
    """What one region of an editor's question points at; it need not have a label."""
    hint = Drawn()
    try:
        _add(hint, {"image_rotation": 0, **region})
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"a click is not of Label Studio's form ({error}); click again.") from error
    return hint


def named(region: Mapping[str, Any]) -> list[str]:
    """The labels that stand in a region."""
    value = region.get("value")
    labels = value.get(str(region.get("type"))) if isinstance(value, dict) else None
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []


def size_of(region: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of the image that a region is drawn on."""
    height, width = int(region["original_height"]), int(region["original_width"])
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"a region says that its image has {width}x{height} pixels; draw it again.")
    return height, width


def _labels(canvas: Canvas, region: Mapping[str, Any]) -> list[str]:
    # Of an image with several pages the first counts: it is the one that a task's address gives.
    if region.get("type") not in KINDS or region.get("to_name") != canvas.image or region.get("item_index"):
        return []
    return named(region)


def _add(one: Drawn, region: Mapping[str, Any]) -> None:
    if region.get("image_rotation"):
        raise ValueError("its picture was turned in the editor; turn the file itself, and draw it again.")
    size, value, kind = size_of(region), region["value"], str(region["type"])
    scale = np.array([size[1], size[0]], np.float64) / 100
    if kind == BRUSH:
        one.add(decode_brush(value["rle"], size))
    elif kind == POLYGON:
        one.add(filled(np.asarray(value["points"], np.float64).reshape(-1, 2) * scale, size))
    elif kind == "ellipselabels":
        centre = np.array([value["x"], value["y"]]) * scale
        radii = np.array([value["radiusX"], value["radiusY"]]) * scale
        one.add(filled(ellipse((centre[0], centre[1]), (radii[0], radii[1]), value.get("rotation") or 0), size))
    elif kind == RECTANGLE:
        one.boxes.append(_box(value, scale))
    else:
        x, y = np.array([value["x"], value["y"]], np.float64) * scale - 0.5
        one.points.append((float(x), float(y), bool(region.get("is_positive", True))))


def _box(value: Mapping[str, Any], scale: np.ndarray) -> tuple[float, float, float, float]:
    """The upright box around a rectangle, in pixels with their centres at whole numbers."""
    start, sides = np.array([value["x"], value["y"]]) * scale, np.array([value["width"], value["height"]]) * scale
    corners = start + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * sides
    corners = turned(corners, (start[0], start[1]), value.get("rotation") or 0) - 0.5
    (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def answer(canvas: Canvas, found: LabelMap, split_instances: bool = False) -> dict[str, Any]:
    """What was found in an image as a prediction without its version: `result` and `score`.

    Args:
        split_instances: one brush region per connected part; polygons and rectangles are always one per part.

    Returns:
        `score` is the lowest of the regions, so that what is least sure can be looked at first; 0 without regions.
    """
    result: list[dict[str, Any]] = []
    for name, one in found.classes.items():
        kind = next((kind for kind in ANSWERS if (kind, name) in canvas.tags), None)
        if kind is None or not one.mask.any():
            continue
        whole = kind == BRUSH and not split_instances
        parts = [Instance(one.mask, (0, 0, 0, 0), one.score)] if whole else one.instances()
        result += [region for part in parts for region in _regions(canvas, kind, name, part)]
    return {"result": result, "score": min((region["score"] for region in result), default=0.0)}


def _regions(canvas: Canvas, kind: str, label: str, part: Instance) -> list[dict[str, Any]]:
    height, width = part.mask.shape
    share = 100 / np.array([width, height], np.float64)
    if kind == BRUSH:
        values: list[dict[str, Any]] = [{"format": "rle", "rle": encode_brush(part.mask)}]
    elif kind == POLYGON:
        values = [{"points": (corners * share).tolist(), "closed": True} for corners in outlines(part.mask)]
    else:
        (x, y), (x1, y1) = np.array(part.box[:2]) * share, np.array(part.box[2:]) * share
        values = [{"x": float(x), "y": float(y), "width": float(x1 - x), "height": float(y1 - y), "rotation": 0}]
    return [
        {
            "id": uuid.uuid4().hex[:10],
            "from_name": canvas.tags[kind, label],
            "to_name": canvas.image,
            "type": kind,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(part.score, 4),
            "value": {**value, kind: [label]},
        }
        for value in values
    ]
