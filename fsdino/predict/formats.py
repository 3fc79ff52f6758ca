"""Label maps as PNG, COCO annotations and YOLO polygons: pure functions from masks to what the files hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools

from fsdino.visualize import palette_color

MAX_CLASSES = 254  # 0 is background and 255 means ignore wherever label maps are read


def label_png(labels: np.ndarray) -> Image.Image:
    """A label map (H, W) of at most 254 classes as a palette picture in the colours of the overlays."""
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0] + [channel for label in range(1, 256) for channel in palette_color(label)])
    return image


def instances(mask: np.ndarray) -> list[np.ndarray]:
    """Split a mask (H, W) into its 8-connected parts, each a mask (H, W) uint8, the largest first."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    order = sorted(range(1, count), key=lambda i: -int(stats[i, cv2.CC_STAT_AREA]))
    return [(parts == i).astype(np.uint8) for i in order]


def annotation(mask: np.ndarray, label: int, score: float) -> dict[str, Any]:
    """One COCO annotation of a mask (H, W), without `id` and `image_id`."""
    rle = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "category_id": label,
        "segmentation": {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")},
        "area": int(rle_tools.area(rle)),
        "bbox": [float(value) for value in rle_tools.toBbox(rle)],
        "iscrowd": 0,
        "score": round(score, 4),
    }


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outline a mask (H, W) as closed polygons, one per part, that fill to the same mask.

    A hole is tied to the outline by a cut of no width, since YOLO's format knows no holes.

    Returns:
        Arrays (N, 2) of pixel coordinates (x, y), N at least 3; parts without area are left out.
    """
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for i, contour in enumerate(contours):
        if tree[0][i][3] != -1:
            continue  # a hole; it comes with its outline
        outline = contour[:, 0]
        child = tree[0][i][2]
        while child != -1:
            outline = _tie(outline, contours[child][:, 0])
            child = tree[0][child][0]
        if len(outline) >= 3:
            found.append(outline)
    return found


def _tie(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Walk along the outline, over the shortest way to the hole, around it and back."""
    distance = ((outline[:, None] - hole[None]) ** 2).sum(-1)
    at, start = np.unravel_index(int(distance.argmin()), distance.shape)
    around = np.roll(hole, -start, axis=0)
    return np.concatenate([outline[: at + 1], around, around[:1], outline[at:]])


def yolo_lines(labels: np.ndarray, names: Sequence[str]) -> str:
    """A label map as YOLO segmentation text, by line a class (from 0) and a polygon in shares of width and height."""
    height, width = labels.shape
    lines = []
    for label in range(1, len(names) + 1):
        for polygon in polygons(labels == label):
            shares = (polygon + 0.5) / (width, height)  # pixel centres
            lines.append(f"{label - 1} " + " ".join(f"{value:.6f}" for value in shares.reshape(-1)))
    return "".join(line + "\n" for line in lines)
