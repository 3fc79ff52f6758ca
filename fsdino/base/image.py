"""A PIL image or mask as a plain array, by the same rules wherever one comes in. Nothing here imports torch."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

IGNORE = 255  # label of pixels that take part in no loss and no score
# Sides of a network's square that an image keeps on both of its own when it is decoded smaller. Below it the second
# resize has too few pixels to smooth over; `benchmarks/results/decoding.csv` has what it costs.
ENOUGH = 1.44


def to_rgb(image: Image.Image) -> np.ndarray:
    """Turn any PIL image into RGB bytes (H, W, 3) uint8 as a viewer would show it.

    Its EXIF orientation is applied, transparent pixels are laid on white, 16 bit channels keep their upper eight bits,
    grey becomes three equal channels.
    """
    # Cameras store the sensor's rows and say in EXIF how to turn them; masks are drawn on what a viewer shows.
    image = ImageOps.exif_transpose(image)
    # Pillow's own conversion of 16 bits to 8 clips at 255, which turns a normal exposure white.
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB")).copy()


def to_mask(image: Image.Image, threshold: int = 128) -> np.ndarray:
    """Turn a black and white PIL image into a mask (H, W) uint8 in {0, 1}, or {0, 1, 255} from labels.

    An image of nothing but 0, 1 and 255 with a 1 in it holds labels: 1 object, 255 ignore. Any other is object from the
    brightness `threshold` in [1, 255] on, so that what JPEG leaves around the object does not count.
    """
    values = np.asarray(image if image.mode == "1" or image.mode.startswith("I") else image.convert("L"))
    # Annotation tools save two-colour palettes in which index 1 may be any colour, dark red for instance: the index
    # counts there, not the brightness.
    if image.mode == "P" and np.asarray(image).max(initial=0) <= 1:
        values = np.asarray(image)
    values = values.astype(np.int64)
    # 255 is white in a black and white mask but "ignore" in a label map; a 1 tells them apart, since no black and white
    # mask has one.
    present = set(np.unique(values).tolist())
    if 1 in present and present <= {0, 1, IGNORE}:
        return values.astype(np.uint8)
    return ((values >> 8 if values.max(initial=0) > 255 else values) >= threshold).astype(np.uint8)
