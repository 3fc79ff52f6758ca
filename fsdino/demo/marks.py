"""What was drawn on an image in the browser, as a reference: outlines and brush make a mask, the rest are hints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from fsdino.base.reference import Reference

PAINT_TOOLS = ("outline", "brush", "erase")
HINT_TOOLS = ("scribble", "box", "click")
MAX_MARKS, MAX_POINTS = 2000, 20_000  # of one image; far above what a hand draws


def reference_from(image: np.ndarray, marks: Any, negative: bool = False, name: str = "example") -> Reference:
    """Turn marks into a reference.

    Args:
        image: (H, W, 3) uint8.
        marks: list of {"tool", "points"} with points [x, y] in pixels of the image; "brush" and "erase" also have
            "width" in pixels, "click" has "on".
        negative: the image shows what is not meant.
        name: what messages call it.

    Returns:
        A reference with a mask where one was painted, or else with points, a box or a stroke.
    """
    size = (image.shape[0], image.shape[1])
    drawn = [_checked(mark, size) for mark in _listed(marks)]
    mask = painted(drawn, size)
    # What was painted says all, so hints beside it are not asked.
    if mask.any():
        return Reference(image, mask=mask, negative=negative, name=name)
    hints = [mark for mark in drawn if mark["tool"] in HINT_TOOLS]
    if not hints:
        raise ValueError(f"{name}: nothing is drawn on the image yet; outline, paint or click the object first.")
    clicks = [mark for mark in hints if mark["tool"] == "click"]
    strokes = [mark for mark in hints if mark["tool"] == "scribble"]
    boxes = [mark for mark in hints if mark["tool"] == "box"]
    return Reference(
        image,
        points=np.asarray([mark["points"][0] for mark in clicks]) if clicks else None,
        labels=[int(mark["on"]) for mark in clicks] if clicks else None,
        box=_corners(boxes[-1]["points"]) if boxes else None,
        scribble=_stroke(strokes, size) if strokes else None,
        negative=negative,
        name=name,
    )


def painted(drawn: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) uint8 in {0, 1} of outlines, filled, and strokes of brush and eraser, in the order drawn."""
    mask = np.zeros(size, np.uint8)
    for mark in drawn:
        corners = np.rint(mark["points"]).astype(np.int32)
        if mark["tool"] == "outline":
            _fill(mask, corners)
        elif mark["tool"] in PAINT_TOOLS:
            _line(mask, corners, mark["width"], 1 if mark["tool"] == "brush" else 0)
    return mask


def _fill(mask: np.ndarray, corners: np.ndarray) -> None:
    """A closed line and all that it goes round, in place."""
    # OpenCV fills by even and odd, so what a hand goes round twice would be left out. Counted here is how often the
    # line goes round a pixel: each crossing of a row adds or takes one from there on to the right.
    turns = np.zeros((mask.shape[0], mask.shape[1] + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0)):
        if y0 != y1:
            rows = np.arange(min(y0, y1), max(y0, y1))
            crossed = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
            turns[rows, np.ceil(crossed).astype(int)] += 1 if y1 > y0 else -1
    mask[turns.cumsum(1)[:, :-1] != 0] = 1
    cv2.polylines(mask, [corners], True, 1)


def _line(mask: np.ndarray, corners: np.ndarray, width: float, value: int) -> None:
    """A line with round ends, in place; a single corner is a dot."""
    cv2.polylines(mask, [corners], False, value, max(1, round(width)))
    # OpenCV draws nothing for a line of one point, which is what a tap with the brush is.
    for corner in corners:
        cv2.circle(mask, tuple(int(n) for n in corner), max(0, round((width - 1) / 2)), value, -1)


def _stroke(strokes: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """All scribbles as one image (H, W) of lines."""
    image = np.zeros(size, np.uint8)
    for mark in strokes:
        cv2.polylines(image, [np.rint(mark["points"]).astype(np.int32)], False, 1, 1)
    return image


def _corners(points: np.ndarray) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def _listed(marks: Any) -> list[Any]:
    if not isinstance(marks, list) or len(marks) > MAX_MARKS:
        raise ValueError(f"expected a list of at most {MAX_MARKS} marks; clear the image and draw again.")
    return marks


def _checked(mark: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A mark with its points as an array (N, 2) inside the image, whatever a browser sent."""
    tool = mark.get("tool") if isinstance(mark, dict) else None
    if tool not in PAINT_TOOLS + HINT_TOOLS:
        raise ValueError(f"a mark of tool {tool!r} is unknown; use {', '.join(PAINT_TOOLS + HINT_TOOLS)}.")
    try:
        points = np.asarray(mark["points"], np.float64).reshape(-1, 2)[:MAX_POINTS]
        width = float(mark.get("width", 1.0))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a mark of tool {tool!r} has no list of points [x, y]; draw it again.") from error
    if not len(points) or not np.isfinite(points).all() or not math.isfinite(width):
        raise ValueError(f"a mark of tool {tool!r} has no usable point; draw it again.")
    # A stroke may leave the canvas, and a pointer held down still sends its places there.
    inside = points.clip(0, (size[1] - 1, size[0] - 1))
    return {"tool": tool, "points": inside, "width": min(max(width, 1.0), max(size)), "on": bool(mark.get("on", True))}
