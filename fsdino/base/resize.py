"""The one way from an image's own size to the network's square and back."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.base.image import ENOUGH, IGNORE

ResizeMode = Literal["squash", "pad"]


class Resize:
    """Bring images and masks to a square of `size` pixels, and predictions back to the image's own size.

    Args:
        size: side of the square, in pixels.
        mode: "squash" ignores the aspect ratio; "pad" keeps it and fills the right and bottom.
        first_size: side of another square, which everything is squashed to before; truths keep this size. None: none.
        hard_masks: support masks are 0 or 1, from the nearest pixel, in place of shares.
    """

    def __init__(
        self, size: int, mode: ResizeMode = "squash", first_size: int | None = None, hard_masks: bool = False
    ) -> None:
        if size < 1:
            raise ValueError(f"size {size} is not positive; give the side of the square in pixels.")
        if mode not in ("squash", "pad"):
            raise ValueError(f"resize mode {mode!r} is unknown; use 'squash' or 'pad'.")
        if first_size is not None and (first_size < 1 or mode != "squash"):
            raise ValueError(
                f"first_size {first_size} with resize mode {mode!r}: give a positive side in pixels, and 'squash', or "
                "no first_size."
            )
        self.size = size
        self.mode: ResizeMode = mode
        self.first_size, self.hard_masks = first_size, hard_masks

    def __repr__(self) -> str:
        return f"Resize(size={self.size}, mode={self.mode!r})"

    def image(self, img: Tensor) -> Tensor:
        """Resize images (..., 3, H, W) float in [0, 1] to (..., 3, size, size), bilinear, smoothed where they shrink.

        Padding is 0 (black).
        """
        if self.first_size is not None:
            img = _bilinear(img, (self.first_size, self.first_size))
        return self._pad(_bilinear(img, self.content_size(img.shape[-2], img.shape[-1])), 0.0)

    @property
    def source_side(self) -> int:
        """Side of the square that images are brought to first, in pixels."""
        return self.first_size or self.size

    def shrink(self, image: np.ndarray, size: tuple[int, int], large: float = 2 * ENOUGH) -> np.ndarray:
        """Bring the bytes (H, W, 3) of a large image to the size that `image` gives it, several times faster.

        They differ from those of `image` by rounding. An image that is not large stays as it is.

        Args:
            image: uint8.
            size: (H, W) of the image before it was decoded smaller; one that was is always brought to the square.
            large: how many sides of the square both sides of a large image have.
        """
        if image.shape[:2] == tuple(size) and min(size) < large * self.source_side:
            return image
        target = self.content_size(*size) if self.first_size is None else (self.first_size, self.first_size)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        # Torch has a vectorised way for bytes whose channels come last, as here.
        small = F.interpolate(pixels, size=target, mode="bilinear", align_corners=False, antialias=True)
        return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())

    def soft_mask(self, mask: Tensor) -> Tensor:
        """Resize support masks (..., H, W), float or bool, to (..., size, size) float in [0, 1]; padding is 0.

        A pixel holds the share of it that the object covers; with `hard_masks` 1 for any share after the first resize.
        """
        mask = mask if mask.is_floating_point() else mask.float()
        if self.hard_masks:
            return self._hard_mask(mask)
        return self._pad(_bilinear(mask, self.content_size(*mask.shape[-2:])).clamp(0.0, 1.0), 0.0)

    def _hard_mask(self, mask: Tensor) -> Tensor:
        content = self.content_size(*mask.shape[-2:])
        first = content if self.first_size is None else (self.first_size, self.first_size)
        near = _nearest(mask, first, exact=False)
        # An object so small that every nearest pixel misses it would be no reference at all: then what it touches.
        missed = ~(near > 0).flatten(-2).any(-1)
        touched = F.adaptive_max_pool2d(mask.reshape(-1, 1, *mask.shape[-2:]), first).reshape(near.shape)
        near = torch.where(missed[..., None, None], touched, near)
        return self._pad((_bilinear(near, content) > 0).to(mask.dtype), 0.0)

    def truth(self, mask: Tensor, exact: bool = True) -> Tensor:
        """Resize truth masks (..., H, W) long in {0, 1, 255} to the nearest pixel's label, (..., size, size) long.

        With a `first_size`, to that size. Padding is 255 (ignored by losses and scores).

        Args:
            mask: the truth at the image's own size.
            exact: take the pixel under the centre; else torch's "nearest", half a pixel off to the upper left, with
                which the field scores.
        """
        if self.first_size is not None:
            return _nearest(mask.float(), (self.first_size, self.first_size), exact=False).long()
        content = _nearest(mask.float(), self.content_size(*mask.shape[-2:]), exact)
        return self._pad(content, float(IGNORE)).long()

    def invert(self, logits: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Bring a square prediction back to the image's own size (H, W), bilinear, without the padding.

        Args:
            logits: (..., s, s) float on a square grid of any side s that covers the same square.
            original_size: (H, W) of the image, in pixels.
        """
        if self.mode == "squash":
            return _bilinear(logits, original_size)
        # The padding may end inside a cell of the grid, so cropping cells would shift the mask by up to half a cell:
        # each pixel's centre is looked up in the padded square instead.
        content = self.content_size(*original_size)
        rows, cols = (
            (torch.arange(n, device=logits.device, dtype=torch.float32) + 0.5) / n * (2.0 * c / self.size) - 1.0
            for n, c in zip(original_size, content)
        )
        grid = torch.stack(torch.meshgrid(cols, rows, indexing="xy"), dim=-1)  # (H, W, 2) as (x, y) in [-1, 1]
        flat = logits.reshape(1, -1, *logits.shape[-2:])
        sampled = F.grid_sample(flat.float(), grid[None], mode="bilinear", padding_mode="border", align_corners=False)
        return sampled.to(logits.dtype).reshape(*logits.shape[:-2], *original_size)

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        """Size (rows, columns) that an image of this height and width takes inside the square."""
        if self.mode == "squash":
            return self.size, self.size
        longest = max(height, width)
        # At least one row or column is left of an image that is hundreds of times as long as wide.
        return max(1, round(height * self.size / longest)), max(1, round(width * self.size / longest))

    def _pad(self, content: Tensor, value: float) -> Tensor:
        height, width = content.shape[-2:]
        if (height, width) == (self.size, self.size):
            return content
        return F.pad(content, (0, self.size - width, 0, self.size - height), value=value)


def _nearest(x: Tensor, size: tuple[int, int], exact: bool) -> Tensor:
    """Nearest resize of the last two dimensions, whatever the number of leading ones."""
    mode = "nearest-exact" if exact else "nearest"
    return F.interpolate(x.reshape(-1, 1, *x.shape[-2:]), size=size, mode=mode).reshape(*x.shape[:-2], *size)


def _bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of the last two dimensions, whatever the number of leading ones."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    shrinks = size[0] < x.shape[-2] or size[1] < x.shape[-1]
    flat = x.reshape(-1, 1, *x.shape[-2:])
    # Antialiasing changes nothing where an image grows, and not every exporter knows it.
    out = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
    return out.reshape(*x.shape[:-2], *size)
