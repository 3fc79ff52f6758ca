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
BAND = 128  # rows of the image that are held as numbers of 32 bits at a time


class Guide:
    """What a guided filter needs to know of an image, computed once for any number of masks.

    Within a window, the probability is taken for a linear function of the three colours. Its coefficients are found in
    a smaller image and applied to every pixel.

    Args:
        image: (H, W, 3) uint8.
        radius: of the window as a share of the longer side; about what one cell of the mask's grid covers.
        epsilon: variance of colours in [0, 1] below which a window counts as flat.
        side: longer side in pixels of the smaller image; images that are smaller are not enlarged.

    Source: He, Sun and Tang, 2013 ("Guided image filtering"), section 3.6; He and Sun, 2015 (arXiv 1505.00996).
    """

    def __init__(self, image: np.ndarray, radius: float = RADIUS, epsilon: float = EPSILON, side: int = SIDE) -> None:
        self.image = image
        height, width = image.shape[:2]
        factor = min(1.0, side / max(height, width))
        self._small = (max(1, round(width * factor)), max(1, round(height * factor)))
        self._window = 2 * max(1, round(radius * max(self._small))) + 1
        self._pixels = cv2.resize(image, self._small, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        self._colour = self._mean(self._pixels)
        products = self._mean(
            (self._pixels[..., :, None] * self._pixels[..., None, :]).reshape(*self._colour.shape[:2], 9)
        )
        spread = products.reshape(*self._colour.shape, 3) - self._colour[..., :, None] * self._colour[..., None, :]
        self._inverse = np.linalg.inv(spread + epsilon * np.eye(3, dtype=np.float32))

    def filtered(self, probs: np.ndarray) -> np.ndarray:
        """Probabilities (H, W) float32 in [0, 1] with their edges at the image's; the same shape and range."""
        p = cv2.resize(probs, self._small, interpolation=cv2.INTER_AREA)
        average = self._mean(p)
        cross = self._mean(self._pixels * p[..., None]) - self._colour * average[..., None]
        slope = (self._inverse @ cross[..., None])[..., 0]
        offset = average - (slope * self._colour).sum(-1)
        return self._applied(self._mean(np.dstack([slope, offset])))

    def _mean(self, x: np.ndarray) -> np.ndarray:
        """Mean over the window around each pixel of the smaller image."""
        return cv2.boxFilter(x, -1, (self._window, self._window), borderType=cv2.BORDER_REFLECT)

    def _applied(self, line: np.ndarray) -> np.ndarray:
        """Slopes and offset (h, w, 4) of the smaller image, brought to the image's pixels and applied there."""
        height, width = self.image.shape[:2]
        # Pixels' centres stay where they are, in both directions.
        at = ((np.arange(height) + 0.5) * len(line) / height - 0.5).clip(0, len(line) - 1)
        low = np.floor(at).astype(int)
        share = (at - low).astype(np.float32)[:, None, None]
        found = np.empty((height, width), np.float32)
        # In bands: coefficients of every pixel would take sixteen times the memory of the image's bytes.
        for top in range(0, height, BAND):
            rows = slice(top, top + BAND)
            above, below = line[low[rows]], line[np.minimum(low[rows] + 1, len(line) - 1)]
            band = above + share[rows] * (below - above)
            band = cv2.resize(band, (width, len(band)), interpolation=cv2.INTER_LINEAR)
            found[rows] = np.einsum("ijk,ijk->ij", band[..., :3], self.image[rows] / np.float32(255)) + band[..., 3]
        return found.clip(0.0, 1.0)


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
