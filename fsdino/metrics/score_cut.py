"""The cut of a training-free score, chosen where it may be: on episodes of base classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class CutChoice:
    """A cut and how it was found.

    Args:
        cut: The best of the grid; the lowest of equals.
        miou: Pooled mIoU at it, in [0, 1].
        curve: Pooled mIoU at every value of the grid.
    """

    cut: float
    miou: float
    curve: tuple[float, ...]


def choose_cut(
    scores: Sequence[np.ndarray | Tensor],
    truths: Sequence[np.ndarray | Tensor],
    class_ids: Sequence[int],
    grid: Sequence[float],
) -> CutChoice:
    """The cut that maximises few-shot mIoU (intersections and unions pooled per class) on given episodes.

    Call it on episodes of base classes; a cut chosen on the classes that are tested is a leak.

    Args:
        scores: One score map (H, W) an episode, at the size of its truth.
        truths: One mask (H, W) an episode in {0, 1, 255}; 255 counts nowhere.
        class_ids: The class of each episode.
        grid: Candidate cuts, ascending.

    Returns:
        The choice.

    Raises:
        ValueError: When nothing is given, lengths or shapes differ, or the grid does not ascend.
    """
    if len(scores) == 0 or not len(scores) == len(truths) == len(class_ids):
        raise ValueError(
            f"expected as many scores, truths and class ids, at least one; got {len(scores)}, {len(truths)} and "
            f"{len(class_ids)}."
        )
    cuts = np.asarray(grid, dtype=np.float64)
    if cuts.size == 0 or bool((np.diff(cuts) <= 0).any()):
        raise ValueError("the grid of cuts must be ascending and hold at least one value.")
    rows = {class_id: row for row, class_id in enumerate(dict.fromkeys(class_ids))}
    inside = np.zeros((len(rows), cuts.size), dtype=np.int64)  # predicted and true
    outside = np.zeros_like(inside)  # predicted, not true
    positives = np.zeros((len(rows), 1), dtype=np.int64)
    for score, truth, class_id in zip(scores, truths, class_ids):
        score, truth = np.asarray(score, dtype=np.float64), np.asarray(truth)
        if score.shape != truth.shape:
            raise ValueError(f"a score map is {score.shape} but its truth {truth.shape}; resize the scores first.")
        row = rows[class_id]
        inside[row] += _count_above(score[truth == 1], cuts)
        outside[row] += _count_above(score[truth == 0], cuts)
        positives[row] += int((truth == 1).sum())
    curve = (inside / np.maximum(positives + outside, 1)).mean(axis=0)
    best = int(curve.argmax())
    return CutChoice(float(cuts[best]), float(curve[best]), tuple(float(value) for value in curve))


def _count_above(values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """How many values lie above each cut."""
    return values.size - np.searchsorted(np.sort(values), cuts, side="right")
