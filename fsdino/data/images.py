"""Images and masks from disk: what cameras, browsers and annotation tools write, as plain uint8 arrays."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fsdino.base.image import ENOUGH, to_mask, to_rgb

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# what Pillow raises for files that are not images, are cut short, or say that they have gigapixels
UNREADABLE = (UnidentifiedImageError, SyntaxError, OSError, ValueError, Image.DecompressionBombError)


def read_image(path: str | Path) -> np.ndarray:
    """An image file as RGB bytes (H, W, 3), see `to_rgb`."""
    with _opened(path) as image:
        return to_rgb(image)


def read_reduced(path: str | Path, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image file that will be resized to a square, as RGB bytes (h, w, 3), and its whole size (H, W).

    A JPEG is decoded at a half, a quarter or an eighth of its size, several times faster, as long as both sides keep
    `ENOUGH` times the square's `side`; every other file at its own size.
    """
    with _opened(path, side) as image:
        return to_rgb(image), image_size(path)


def read_labels(path: str | Path) -> np.ndarray:
    """A label image as the numbers stored in it, (H, W) int64: palette indices stay indices, 16 bit stays 16 bit.

    Colour images give their first channel, provided that all channels are equal.
    """
    with _opened(path) as image:
        values = np.asarray(image)
    if values.ndim == 3:
        # The last of two or four channels is transparency, which says nothing of the label.
        colours = values[..., : 1 if values.shape[-1] == 2 else 3]
        if (colours != colours[..., :1]).any():
            raise ValueError(
                f"label image '{path}' has colours (mode {image.mode}), expected one number a pixel: "
                "save it as a grey or palette PNG."
            )
        values = colours[..., 0]
    return values.astype(np.int64)


def read_mask(path: str | Path, threshold: int = 128) -> np.ndarray:
    """A black and white mask file as (H, W) uint8 in {0, 1}, or {0, 1, 255} from labels, see `to_mask`."""
    with _opened(path) as image:
        return to_mask(image, threshold)


def check_mask_size(mask: np.ndarray, image_size: tuple[int, int], mask_path: str | Path) -> None:
    """Refuse a mask of another size than its image's (H, W)."""
    if mask.shape[:2] != tuple(image_size):
        raise ValueError(
            f"mask '{mask_path}' is {mask.shape[1]}x{mask.shape[0]} pixels (width x height) but its image is "
            f"{image_size[1]}x{image_size[0]}: export the mask at the image's size."
        )


def image_size(path: str | Path) -> tuple[int, int]:
    """An image's (H, W) from its header, after EXIF orientation."""
    try:
        with Image.open(_existing(path)) as image:
            width, height = image.size
            # EXIF's tag of orientation: from 5 on the stored rows are the columns that a viewer shows.
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def _opened(path: str | Path, side: int | None = None) -> Image.Image:
    """Open and decode at once, so that a cut file is noticed here and not in the middle of a batch."""
    found = _existing(path)
    try:
        image = Image.open(found)
        if image.format == "PNG":
            # Pillow passes over the checksums of the pixels unless it is asked, and then wants the file opened anew.
            image.verify()
            image = Image.open(found)
        if side is not None and image.format == "JPEG":
            # libjpeg leaves out the frequencies that a smaller image does not have; the mode stays.
            image.draft(None, (math.ceil(ENOUGH * side),) * 2)  # type: ignore[arg-type]
        image.load()
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    return image


def _existing(path: str | Path) -> Path:
    found = Path(path)
    if not found.is_file():
        raise FileNotFoundError(f"image '{found}' does not exist: check the data set's root, or fetch the file.")
    return found


def _unreadable(path: str | Path, error: Exception) -> Exception:
    if isinstance(error, FileNotFoundError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return ValueError(f"image '{path}' cannot be read: it has more than {limit:.0f} megapixels; cut it into parts.")
    return ValueError(f"image '{path}' cannot be read ({error}): copy or download it again.")
