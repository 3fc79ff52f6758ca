"""Large images window by window, for objects that would be too small in the whole. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fsdino.base.result import LabelMap, LabelPainter
from fsdino.predict.engines import Engine
from fsdino.predict.finish import finished


def check_tile(tile: int) -> None:
    """Refuse windows so small that nothing is seen in them; a ValueError says which are not."""
    if 0 < tile < 32:
        raise ValueError(f"tile {tile} is too small; use at least 32 pixels, or 0 for no tiles.")


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


def segment_tiled(
    engine: Engine,
    joined: Sequence[Any],
    names: Sequence[str],
    image: np.ndarray,
    tile: int,
    *,
    threshold: float | None = None,
    min_score: float = 0.0,
    least: Sequence[float] = (),
    refine_edges: bool = False,
    cuts: Sequence[float | None] = (),
) -> LabelMap:
    """Find classes in a large image (H, W, 3) uint8, window by window, and give each pixel to the most probable one.

    A class is present when it is in any window; its score is the best of those windows, its presence the highest of
    all windows. Probabilities are blended where windows overlap: a window counts less and less towards its border.

    Args:
        joined, names: the classes' memories as `engine.join` made them, and their names in the same order.
        tile: side of a window in pixels.
        threshold: probability above which a pixel belongs to a class; the engine's own when left out.
        min_score: classes whose score is below count as absent. Above 0 the probabilities of all classes are held for
            the whole image, otherwise for the height of one window.
        least: the presence that each class needs in a window, see `fsdino.base.gate`; empty: one half.
        refine_edges: move each window's edges to those of its pixels, see `fsdino.base.sharpen`.
        cuts: of the classes' own, in each window, see `fsdino.predict.cut`.
    """
    height, width = image.shape[:2]
    rows: dict[int, list[tuple[int, int, int, int]]] = {}
    for window in tiles((height, width), tile):
        rows.setdefault(window[0], []).append(window)
    side = min(tile, height)
    # Which classes count is known at the end where a least score is asked for, since the best window decides.
    held = side if min_score <= 0 else height
    sums, weight_sum = np.zeros((len(names), held, width), np.float32), np.zeros((held, width), np.float32)
    limit = engine.threshold if threshold is None else threshold
    labels = LabelPainter((height, width), limit)
    scores, present = [0.0] * len(names), [False] * len(names)
    presences: list[list[float]] = [[] for _ in names]
    first = 0  # the row of the image that is the first of those held
    # What lies above the next row of windows is finished, and given away before that row is begun.
    for top, following in zip(rows, [*list(rows)[1:], height]):
        for _, left, bottom, right in rows[top]:
            part = np.s_[top - first : bottom - first, left:right]
            # An object at a window's edge is cut in two there and seen whole by the neighbour, which must count more. A
            # product: the smaller of both would leave a seam along the image's rim, where all windows weigh little.
            weight = np.outer(_ramp(bottom - top), _ramp(right - left))
            weight_sum[part] += weight
            window_pixels = image[top:bottom, left:right]
            found = engine.find(joined, window_pixels)
            for i, finding in enumerate(finished(found, window_pixels, limit, least, refine_edges, cuts=cuts)):
                if finding.presence is not None:
                    presences[i].append(finding.presence)
                # Where the class is absent its probabilities count as 0: the window's mask is empty, whatever they are.
                if finding.present:
                    sums[i][part] += weight * finding.probs
                    present[i], scores[i] = True, max(scores[i], finding.score)
        if held == height and following < height:
            continue
        done = following - first
        for i in range(len(names)):
            if present[i] and scores[i] >= min_score:
                labels.add(i + 1, sums[i, :done] / weight_sum[:done], first)
            _move_up(sums[i], done)
        _move_up(weight_sum, done)
        first = following
    there = [is_there and score >= min_score for is_there, score in zip(present, scores)]
    return labels.finish(
        {name: score if found else 0.0 for name, score, found in zip(names, scores, there)},
        {name: max(values, default=None) for name, values in zip(names, presences)},
        dict(zip(names, present)),
    )


def _move_up(rows: np.ndarray, count: int) -> None:
    """Drop the first rows of an array (H, W) and add as many rows of zeros below, in place."""
    rows[: len(rows) - count] = rows[count:]
    rows[len(rows) - count :] = 0


def _ramp(length: int) -> np.ndarray:
    """Weights that rise linearly over the outer quarter of a window, never 0."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
    return np.minimum(distance / max(1.0, length / 4), 1.0).astype(np.float32)
