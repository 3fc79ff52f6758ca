"""Forty-eight shape variants of twenty-four families, each drawn once as a soft template.

A template is a float32 image in [0, 1] of `TEMPLATE_SIZE` pixels a side; the shape fills the disc of radius 1 around
its centre. Scenes warp templates, so drawing happens once per process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import cv2
import numpy as np

TEMPLATE_SIZE = 96
# Drawn four times too large in black and white; averaging it down gives the soft edge without anti-aliased drawing,
# which would leave seams where primitives touch.
_SUPERSAMPLE = 4
_RADIUS = 0.40 * TEMPLATE_SIZE * _SUPERSAMPLE  # leaves a margin for the non-rigid warp

Array = np.ndarray
Points = Array | Sequence[Sequence[float]]  # (n, 2) in unit coordinates


class _Pen:
    """Draws unions and differences of primitives in unit coordinates (the unit disc, y down)."""

    def __init__(self) -> None:
        side = TEMPLATE_SIZE * _SUPERSAMPLE
        self.canvas = np.zeros((side, side), np.uint8)

    def _pixels(self, points: Points) -> Array:
        # OpenCV takes fixed-point coordinates: four fractional bits (x 16), which shift=4 tells it where they are used.
        return np.round((np.asarray(points, np.float64) * _RADIUS + self.canvas.shape[0] / 2) * 16).astype(np.int32)

    def polygon(self, points: Points, value: int = 255) -> _Pen:
        cv2.fillPoly(self.canvas, [self._pixels(points)], value, lineType=cv2.LINE_8, shift=4)
        return self

    def ellipse(self, x: float, y: float, rx: float, ry: float, value: int = 255) -> _Pen:
        angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        return self.polygon(np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1), value)

    def box(self, x0: float, y0: float, x1: float, y1: float, value: int = 255) -> _Pen:
        return self.polygon(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), value)

    def stroke(self, points: Points, width: float) -> _Pen:
        thickness, pixels = max(1, round(width * _RADIUS)), self._pixels(points)
        cv2.polylines(self.canvas, [pixels], False, color=255, thickness=thickness, lineType=cv2.LINE_8, shift=4)
        return self


def _polar(radius: Callable[[Array], Array]) -> Array:
    # Angles run clockwise from the top, as y points down.
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    r = radius(angle)
    return np.stack([r * np.sin(angle), -r * np.cos(angle)], 1)


def _regular(sides: int) -> _Pen:
    angle = np.arange(sides) * 2 * np.pi / sides
    return _Pen().polygon(np.stack([np.sin(angle), -np.cos(angle)], 1))


def _star(spikes: int, inner: float) -> _Pen:
    angle = np.arange(2 * spikes) * np.pi / spikes
    r = np.where(np.arange(2 * spikes) % 2 == 0, 1.0, inner)
    return _Pen().polygon(np.stack([r * np.sin(angle), -r * np.cos(angle)], 1))


def _superellipse(power: float, aspect: float) -> _Pen:
    # |x / aspect|^power + |y|^power = 1 in polar form: an ellipse for power 2, nearly a square for 6.
    def radius(a: Array) -> Array:
        return (np.abs(np.sin(a) / aspect) ** power + np.abs(np.cos(a)) ** power) ** (-1 / power)

    return _Pen().polygon(_polar(radius) * 0.85)


def _plus(width: float, lower: float) -> _Pen:
    return _Pen().box(-width, -1, width, 1).box(-0.8, lower - width, 0.8, lower + width)


def _crescent(shift: float, bite: float) -> _Pen:
    return _Pen().ellipse(0, 0, 0.95, 0.95).ellipse(shift, 0, bite, bite, 0)


def _heart(aspect: float) -> _Pen:
    a = np.linspace(0, 2 * np.pi, 200)
    x = 16 * np.sin(a) ** 3
    y = -(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a))
    return _Pen().polygon(np.stack([x / 17 * aspect, y / 17], 1))


def _gear(teeth: int, depth: float) -> _Pen:
    return _Pen().polygon(_polar(lambda a: 0.95 - depth * (np.sin(teeth * a) > 0))).ellipse(0, 0, 0.22, 0.22, 0)


def _letter(strokes: Sequence[Points], width: float) -> _Pen:
    pen = _Pen()
    for points in strokes:
        pen.stroke(np.asarray(points), width)
    return pen


def _flower(petals: int, depth: float) -> _Pen:
    return _Pen().polygon(_polar(lambda a: 0.95 - depth * (0.5 - 0.5 * np.cos(petals * a))))


def _zigzag(bends: int) -> _Pen:
    y = np.linspace(-0.85, 0.85, bends + 2)
    x = np.where(np.arange(bends + 2) % 2 == 0, -0.5, 0.5)
    return _Pen().stroke(np.stack([x, y], 1), 0.34)


def _house() -> _Pen:
    return _Pen().box(-0.62, -0.1, 0.62, 0.85).polygon([[-0.85, -0.1], [0, -0.9], [0.85, -0.1]])


def _dumbbell(lobes: int) -> _Pen:
    pen = _Pen().box(-0.7, -0.14, 0.7, 0.14)
    for x in np.linspace(-0.68, 0.68, lobes):
        pen.ellipse(x, 0, 0.3, 0.42)
    return pen


def _hook(turns: float, width: float) -> _Pen:
    a = np.linspace(0, turns * 2 * np.pi, 120)
    r = 0.25 + 0.58 * a / a[-1]
    return _Pen().stroke(np.stack([r * np.cos(a), r * np.sin(a)], 1), width)


def _pie(start: float, end: float) -> _Pen:
    a = np.linspace(start, end, 100) * 2 * np.pi
    return _Pen().polygon(np.concatenate([[[0.0, 0.0]], np.stack([0.95 * np.cos(a), 0.95 * np.sin(a)], 1)]))


_ARROW_HEAD = np.array([[-0.75, -0.2], [0, -1], [0.75, -0.2]])
_FIN = np.array([[0.3, 0], [1, -0.65], [0.8, -0.1]])
_VASE = np.array([[0.4, -0.95], [0.2, -0.5], [0.65, 0.2], [0.35, 0.95]])  # its right side
# Strokes of the letter-like families, each a polyline.
_L = [[[-0.4, -0.8], [-0.4, 0.7], [0.6, 0.7]]]
_T = [[[-0.75, -0.7], [0.75, -0.7]], [[0, -0.7], [0, 0.85]]]
_U = [[[-0.6, -0.7], [-0.6, 0.2], [0.0, 0.75], [0.6, 0.2], [0.6, -0.7]]]
_S = [[[0.6, -0.6], [-0.1, -0.8], [-0.5, -0.35], [0.4, 0.3], [0.1, 0.8], [-0.6, 0.6]]]
_H = [[[-0.55, -0.8], [-0.55, 0.8]], [[0.55, -0.8], [0.55, 0.8]], [[-0.55, 0], [0.55, 0]]]
_E = [[[-0.5, -0.8], [-0.5, 0.8]], [[-0.5, -0.75], [0.6, -0.75]], [[-0.5, 0], [0.5, 0]], [[-0.5, 0.75], [0.6, 0.75]]]

# One row a family, two variants each: variant 2 f and 2 f + 1 belong to family f. The order is part of the world: a
# variant is known by its number, so a new family may only come with a new world seed and new weights.
FAMILIES: tuple[tuple[str, Callable[[], _Pen], Callable[[], _Pen]], ...] = (
    ("polygon", lambda: _regular(3), lambda: _regular(5)),
    ("star", lambda: _star(4, 0.4), lambda: _star(6, 0.55)),
    ("oval", lambda: _superellipse(2, 0.55), lambda: _superellipse(6, 1.0)),
    ("cross", lambda: _plus(0.18, 0.0), lambda: _plus(0.26, -0.35)),
    ("crescent", lambda: _crescent(0.5, 0.75), lambda: _crescent(0.75, 0.6)),
    (
        "ring",
        lambda: _Pen().ellipse(0, 0, 0.95, 0.95).ellipse(0, 0, 0.62, 0.62, 0),
        lambda: _Pen().ellipse(0, 0, 0.95, 0.95).box(-0.42, -0.42, 0.42, 0.42, 0),
    ),
    ("heart", lambda: _heart(1.05), lambda: _heart(0.6)),
    (
        "arrow",
        lambda: _Pen().box(-0.2, -0.6, 0.2, 1.0).polygon(_ARROW_HEAD),
        lambda: _Pen().box(-0.2, -0.6, 0.2, 0.6).polygon(_ARROW_HEAD).polygon(-_ARROW_HEAD),
    ),
    ("gear", lambda: _gear(6, 0.3), lambda: _gear(11, 0.2)),
    ("ell", lambda: _letter(_L, 0.38), lambda: _letter(_T, 0.36)),
    ("horseshoe", lambda: _letter(_U, 0.34), lambda: _letter(_S, 0.32)),
    ("flower", lambda: _flower(4, 0.6), lambda: _flower(7, 0.4)),
    (
        "drop",
        lambda: _Pen().ellipse(0, 0.38, 0.6, 0.6).polygon([[-0.56, 0.2], [0, -1], [0.56, 0.2]]),
        lambda: _Pen().ellipse(0, 0.4, 0.62, 0.58).ellipse(0, -0.4, 0.36, 0.52),
    ),
    ("zigzag", lambda: _zigzag(1), lambda: _zigzag(3)),
    ("ladder", lambda: _letter(_H, 0.3), lambda: _letter(_E, 0.26)),
    (
        "fish",
        lambda: _Pen().ellipse(-0.2, 0, 0.75, 0.45).polygon([[0.3, 0], [0.95, -0.5], [0.95, 0.5]]),
        lambda: _Pen().ellipse(-0.2, 0, 0.75, 0.45).polygon(_FIN).polygon(_FIN * (1, -1)),
    ),
    (
        "mushroom",
        lambda: _Pen().ellipse(0, 0, 0.9, 0.85).box(-1, 0.05, 1, 1, 0).box(-0.28, 0, 0.28, 0.85),
        lambda: _Pen().ellipse(0, -0.45, 0.5, 0.5).box(-0.11, 0, 0.11, 1),
    ),
    (
        "house",
        lambda: _house(),
        lambda: _house().box(0.35, -1.0, 0.65, 0).box(-0.2, 0.3, 0.2, 0.86, 0),
    ),
    ("dumbbell", lambda: _dumbbell(2), lambda: _dumbbell(3)),
    ("hook", lambda: _hook(0.8, 0.34), lambda: _hook(1.7, 0.2)),
    (
        "quad",
        lambda: _Pen().polygon([[0, -1], [0.55, -0.3], [0, 1], [-0.55, -0.3]]),
        lambda: _Pen().polygon([[-0.95, 0.5], [-0.35, -0.5], [0.95, -0.5], [0.35, 0.5]]),
    ),
    ("pie", lambda: _pie(0.0, 0.5), lambda: _pie(0.12, 0.88)),
    (
        "bow",
        lambda: _Pen().polygon([[-0.95, -0.6], [0.95, 0.6], [0.95, -0.6], [-0.95, 0.6]]),
        lambda: _Pen().ellipse(0, -0.5, 0.6, 0.42).ellipse(0, 0.5, 0.6, 0.42).box(-0.14, -0.4, 0.14, 0.4),
    ),
    (
        "bottle",
        lambda: _Pen().box(-0.17, -1, 0.17, -0.2).box(-0.42, -0.1, 0.42, 0.95).ellipse(0, -0.1, 0.42, 0.3),
        lambda: _Pen().polygon(np.concatenate([_VASE, _VASE[::-1] * (-1, 1)])),
    ),
)
NUM_SHAPES = 2 * len(FAMILIES)


def shape_name(shape: int) -> str:
    """Name of a variant, such as `star-b`."""
    return f"{FAMILIES[shape // 2][0]}-{'ab'[shape % 2]}"


@cache
def shape_template(shape: int) -> Array:
    """Soft template of a variant, float32 (TEMPLATE_SIZE, TEMPLATE_SIZE): the coverage of each pixel in [0, 1]."""
    _, *variants = FAMILIES[shape // 2]
    canvas = variants[shape % 2]().canvas
    small = cv2.resize(canvas, (TEMPLATE_SIZE, TEMPLATE_SIZE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255
