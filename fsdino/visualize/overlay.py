"""Masks over images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fsdino.base.image import IGNORE, to_rgb

# The colour-blind safe palette of Okabe and Ito (2008) without black; label 1, by far the most frequent, gets the
# colour that fewest objects have themselves. Each of the thirteen that follow was chosen as far as possible from all
# before it, in CIELAB, for normal and for red-green blind eyes.
PALETTE: tuple[tuple[int, int, int], ...] = (
    *((86, 180, 233), (230, 159, 0), (204, 121, 167), (0, 158, 115)),  # sky blue, orange, reddish purple, bluish green
    *((240, 228, 66), (213, 94, 0), (0, 114, 178)),  # yellow, vermilion, blue
    *((255, 0, 90), (0, 255, 135), (105, 0, 180), (150, 210, 75)),  # crimson, spring green, violet, lime
    *((60, 105, 255), (90, 75, 15), (105, 240, 240), (165, 15, 135)),  # royal blue, brown, cyan, plum
    *((135, 30, 60), (225, 0, 255), (90, 120, 0), (150, 240, 180), (0, 0, 255)),  # wine, magenta, olive, mint, blue
)


def palette_color(label: int) -> tuple[int, int, int]:
    """Fill colour of a label: 1 gets the first colour of the palette; after twenty classes it starts over."""
    return PALETTE[(label - 1) % len(PALETTE)]


def to_image(image: Any) -> np.ndarray:
    """Bring an image into the drawing form: array (H, W, 3) uint8, RGB, never a view of the input.

    Args:
        image: PIL image, array (H, W) or (H, W, 1 or 3) uint8 or float in [0, 1], or tensor (3, H, W) in [0, 1].

    Raises:
        ValueError: when the shape is none of these.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    # A tensor is known by what it can do: this module must work where torch is absent.
    is_tensor = hasattr(image, "detach")
    array = image.detach().float().cpu().numpy() if is_tensor else np.asarray(image)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        shape = tuple(np.shape(image))
        raise ValueError(f"an image of shape {shape} cannot be drawn; give (H, W, 3) or a tensor (3, H, W).")
    if array.dtype != np.uint8:
        array = np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)))


def to_labels(mask: Any) -> np.ndarray:
    """Bring a mask into a label map: array (H, W) int32, 0 background, 1.. classes, 255 ignore (bool: True is 1).

    Args:
        mask: PIL image, array or tensor (H, W); a leading axis of length one is dropped.

    Raises:
        ValueError: when it is not two-dimensional.
    """
    array = mask.detach().cpu().numpy() if hasattr(mask, "detach") else np.asarray(mask)
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if array.ndim != 2:
        raise ValueError(f"a mask of shape {array.shape} cannot be drawn; give (H, W).")
    if np.issubdtype(array.dtype, np.floating):
        array = array > 0.5  # probabilities
    return array.astype(np.int32)


def check_same_size(image: np.ndarray, labels: np.ndarray) -> None:
    """Raise a ValueError unless image (H, W, 3) and labels (H, W) agree in H and W."""
    if image.shape[:2] != labels.shape:
        sizes = f"the mask is {labels.shape} and the image {image.shape[:2]} (H, W)"
        raise ValueError(f"{sizes}; resize one of them first.")


def overlay(image: Any, mask: Any, *, captions: Mapping[int, str] | None = None, opacity: float = 0.45) -> np.ndarray:
    """Draw a mask or label map over an image; array (H, W, 3) uint8.

    Args:
        image: anything `to_image` takes, (H, W).
        mask: mask or label map (H, W): 0 background, 1.. classes, 255 ignore (hatched).
        captions: text for each label, listed with its colour in the upper left corner.
        opacity: share of the fill colour, in [0, 1].

    Raises:
        ValueError: when image and mask differ in size.
    """
    canvas, labels = to_image(image), to_labels(mask)
    check_same_size(canvas, labels)
    line = max(1, round(min(labels.shape) / 250))  # width of each tone in pixels
    present = [int(k) for k in np.unique(labels) if k not in (0, IGNORE)]
    for label in present:
        inside = labels == label
        fill = canvas[inside].astype(np.float32)
        fill += opacity * (np.asarray(palette_color(label), np.float32) - fill)
        canvas[inside] = np.rint(fill).astype(np.uint8)
    _hatch(canvas, labels == IGNORE, line)
    _outline(canvas, labels, present, line)
    if captions:
        canvas = _legend(canvas, {k: captions[k] for k in captions if k != 0})
    return canvas


def _outline(canvas: np.ndarray, labels: np.ndarray, present: Sequence[int], line: int) -> None:
    """Trace each label in place: black outside, white inside, and further in the pure colour, which names the class."""
    # One of black and white shows on any image. All black comes first, so that touching classes keep their white. Masks
    # are made twice, since those of all classes of a large image would be more memory than the image.
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * line + 1, 2 * line + 1))
    for label in present:
        region = (labels == label).astype(np.uint8)
        canvas[(cv2.dilate(region, kernel) > 0) & (region == 0)] = 0
    for label in present:
        region = (labels == label).astype(np.uint8)
        inner = cv2.erode(region, kernel)
        canvas[(region > 0) & (inner == 0)] = 255
        canvas[(inner > 0) & (cv2.erode(inner, kernel, iterations=2) == 0)] = palette_color(label)


def _hatch(canvas: np.ndarray, area: np.ndarray, line: int) -> None:
    """Stripe an ignored area in place, in black and white, which no class has as its colour."""
    if area.any():
        rows, columns = np.nonzero(area)
        phase = (rows + columns) % (10 * line)
        for start, tone in ((0, 0), (line, 255)):
            chosen = (phase >= start) & (phase < start + line)
            canvas[rows[chosen], columns[chosen]] = tone


def font_of_size(size: int) -> Any:
    # Pillow's own scalable font: a font file would have to be installed.
    return ImageFont.load_default(size=max(8, size))


def fit_text(text: str, font: Any, width: int) -> str:
    """Shorten a text with an ellipsis until it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _legend(canvas: np.ndarray, captions: Mapping[int, str]) -> np.ndarray:
    """Write one line per label (swatch and text) on a dark plate in the upper left corner."""
    height, width = canvas.shape[:2]
    size = int(np.clip(min(height, width) / 22, 10, 160))
    font, gap = font_of_size(size), size // 3
    step = size + gap
    # What does not fit below the last line is left out: a legend must not cover the whole image.
    rows = list(captions.items())[: max(1, (height - gap) // step)]
    texts = [fit_text(text, font, width - size - 4 * gap) for _, text in rows]
    plate_width = min(width, int(max((font.getlength(text) for text in texts), default=0)) + size + 4 * gap)
    plate_height = min(height, len(rows) * step + gap)
    canvas[:plate_height, :plate_width] = (canvas[:plate_height, :plate_width] * 0.25).astype(np.uint8)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for i, ((label, _), text) in enumerate(zip(rows, texts)):
        top = gap + i * step
        draw.rectangle((gap, top, gap + size - 1, top + size - 1), fill=palette_color(label), outline=(255, 255, 255))
        draw.text((2 * gap + size, top + size / 2), text, fill=(255, 255, 255), font=font, anchor="lm")
    return np.asarray(image)


def write_png(path: str | os.PathLike[str], image: Any) -> Path:
    """Write an image (anything `to_image` takes) as PNG, complete or not at all; missing folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and then moved there; the process's number keeps two writers of one file apart.
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    Image.fromarray(to_image(image)).save(partial, format="PNG")
    partial.replace(target)
    return target
