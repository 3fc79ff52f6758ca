"""Large images window by window, for objects that would be too small in the whole. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fsdino.base.result import Segmentation
from fsdino.predict.engines import Engine


def tiles(size: tuple[int, int], tile: int, overlap: float = 0.25) -> list[tuple[int, int, int, int]]:
    """Cover an image (H, W) with equal windows (top, left, bottom, right).

    Args:
        tile: side of a window in pixels; an image that is smaller in one direction gets windows of its size there.
        overlap: least share of a window that it shares with its neighbour.
    """
    # Spread evenly, not packed from one corner: a narrow rest at the far edge would show objects out of context.
    edges = []
    for length in size:
        side = min(tile, length)
        count = 1 if length <= tile else int(np.ceil((length - side) / (side * (1 - overlap)))) + 1
        starts = np.linspace(0, length - side, count).round().astype(int)
        edges.append([(int(start), int(start) + side) for start in starts])
    return [(top, left, bottom, right) for top, bottom in edges[0] for left, right in edges[1]]


def find_tiled(engine: Engine, joined: Sequence[Any], count: int, image: np.ndarray, tile: int) -> list[Segmentation]:
    """Find `count` classes in a large image (H, W, 3) uint8, window by window.

    A class is present when it is in any window; its score is the best of those windows, its presence the highest of
    all windows.
    """
    size = image.shape[:2]
    sums = np.zeros((count, *size), np.float32)
    weight_sum = np.zeros(size, np.float32)
    scores, present = [0.0] * count, [False] * count
    presences: list[list[float]] = [[] for _ in range(count)]
    for top, left, bottom, right in tiles(size, tile):
        window = np.s_[top:bottom, left:right]
        # An object at a window's edge is cut in two there and seen whole by the neighbour, whose word must count more.
        weight = np.minimum.outer(_ramp(bottom - top), _ramp(right - left))
        weight_sum[window] += weight
        for i, finding in enumerate(engine.find(joined, image[window])):
            if finding.presence is not None:
                presences[i].append(finding.presence)
            # Where the class is absent its probabilities count as 0: the window's mask is empty, whatever they are.
            if finding.present:
                sums[i][window] += weight * finding.probs
                present[i], scores[i] = True, max(scores[i], finding.score)
    found = []
    for i in range(count):
        probs = sums[i] / weight_sum
        mask = (probs > np.float32(engine.threshold)) & present[i]
        found.append(Segmentation(mask, probs, scores[i], present[i], max(presences[i], default=None)))
    return found


def _ramp(length: int) -> np.ndarray:
    """Weights that rise linearly over the outer quarter of a window, never 0."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
    return np.minimum(distance / max(1.0, length / 4), 1.0).astype(np.float32)
