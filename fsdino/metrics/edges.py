"""Intersection and union along the outlines alone: what a coarse mask loses is a small share of its area."""

from __future__ import annotations

import cv2
import numpy as np

from fsdino.base.image import IGNORE

# As a share of the image's diagonal; 16 pixels in a photograph of 640 x 480.
BAND_WIDTH = 0.02


def inner_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask (H, W) bool that lie within `width` pixels of its outline, the image's rim included."""
    # Growing the background by a square of this side is what `width` rounds of 3 x 3 erosion do, in one pass.
    side = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    core = cv2.erode(mask.astype(np.uint8), side, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (core == 0)


def band_counts(pred: np.ndarray, truth: np.ndarray, width: float = BAND_WIDTH) -> tuple[int, int]:
    """Intersection and union in pixels of the inner bands of two masks, whose ratio is the boundary IoU.

    Args:
        pred: (H, W) bool, or numbers whose nonzero means object.
        truth: (H, W) in {0, 1, 255}; pixels of 255 count nowhere.
        width: of the band as a share of the image's diagonal, rounded to pixels, at least 1.

    Raises:
        ValueError: the shapes differ.

    Source: Cheng et al., 2021 (arXiv 2103.16562), section 4; the width of 2 % is theirs for COCO.
    """
    pred, truth = np.asarray(pred) != 0, np.asarray(truth)
    if pred.shape != truth.shape or pred.ndim != 2:
        raise ValueError(f"prediction {pred.shape} and truth {truth.shape} must be one (H, W): resize the prediction.")
    pixels = max(1, round(width * float(np.hypot(*truth.shape))))
    # The bands are taken of the whole masks: cutting ignored pixels off first would make outlines of its own.
    valid = truth != IGNORE
    found, wanted = inner_band(pred, pixels) & valid, inner_band(truth == 1, pixels) & valid
    return int((found & wanted).sum()), int((found | wanted).sum())
