"""Touching objects told apart by their shapes: a mask is cut at its necks."""

from __future__ import annotations

import cv2
import numpy as np

LEVELS = 16  # heights at which a part is looked at for a neck
# Chosen on base classes of photographs: benchmarks/accuracy/instances.py.
NECK, LEAST = 0.6, 0.3


def parts_at_necks(mask: np.ndarray) -> np.ndarray:
    """Parts (H, W) int32 of a mask (H, W) bool as `touching_parts` cuts it by its distances to the background."""
    return touching_parts(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5), NECK, LEAST)


def touching_parts(heights: np.ndarray, neck: float, least: float) -> np.ndarray:
    """Cut the connected parts of a map of heights at their saddles: the flooding of a watershed, at a few levels.

    With the distance to the background for heights, a saddle is half the width of the neck between two bodies.

    Args:
        heights: (H, W) float32, above 0 on the mask and 0 elsewhere.
        neck: a cut is made where the saddle is at most this share of the lower one of the two peaks, in (0, 1).
        least: peaks below this share of their part's highest one are no bodies of their own, in [0, 1].

    Returns:
        (H, W) int32: 0 off the mask, then 1, 2, ... for the parts.

    Source: the dynamics of Grimaud, 1992, relative to the peak; distances as in Vincent and Soille, 1991, section 5.
    """
    labels = np.zeros(heights.shape, np.int32)
    count, parts, stats, _ = cv2.connectedComponentsWithStats((heights > 0).astype(np.uint8), connectivity=8)
    todo, found = [(part, _box(stats[part])) for part in range(1, count)], 0
    while todo:
        part, box = todo.pop()
        inside = parts[box] == part
        bodies = _cut(np.where(inside, heights[box], np.float32(0)), neck, least)
        if bodies is None:
            found += 1
            labels[box][inside] = found
            continue
        # A body can have necks of its own, which its lower peak makes into cuts only now.
        for body in range(1, int(bodies.max()) + 1):
            pixels = inside & (bodies == body)
            parts[box][pixels] = count
            rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
            top, left = box[0].start, box[1].start
            inner = np.s_[top + rows[0] : top + rows[-1] + 1, left + columns[0] : left + columns[-1] + 1]
            todo.append((count, inner))
            count += 1
    return labels


def _box(stats: np.ndarray) -> tuple[slice, slice]:
    x, y, width, height = (int(value) for value in stats[:4])
    return np.s_[y : y + height, x : x + width]


def _cut(heights: np.ndarray, neck: float, least: float) -> np.ndarray | None:
    """The nearest body of each pixel, 1, 2, ..., at the lowest level that separates two bodies; None: no level does."""
    top = float(heights.max())
    for level in np.linspace(0, top, LEVELS + 1)[1:-1]:
        count, islands = cv2.connectedComponents((heights > level).astype(np.uint8), connectivity=8)
        bodies = np.unique(islands[heights >= max(level / neck, least * top)])
        bodies = bodies[bodies > 0]
        if len(bodies) > 1:
            numbers = np.zeros(count, np.int32)
            numbers[bodies] = np.arange(1, len(bodies) + 1)
            seeds = numbers[islands]
            # OpenCV names the nearest pixel of value 0 by a number of its own, given in the order of the rows.
            _, nearest = cv2.distanceTransformWithLabels(
                (seeds == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
            )
            owner = np.zeros(int(nearest.max()) + 1, np.int32)
            owner[nearest[seeds > 0]] = seeds[seeds > 0]
            return owner[nearest]
    return None
