"""Episode strips (support · query · truth · prediction) and sheets of them, alike in training, evaluation and demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from fsdino.visualize.overlay import IGNORE, check_same_size, fit_text, font_of_size, overlay, to_image, to_labels

_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def mask_iou(prediction: Any, truth: Any) -> float:
    """Intersection over union of two masks (H, W) where the truth is not 255; NaN when both are empty."""
    predicted, wanted = to_labels(prediction), to_labels(truth)
    valid = wanted != IGNORE
    union = ((predicted > 0) | (wanted > 0)) & valid
    return float((((predicted > 0) & (wanted > 0)) & valid).sum() / union.sum()) if union.any() else float("nan")


def _panel(image: Any, mask: Any | None, size: int) -> np.ndarray:
    """An image (and its mask) with a longer side of `size`."""
    # Scaled first, drawn after that: a tiny image gets a fine outline too.
    canvas = to_image(image)
    labels = None if mask is None else to_labels(mask)
    if labels is not None:
        check_same_size(canvas, labels)
    height, width = canvas.shape[:2]
    scale = size / max(height, width)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))  # cv2 order
    # Far enlarged, pixels shall be seen as pixels; a little enlarged, they shall not.
    method = cv2.INTER_AREA if scale < 1 else (cv2.INTER_NEAREST if scale > 3 else cv2.INTER_CUBIC)
    canvas = cv2.resize(canvas, target, interpolation=method)
    if labels is None:
        return canvas
    scaled = cv2.resize(labels.astype(np.float32), target, interpolation=cv2.INTER_NEAREST_EXACT)
    return overlay(canvas, scaled.astype(np.int32))


def row_of_panels(panels: Sequence[tuple[np.ndarray, str, str]], size: int) -> np.ndarray:
    """Set panels side by side in columns of equal width; array (H, W, 3) uint8 on white.

    Args:
        panels: for each column an image (h, w, 3) of at most size × size, its heading and a fainter second text.
        size: column width in pixels.
    """
    gap, text_size = max(4, size // 28), max(11, size // 14)
    band = round(text_size * 1.7)
    height = max(shown.shape[0] for shown, _, _ in panels)
    image = Image.new("RGB", (len(panels) * (size + gap) + gap, height + band + 2 * gap), _PAPER)
    draw, font = ImageDraw.Draw(image), font_of_size(text_size)
    for i, (shown, heading, detail) in enumerate(panels):
        left = gap + i * (size + gap)
        offset = ((size - shown.shape[1]) // 2, (height - shown.shape[0]) // 2)
        image.paste(Image.fromarray(shown), (left + offset[0], gap + offset[1]))
        middle = gap + height + gap / 2 + band / 2
        heading = fit_text(heading, font, size)
        draw.text((left, middle), heading, fill=_INK, font=font, anchor="lm")
        # The heading comes first; the second text gets what is left of the column, or is left out.
        room = int(size - font.getlength(heading + "  "))
        if detail and room > text_size:
            draw.text((left + size, middle), fit_text(detail, font, room), fill=_FAINT, font=font, anchor="rm")
    return np.asarray(image)


def episode_strip(
    support_images: Sequence[Any],
    support_masks: Sequence[Any],
    query: Any,
    truth: Any | None,
    prediction: Any,
    *,
    class_name: str = "",
    iou: float | None = None,
    score: float | None = None,
    size: int = 224,
    max_support: int = 5,
) -> np.ndarray:
    """Draw one episode in a row: support · query · truth · prediction; array (H, W, 3) uint8.

    Args:
        support_images: K images, anything `to_image` takes.
        support_masks: K masks (H, W) of the same sizes.
        query: the query image.
        truth: mask (H, W) with 255 = ignore, or None where there is no truth.
        prediction: mask (H, W).
        class_name: written under the first support image.
        iou: intersection over union; None computes it from truth and prediction.
        score: the model's own estimate, in [0, 1].
        size: width of a panel in pixels; its images' longer side.
        max_support: support images shown at most; the heading tells when there are more.

    Raises:
        ValueError: when the numbers of support images and masks differ or a mask does not fit its image.
    """
    shots = len(support_images)
    if shots != len(support_masks):
        raise ValueError(f"{shots} support images and {len(support_masks)} masks; give one mask for each image.")
    panels = []
    for i in range(min(shots, max_support)):
        heading = "support" if shots == 1 else f"support {i + 1}/{shots}"
        panels.append((_panel(support_images[i], support_masks[i], size), heading, class_name if i == 0 else ""))
    panels.append((_panel(query, None, size), "query", ""))
    if truth is not None:
        panels.append((_panel(query, truth, size), "truth", ""))
        iou = mask_iou(prediction, truth) if iou is None else iou
    notes = [f"IoU {iou:.2f}"] if iou is not None and np.isfinite(iou) else []
    notes += [f"score {score:.2f}"] if score is not None else []
    panels.append((_panel(query, prediction, size), "prediction" if len(notes) < 2 else "pred.", " · ".join(notes)))
    return row_of_panels(panels, size)


def sheet(strips: Sequence[Any], *, columns: int = 1, title: str = "") -> np.ndarray:
    """Set strips (or any images) in a grid on white, left-aligned, in reading order; array (H, W, 3) uint8.

    Args:
        strips: arrays (H, W, 3), of any sizes; at least one.
        columns: images in a row.
        title: a line above the grid.

    Raises:
        ValueError: when there is no strip.
    """
    images = [to_image(strip) for strip in strips]
    if not images:
        raise ValueError("a sheet of no strips cannot be drawn; give at least one.")
    gap, head = 8, 36 if title else 0
    width = max(shown.shape[1] for shown in images)
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(shown.shape[0] for shown in row) for row in rows]
    across = min(columns, len(images))
    canvas = np.full((head + sum(heights) + gap * (len(rows) + 1), across * (width + gap) + gap, 3), 255, np.uint8)
    top = head + gap
    for row, height in zip(rows, heights):
        for i, shown in enumerate(row):
            left = gap + i * (width + gap)
            canvas[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
        top += height + gap
    if title:
        image = Image.fromarray(canvas)
        font = font_of_size(22)
        text = fit_text(title, font, canvas.shape[1] - 2 * gap)
        ImageDraw.Draw(image).text((gap + 4, head / 2 + 4), text, fill=_INK, font=font, anchor="lm")
        canvas = np.asarray(image)
    return canvas
