"""Edges of a coarse mask moved to where the image has them, by its colours alone. Nothing here is learnt; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import cv2
import numpy as np

from fsdino.base.result import Segmentation

# Chosen on base classes of photographs, for masks of 28 x 28 cells: benchmarks/accuracy/edges.py.
RADIUS = 1 / 28
EPSILON = 1e-3
SIDE = 320
# Methods whose masks of photographs were measured to gain: what `predict` sharpens where it is not told.
SHARPENED = frozenset({"chain"})


class Guide:
    """What a guided filter needs to know of an image, computed once for any number of masks.

    Within a window, the probability is taken for a linear function of the three colours, in a smaller image: time and
    memory there do not grow with the image.

    Args:
        image: (H, W, 3) uint8.
        radius: of the window as a share of the longer side; about what one cell of the mask's grid covers.
        epsilon: variance of colours in [0, 1] below which a window counts as flat.
        side: longer side in pixels of the smaller image; images that are smaller are not enlarged.

    Source: He, Sun and Tang, 2013 ("Guided image filtering"), section 3.6.
    """

    def __init__(self, image: np.ndarray, radius: float = RADIUS, epsilon: float = EPSILON, side: int = SIDE) -> None:
        height, width = image.shape[:2]
        factor = min(1.0, side / max(height, width))
        self._small = (max(1, round(width * factor)), max(1, round(height * factor)))
        self._window = 2 * max(1, round(radius * max(self._small))) + 1
        self._pixels = cv2.resize(image, self._small, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        self._colour = self._mean(self._pixels)
        pairs = (self._pixels[..., :, None] * self._pixels[..., None, :]).reshape(*self._colour.shape[:2], 9)
        spread = self._mean(pairs).reshape(*self._colour.shape, 3)
        spread -= self._colour[..., :, None] * self._colour[..., None, :]
        self._inverse = _inverse(spread + epsilon * np.eye(3, dtype=np.float32))

    def filtered(self, probs: np.ndarray) -> np.ndarray:
        """Probabilities (H, W) float32 in [0, 1] with their edges at the image's; the same shape and range."""
        p = cv2.resize(probs, self._small, interpolation=cv2.INTER_AREA)
        average = self._mean(p)
        cross = self._mean(self._pixels * p[..., None]) - self._colour * average[..., None]
        slope = np.einsum("hwij,hwj->hwi", self._inverse, cross)
        line = self._mean(np.dstack([slope, average - (slope * self._colour).sum(-1)]))
        fine = ((line[..., :3] * self._pixels).sum(-1) + line[..., 3]).clip(1e-5, 1 - 1e-5)
        # Logits are enlarged, as methods enlarge theirs: they are nearly linear across an edge, which stays in place.
        logits = cv2.resize(np.log(fine / (1 - fine)), probs.shape[::-1], interpolation=cv2.INTER_LINEAR)
        # In place: of a large image, every further copy counts.
        np.exp(np.negative(logits, out=logits), out=logits)
        logits += 1
        return np.reciprocal(logits, out=logits)

    def _mean(self, x: np.ndarray) -> np.ndarray:
        """Mean over the window around each pixel of the smaller image."""
        return cv2.boxFilter(x, -1, (self._window, self._window), borderType=cv2.BORDER_REFLECT)


def _inverse(matrices: np.ndarray) -> np.ndarray:
    """Inverses of symmetric matrices (..., 3, 3), by their cofactors: five times as fast as LAPACK's, one by one."""
    a, b, c = (matrices[..., i, :] for i in range(3))
    cofactors = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=-1)
    determinant: np.ndarray = (a * cofactors[..., 0]).sum(-1)
    return cofactors / determinant[..., None, None]


def all_sharpened(found: Iterable[Segmentation], image: np.ndarray, threshold: float = 0.5) -> Iterator[Segmentation]:
    """Results of one image (H, W, 3) uint8, one after the other, each as `sharpened` gives it."""
    guide = Guide(image)
    for one in found:
        if one.present:
            probs = guide.filtered(one.probs)
            one = replace(one, mask=probs > np.float32(threshold), probs=probs)
        yield one


def sharpened(found: Segmentation, image: np.ndarray, threshold: float = 0.5) -> Segmentation:
    """A result whose mask follows the edges of its image, where a coarse grid left it blurred.

    Args:
        found: what a method found in the image; scores stay as they are, and so does what is absent.
        image: (H, W, 3) uint8, the image that it was found in.
        threshold: probability above which a pixel belongs to the object; the method's `threshold`.

    Raises:
        ValueError: the image is of another kind or size.
    """
    if image.dtype != np.uint8 or image.shape != (*found.mask.shape, 3):
        wanted = (*found.mask.shape, 3)
        raise ValueError(f"expected an image {wanted} uint8, got {image.shape} {image.dtype}; give the mask's image.")
    return next(all_sharpened([found], image, threshold))
