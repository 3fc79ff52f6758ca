"""`Resize` on NumPy arrays, for machines without torch: the same numbers to about 1e-6."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class ArrayResize:
    """The way to the network's square of `size` pixels a side and back; see `fsdino.base.resize.Resize`."""

    size: int
    mode: str = "squash"

    def image(self, array: np.ndarray) -> np.ndarray:
        """Resize an image (H, W, 3), uint8 or float32 in [0, 1], to (3, size, size) float32 in [0, 1]."""
        scaled = array if array.dtype == np.float32 else array.astype(np.float32) / 255
        planes = [_resize(scaled[..., i], self._content(array.shape)) for i in range(3)]
        return np.stack([self._pad(plane) for plane in planes])

    def soft_mask(self, mask: np.ndarray) -> np.ndarray:
        """Resize a mask (H, W), 0 or 1, to (size, size) float32 in [0, 1], the share that the object covers."""
        return self._pad(_resize(mask.astype(np.float32), self._content(mask.shape)).clip(0.0, 1.0))

    def invert(self, logits: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """Bring a prediction (s, s) back to (H, W), without the padding."""
        if self.mode == "squash":
            return _resize(logits.astype(np.float32), original_size)
        content = self._content(original_size)
        # The padding may end inside a cell of the grid, so each pixel's centre is looked up, as torch's `Resize` does.
        rows, columns = (
            _sampling(n, logits.shape[-1], covered / self.size) for n, covered in zip(original_size, content)
        )
        return rows @ logits.astype(np.float32) @ columns.T

    def _content(self, shape: tuple[int, ...]) -> tuple[int, int]:
        if self.mode == "squash":
            return self.size, self.size
        longest = max(shape[:2])
        return max(1, round(shape[0] * self.size / longest)), max(1, round(shape[1] * self.size / longest))

    def _pad(self, plane: np.ndarray) -> np.ndarray:
        height, width = plane.shape
        return np.pad(plane, ((0, self.size - height), (0, self.size - width)))


def _resize(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's triangle filter in floating point: bilinear where it grows, smoothed where it shrinks, as torch's."""
    if plane.shape == tuple(size):
        return plane
    # On float32 planes Pillow does not round, and its triangle is the one of torch's antialias.
    return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _sampling(length: int, side: int, share: float) -> np.ndarray:
    """Weights (length, side) that interpolate `length` points spread over the first `share` of a row of `side`."""
    at = ((np.arange(length) + 0.5) / length * share * side - 0.5).clip(0, side - 1)
    low = np.floor(at).astype(int)
    weights = np.zeros((length, side), np.float32)
    weights[np.arange(length), low] = 1 - (at - low)
    weights[np.arange(length), np.minimum(low + 1, side - 1)] += at - low
    return weights
