"""Polygons with corners anywhere, as annotation tools draw them, to masks and back."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as rle_tools

from fsdino.predict.formats import polygons

FINER = 2  # an outline is traced on a grid this many times finer than the pixels


def filled(polygon: Sequence[float] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of a polygon: x, y, x, y, ... or (N, 2), where 0, 0 is the image's corner.

    A polygon of fewer than three corners has no area. Parts outside of the image are left out.
    """
    corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    if len(corners) < 3 or not np.isfinite(corners).all():
        return np.zeros(size, bool)
    height, width = size
    corners = corners.clip((0, 0), (width, height))
    decoded = rle_tools.decode(rle_tools.frPyObjects([corners.reshape(-1).tolist()], height, width))
    mask: np.ndarray = decoded.any(axis=2)
    return mask


def ellipse(centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> np.ndarray:
    """The corners (64, 2) of an ellipse that is turned clockwise around its centre, as x, y."""
    angle = np.arange(64) * (2 * np.pi / 64)
    return turned(np.stack([np.cos(angle) * radii[0], np.sin(angle) * radii[1]], 1) + centre, centre, degrees)


def turned(corners: np.ndarray, centre: tuple[float, float], degrees: float) -> np.ndarray:
    """Points (N, 2) turned clockwise, as the eye sees it, around a centre."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    away: np.ndarray = corners - centre
    return away @ np.array([[cos, sin], [-sin, cos]]) + centre


def outlines(mask: np.ndarray, tolerance: float = 0.5) -> list[np.ndarray]:
    """Outline each part of a mask (H, W) along the edges of its pixels, for tools in which people move the corners.

    Args:
        tolerance: how far in pixels an outline may leave the edges, to have fewer corners.

    Returns:
        Corners (N, 2) as x, y, where 0, 0 is the image's corner; a hole is tied to its outline by a cut.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    # Only the part that holds something is made finer: an object is often a hundredth of its image.
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    # Borders run through the centres of pixels, so on a finer grid they come nearer to the pixels' edges.
    fine = np.asarray(part, bool).repeat(FINER, 0).repeat(FINER, 1)
    found = []
    for border in polygons(fine):
        corners = cv2.approxPolyDP(border.astype(np.float32)[:, None], tolerance * FINER, True)[:, 0]
        found.append(((corners if len(corners) >= 3 else border) + 0.5) / FINER + (left, top))
    return found
