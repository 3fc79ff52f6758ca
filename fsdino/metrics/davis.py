"""DAVIS's measure F of outlines, and how the scores of its frames are averaged."""

from __future__ import annotations

import cv2
import numpy as np

from fsdino.base.image import IGNORE

# As a share of the image's diagonal; 8 pixels in frames of 480p.
BOUNDARY_TOLERANCE = 0.008


def boundary_f(pred: np.ndarray, truth: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """DAVIS's F in [0, 1]: harmonic mean of precision and recall of the outline, matched within a small distance.

    Args:
        pred: (H, W) bool.
        truth: (H, W) in {0, 1, 255 = ignore}.
        tolerance: distance as a share of the image's diagonal, rounded up to pixels.

    Source: Perazzi et al., 2016, section 3.2 (boundary matching by dilation, as in the official evaluation).
    """
    valid = truth != IGNORE
    found, wanted = outline((np.asarray(pred) != 0) & valid), outline(truth == 1)
    radius = int(np.ceil(tolerance * np.hypot(*truth.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    # Dilating by a disk is the official stand-in for matching pixels one to one, which takes far longer.
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    near_wanted, near_found = cv2.dilate(wanted, disk), cv2.dilate(found, disk)
    num_found, num_wanted = int(found.sum()), int(wanted.sum())
    # Without any outline precision or recall is 0 / 0; two masks that agree on "nothing" are right.
    if not num_found or not num_wanted:
        return 1.0 if num_found == num_wanted else 0.0
    precision = int((found & near_wanted).sum()) / num_found
    recall = int((wanted & near_found).sum()) / num_wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour, (H, W) bool -> uint8."""
    # The rim is repeated, so that an object that leaves the image has no outline along the rim.
    padded = np.pad(mask.astype(bool), ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    return ((here ^ padded[:-1, 1:]) | (here ^ padded[1:, :-1]) | (here ^ padded[1:, 1:])).astype(np.uint8)


def davis_score(class_ids: np.ndarray, values: np.ndarray) -> float:
    """Mean over objects (N,) of the mean over their frames, of J or of F (N,), in [0, 1]."""
    class_ids, values = np.asarray(class_ids), np.asarray(values)
    # Objects count alike however many frames they are in: the plain mean would favour long sequences.
    return float(np.mean([values[class_ids == class_id].mean() for class_id in np.unique(class_ids)]))
