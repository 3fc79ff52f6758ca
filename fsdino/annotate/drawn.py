"""What people have drawn of one label in one picture, and the reference that it comes down to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from fsdino.base.reference import Reference

Box = tuple[float, float, float, float]
NEGATIVE = "not "  # "not cat" is what is meant by no cat
Draw = Callable[[Reference], np.ndarray]


@dataclass
class Drawn:
    """Everything of one label in one picture.

    Args:
        mask: (H, W) bool, all that has an area; None where nothing has.
        boxes: x0, y0, x1, y1 around further objects, in pixels with their centres at whole numbers.
        points: x, y in the same, and whether the point is on the object.
    """

    mask: np.ndarray | None = None
    boxes: list[Box] = field(default_factory=list)
    points: list[tuple[float, float, bool]] = field(default_factory=list)

    def add(self, mask: np.ndarray) -> None:
        """Add an area (H, W) bool."""
        self.mask = mask if self.mask is None else self.mask | mask


def meant(label: str) -> tuple[str, bool]:
    """The class that a label is of, and whether it shows what is not meant: "not cat" is ("cat", True)."""
    negative = label.startswith(NEGATIVE) and len(label) > len(NEGATIVE)
    return (label.removeprefix(NEGATIVE) if negative else label), negative


def reference(
    drawn: Drawn, image: np.ndarray, name: str, draw: Draw | None, negative: bool = False
) -> Reference | None:
    """The reference of one picture (H, W, 3) uint8; None where nothing of use is drawn.

    Args:
        draw: gives the mask (H, W) bool of a box or points; None for a model that learns from masks alone.
    """
    size = image.shape[:2]
    mask = None if drawn.mask is None else _of_size(drawn.mask, size)
    # One by one and then together: a reference has one box, and a picture with three objects of which only one is
    # marked would teach that the others are background.
    masks = [] if draw is None else [draw(hint) for hint in _hints(drawn, image, name)]
    for found in masks:
        mask = found if mask is None else mask | found
    if mask is None or not mask.any():
        return None
    return Reference(image, mask=mask.astype(np.uint8), negative=negative, name=name)


def _hints(drawn: Drawn, image: np.ndarray, name: str) -> list[Reference]:
    left, hints = list(drawn.points), []
    for box in drawn.boxes:
        inside = [point for point in left if box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]]
        left = [point for point in left if point not in inside]
        hints.append(_hint(image, inside, name, box))
    if any(on for _, _, on in left):
        hints.append(_hint(image, left, name))
    return hints


def _hint(image: np.ndarray, points: list[tuple[float, float, bool]], name: str, box: Box | None = None) -> Reference:
    height, width = image.shape[:2]
    # A click on the very edge is half a pixel outside of what counts as the image, by the rounding of percentages.
    limits = (width - 1, height - 1)
    places = [[min(max(p[k], 0), limits[k]) for k in (0, 1)] for p in points] or None
    labels = [int(on) for _, _, on in points] or None
    inner = None if box is None else [min(max(value, 0), limits[k % 2]) for k, value in enumerate(box)]
    return Reference(image, points=places, labels=labels, box=inner, name=name)


def _of_size(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A mask at the size of its picture: what a tool has drawn on may have been a smaller copy."""
    if mask.shape == tuple(size):
        return mask
    image = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(image) > 0
