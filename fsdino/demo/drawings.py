"""Images on their way in and out of the page: uploads are read, answers are drawn and sent as data URLs. No gradio."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fsdino.data.images import read_image
from fsdino.demo.studio import Click, Example
from fsdino.visualize import overlay

ANSWER_SIDE, SMALL_SIDE = 720, 208  # longer side in pixels of what is sent to the browser
MAX_PIXELS = 50_000_000


def opened(path: str, name: str) -> tuple[str, np.ndarray]:
    """Read an uploaded image; a ValueError if it is not an upload, not an image, or has too many pixels."""
    # The path comes from the browser, which may name any file of this machine.
    folder, file = Path(os.environ["GRADIO_TEMP_DIR"]).resolve(), Path(path).resolve()
    if folder not in file.parents or not file.is_file():
        raise ValueError(f"'{name}' is not an uploaded file; choose it again.")
    try:
        # Opening reads the header alone, so a small file of a huge image costs nothing before it is refused.
        with Image.open(file) as header:
            pixels = header.width * header.height
        if pixels > MAX_PIXELS:
            raise ValueError(f"'{name}' has {pixels / 1e6:.0f} megapixels, this page takes {MAX_PIXELS // 10**6}.")
        return Path(name).name[:80], read_image(file)
    except Image.DecompressionBombError as error:
        raise ValueError(f"'{name}' has too many pixels, this page takes {MAX_PIXELS // 10**6} megapixels.") from error
    except OSError as error:
        raise ValueError(f"'{name}' is not an image that can be read; try a JPEG or PNG.") from error


def example_item(number: int, example: Example) -> dict[str, Any]:
    """One thumbnail."""
    negative = example.reference.negative
    image = shown_at(np.asarray(example.reference.image), SMALL_SIDE)
    mask = np.asarray(Image.fromarray(example.mask * np.uint8(255)).resize(image.size, Image.Resampling.BOX)) > 127
    # Label 6 has the palette's warning colour.
    drawn = overlay(image, np.where(mask, 6 if negative else 1, 0))
    return {
        "key": example.key,
        "source": encoded(Image.fromarray(drawn)),
        "label": f"{number} · not this" if negative else f"{number} · this",
        "negative": negative,
    }


def drawn_over(array: np.ndarray, mask: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """An image with its mask and the corrections, at the size that is shown."""
    image = shown_at(array, ANSWER_SIDE)
    labels = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST))
    drawn = overlay(image, labels)
    # Clicks count pixels by their centres, hence the half.
    for x, y, on in clicks:
        dot(drawn, (x + 0.5) * image.width / array.shape[1], (y + 0.5) * image.height / array.shape[0], on)
    return drawn


def dot(canvas: np.ndarray, x: float, y: float, on: bool) -> None:
    """Mark a correction in place: a blue plus or a vermilion minus, as on the drawing board."""
    # A white rim and a sign: to be told apart on any image and by any eye, not by colour alone.
    radius = max(4, round(min(canvas.shape[:2]) / 45))
    rows, columns = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    distance = np.hypot(rows - y, columns - x)
    canvas[distance <= radius + 2] = 255
    canvas[distance <= radius] = (0, 114, 178) if on else (213, 94, 0)
    across, thick = radius * 0.6, max(1.0, radius / 5)
    bar = (abs(rows - y) <= thick) & (abs(columns - x) <= across)
    post = (abs(columns - x) <= thick) & (abs(rows - y) <= across)
    canvas[bar | post if on else bar] = 255


def shown_at(array: np.ndarray, side: int) -> Image.Image:
    """An image for the eye: shrunk to a longer side, or enlarged by a whole factor where it is tiny."""
    image = Image.fromarray(array)
    longest = max(image.size)
    if longest > side:
        size = (max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest)))
        return image.resize(size, Image.Resampling.LANCZOS)
    # By whole factors and without smoothing, so that a tiny image shows its pixels as they are.
    factor = max(1, side // 2 // longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def source_of(image: np.ndarray, side: int) -> str:
    """An image as the source of an <img>."""
    return encoded(shown_at(image, side))


def encoded(image: Image.Image) -> str:
    """An image as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
