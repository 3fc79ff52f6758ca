"""Label maps as PNG, COCO annotations and YOLO polygons: pure functions from masks to what files hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools

from fsdino.base.result import ONE_HALF, LabelMap
from fsdino.visualize import palette_color
from fsdino.visualize.overlay import overlay

OVERLAY_SIDE = 448  # pixels; smaller images are enlarged, or the captions would hide them
# Without subsampling of colours: JPEG would smear the thin outlines of the masks.
OVERLAY_FORM: dict[str, Any] = {"format": "JPEG", "quality": 92, "subsampling": 0}
MAX_CLASSES = 254  # 0 is background and 255 means ignore wherever label maps are read


def label_png(labels: np.ndarray) -> Image.Image:
    """A label map (H, W) of at most 254 classes as a palette image in the colours of the overlays."""
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0] + [channel for label in range(1, 256) for channel in palette_color(label)])
    return image


def captioned(image: np.ndarray, found: LabelMap, names: Sequence[str]) -> Image.Image:
    """An image (H, W, 3) uint8 with its masks and the names and scores of the classes that were found.

    A class that has a mask although it was judged absent has that probability behind its score.
    """
    there, scores, presences = np.unique(found.labels), list(found.scores.values()), list(found.presences.values())
    captions = {int(k): f"{names[k - 1]} {scores[k - 1]:.2f}{_doubt(presences[k - 1])}" for k in there if k > 0}
    factor = max(1, OVERLAY_SIDE // max(found.labels.shape))
    # Whole factors and repeated pixels: what is enlarged for its caption stays what it was.
    large = (array.repeat(factor, 0).repeat(factor, 1) for array in (image, found.labels))
    return Image.fromarray(overlay(*large, captions=captions))


def _doubt(presence: float | None) -> str:
    return "" if presence is None or presence > ONE_HALF else f" (there {100 * presence:.0f} %)"


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

    Each is (N, 2) pixel coordinates (x, y), N at least 3; parts without area are left out.
    """
    # YOLO's format knows no holes, so each is tied to its outline by a cut of no width: there and back on one line.
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    borders = [contour[:, 0] for contour in contours]
    holes = [i for i in range(len(borders)) if tree[0][i][3] != -1]
    for hole in holes:
        borders[hole] = np.roll(borders[hole], -int(borders[hole][:, 0].argmin()), axis=0)  # leftmost pixel first
    ties = _ties(borders, holes, mask.shape[1])
    outlines = [_corners(_walk(borders, ties, i)) for i in range(len(borders)) if tree[0][i][3] == -1]
    return [outline for outline in outlines if len(outline) >= 3]


def _ties(borders: Sequence[np.ndarray], holes: Sequence[int], width: int) -> dict[int, list[tuple[int, int]]]:
    """Where each border is left for a hole: pairs of a position on it and the hole, in the order of the positions."""
    # A hole is tied to the nearest border left of its leftmost pixel, which is the first of its (N, 2). What lies
    # between belongs to the mask, so the cut takes nothing away; and that border begins farther left than the hole, so
    # that following the ties always ends at an outline.
    if not holes:
        return {}
    owner = np.repeat(np.arange(len(borders)), [len(border) for border in borders])
    position = np.concatenate([np.arange(len(border)) for border in borders])
    points = np.concatenate(borders).astype(np.int64)
    place = points[:, 1] * width + points[:, 0]
    order = place.argsort(kind="stable")
    starts = [int(borders[hole][0, 1]) * width + int(borders[hole][0, 0]) for hole in holes]
    ties: dict[int, list[tuple[int, int]]] = {}
    # All border pixels in reading order: going back from a hole's start finds the nearest one left of it in its row.
    for hole, after in zip(holes, place[order].searchsorted(starts, side="right")):
        found = int(after) - 1
        while owner[order[found]] == hole:  # its own leftmost pixel
            found -= 1
        at = order[found]
        ties.setdefault(int(owner[at]), []).append((int(position[at]), hole))
    return {border: sorted(hanging) for border, hanging in ties.items()}


def _walk(borders: Sequence[np.ndarray], ties: dict[int, list[tuple[int, int]]], outline: int) -> np.ndarray:
    """All pixels along an outline; at each tie over to the hole, around it in the same way, and back."""
    pieces: list[np.ndarray] = []
    path = [(outline, 0, iter(ties.get(outline, ())))]
    while path:
        border, start, ahead = path.pop()
        tie = next(ahead, None)
        if tie is None:
            pieces.append(borders[border][start:])
            if path:
                pieces.append(borders[border][:1])
        else:
            at, hole = tie
            pieces.append(borders[border][start : at + 1])
            path += [(border, at, ahead), (hole, 0, iter(ties.get(hole, ())))]
    return np.concatenate(pieces)


def _corners(path: np.ndarray) -> np.ndarray:
    """The pixels of a closed path at which it turns."""
    path = path[(path != np.roll(path, 1, axis=0)).any(1)]
    step = np.roll(path, -1, axis=0) - path
    return path[(step != np.roll(step, 1, axis=0)).any(1)]


def yolo_lines(labels: np.ndarray, names: Sequence[str]) -> str:
    """A label map as YOLO segmentation text, by line a class (from 0) and a polygon in shares of width and height."""
    height, width = labels.shape
    lines = []
    for label in range(1, len(names) + 1):
        for polygon in polygons(labels == label):
            shares = (polygon + 0.5) / (width, height)  # pixel centres
            lines.append(f"{label - 1} " + " ".join(f"{value:.6f}" for value in shares.reshape(-1)))
    return "".join(line + "\n" for line in lines)


def listed(names: Sequence[str] | str) -> list[str]:
    """Names from a sequence, or from text like "labels,coco" or "[labels, coco]"; empty ones are dropped."""
    parts = names.strip().removeprefix("[").removesuffix("]").split(",") if isinstance(names, str) else names
    return [name for part in parts if (name := part.strip().strip("'\""))]
