"""Joint augmentation of an image and its mask, with every random number from one generator."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Shrink = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


class JointAugment:
    """Random crop that keeps the object, mirror, and colour jitter.

    Args:
        crop_scale: range of the crop's share of the image's area, in (0, 1].
        crop_ratio: range of the crop's width / height relative to the image's own.
        keep: smallest share of the object's pixels, in [0, 1], that a crop has to hold; after ten misses the whole
            image is taken.
        flip_prob: chance in [0, 1] to mirror left and right.
        brightness: largest relative change, as are `contrast` and `saturation`; 0 switches it off.
        contrast: change around the image's mean grey.
        saturation: change around each pixel's grey.
        grey_prob: chance in [0, 1] to take all colour away.
        shrink: crop, its size in the mask's pixels -> the crop as the network needs it, before its colours change;
            None keeps every pixel.
    """

    def __init__(
        self,
        crop_scale: tuple[float, float] = (0.4, 1.0),
        crop_ratio: tuple[float, float] = (0.8, 1.25),
        keep: float = 0.6,
        flip_prob: float = 0.5,
        brightness: float = 0.3,
        contrast: float = 0.3,
        saturation: float = 0.3,
        grey_prob: float = 0.05,
        shrink: Shrink | None = None,
    ) -> None:
        self.crop_scale, self.crop_ratio, self.keep, self.flip_prob = crop_scale, crop_ratio, keep, flip_prob
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.grey_prob, self.shrink = grey_prob, shrink

    @property
    def least_side(self) -> float:
        """The smallest share of a side of the image that a crop keeps."""
        scale, ratios = self.crop_scale[0], self.crop_ratio
        return float(np.sqrt(scale * min(ratios[0], 1 / ratios[1])))

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image (H, W, 3) uint8 and its mask (H, W) uint8 in {0, 1, 255}; `rng` gives all random numbers.

        Both are cropped to the same part. An object that was there is still there. The image may be smaller than its
        mask, where it was decoded so.
        """
        top, left, height, width = self._crop(mask, rng)
        down, right = image.shape[0] / mask.shape[0], image.shape[1] / mask.shape[1]
        rows = slice(round(top * down), round((top + height) * down))
        image = image[rows, round(left * right) : round((left + width) * right)]
        mask = mask[top : top + height, left : left + width]
        if self.shrink is not None:
            image = self.shrink(image, (height, width))
        if rng.random() < self.flip_prob:
            image, mask = image[:, ::-1], mask[:, ::-1]
        # Torch takes no array that is read backwards, as a mirrored view is; the jittered image is a new array anyway.
        return self._jitter(image, rng), np.ascontiguousarray(mask)

    def _crop(self, mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop."""
        full_height, full_width = mask.shape
        # Sums over all upper left corners, (H + 1, W + 1): the object's pixels in any crop are then four look-ups.
        table = cv2.integral((mask == 1).astype(np.uint8))
        total = int(table[-1, -1])
        for _ in range(10):
            scale = rng.uniform(*self.crop_scale)
            ratio = np.exp(rng.uniform(*np.log(self.crop_ratio)))  # in logarithms, so that 0.8 is as likely as 1.25
            height = min(full_height, max(1, round(full_height * float(np.sqrt(scale / ratio)))))
            width = min(full_width, max(1, round(full_width * float(np.sqrt(scale * ratio)))))
            top = int(rng.integers(full_height - height + 1))
            left = int(rng.integers(full_width - width + 1))
            bottom, right = top + height, left + width
            inside = int(table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left])
            if inside >= max(self.keep * total, min(total, 1)):
                return top, left, height, width
        return 0, 0, full_height, full_width

    def _jitter(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        brightness, contrast, saturation = (
            np.float32(1 + rng.uniform(-limit, limit)) for limit in (self.brightness, self.contrast, self.saturation)
        )
        saturation = np.float32(0) if rng.random() < self.grey_prob else saturation
        values = image.astype(np.float32) * brightness
        grey = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601 luma
        values = grey[..., None] + (values - grey[..., None]) * saturation
        # Summed in float64: the last digits of a float32 sum depend on how a machine's NumPy splits it.
        mean = grey.mean(dtype=np.float64).astype(np.float32)
        return np.clip(mean + (values - mean) * contrast, 0, 255).round().astype(np.uint8)
