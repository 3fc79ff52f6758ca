"""The value above which a pixel is object, chosen where it may be: on episodes of base classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and how it was found.

    Attributes:
        threshold: the best of the grid; of equals the middle one.
        miou: few-shot mIoU at it, in [0, 1].
        curve: few-shot mIoU at every value of the grid.
    """

    threshold: float
    miou: float
    curve: tuple[float, ...]


class ThresholdCurve(Metric):
    """Few-shot mIoU at every threshold of a grid, from summed counts (so processes and batches do not matter).

    Args:
        class_ids: classes that may come.
        thresholds: ascending; probabilities, or values of any other score.
        kwargs: for `torchmetrics.Metric`.

    Raises:
        ValueError: if the thresholds do not ascend.
    """

    full_state_update = False
    higher_is_better = True
    thresholds: Tensor
    hits: Tensor
    predicted: Tensor
    positives: Tensor
    pixels: Tensor

    def __init__(self, class_ids: Sequence[int], thresholds: Sequence[float] = THRESHOLDS, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._row = {class_id: row for row, class_id in enumerate(class_ids)}
        self.grid = tuple(thresholds)
        if not self.grid or bool((np.diff(self.grid) <= 0).any()):
            raise ValueError("the grid of thresholds must be ascending and hold at least one value.")
        # Double precision: a score that equals a threshold must not pass it by rounding.
        self.register_buffer("thresholds", torch.tensor(self.grid, dtype=torch.float64), persistent=False)
        columns = {"hits": len(self.grid), "predicted": len(self.grid), "positives": 1, "pixels": 1}
        for name, width in columns.items():
            self.add_state(name, torch.zeros(len(self._row), width, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, truth: Tensor, class_ids: Tensor) -> None:
        """Add episodes.

        Args:
            scores: (B, H, W), probabilities or whatever the thresholds are values of.
            truth: (B, H, W) in {0, 1, 255}; 255 counts nowhere.
            class_ids: (B,).
        """
        for one, mask, class_id in zip(scores, truth, class_ids.tolist()):
            row = self._row[class_id]
            # Bucket k holds the pixels above the first k thresholds; sums from the right count those above each.
            passed = torch.bucketize(one.double(), self.thresholds)
            for state, chosen in ((self.hits, mask == 1), (self.predicted, (mask == 1) | (mask == 0))):
                counts = torch.bincount(passed[chosen], minlength=len(self.grid) + 1)
                state[row] += counts.flip(0).cumsum(0).flip(0)[1:]
            self.positives[row] += (mask == 1).sum()
            self.pixels[row] += ((mask == 1) | (mask == 0)).sum()

    def compute(self) -> Tensor:
        """(2, thresholds): at each one mIoU over the classes that came, and FB-IoU over all of them together."""
        union = (self.positives + self.predicted - self.hits).double()
        counted = self.positives[:, 0] > 0
        if not bool(counted.any()):
            return torch.zeros(2, len(self.grid), dtype=torch.float64)
        foreground = self.hits.sum(0) / union.sum(0).clamp(min=1)
        background = (self.pixels - union).sum(0) / (self.pixels - self.hits).sum(0).clamp(min=1)
        return torch.stack([(self.hits / union.clamp(min=1))[counted].mean(0), (foreground + background) / 2])

    def best(self) -> ThresholdChoice:
        """The threshold of the best mIoU."""
        curve = self.compute()[0]
        # A plateau says that the exact value does not matter here; its middle is the safest elsewhere.
        top = (curve >= curve.max() - 1e-9).nonzero()[:, 0]
        return ThresholdChoice(self.grid[int(top[len(top) // 2])], float(curve.max()), tuple(curve.tolist()))

    def at(self, threshold: float) -> dict[str, float]:
        """`miou` and `fb_iou` at one of the thresholds."""
        miou, fb_iou = self.compute()[:, self.grid.index(threshold)].tolist()
        return {"miou": miou, "fb_iou": fb_iou}


def choose_threshold(
    scores: Sequence[np.ndarray | Tensor],
    truths: Sequence[np.ndarray | Tensor],
    class_ids: Sequence[int],
    grid: Sequence[float],
) -> ThresholdChoice:
    """The threshold that maximises few-shot mIoU on given episodes.

    Call it on episodes of base classes; a threshold chosen on the classes that are tested is a leak.

    Args:
        scores: one score map (H, W) an episode, at the size of its truth.
        truths: one mask (H, W) an episode in {0, 1, 255}; 255 counts nowhere.
        class_ids: the class of each episode.
        grid: candidates, ascending.

    Raises:
        ValueError: if nothing is given, lengths or shapes differ, or the grid does not ascend.
    """
    if len(scores) == 0 or not len(scores) == len(truths) == len(class_ids):
        raise ValueError(
            f"expected as many scores, truths and class ids, at least one; got {len(scores)}, {len(truths)} and "
            f"{len(class_ids)}."
        )
    curve = ThresholdCurve(list(dict.fromkeys(class_ids)), grid)
    for score, truth, class_id in zip(scores, truths, class_ids):
        if tuple(score.shape) != tuple(truth.shape):
            raise ValueError(
                f"a score map is {tuple(score.shape)} but its truth {tuple(truth.shape)}; resize the scores first."
            )
        curve.update(torch.as_tensor(score)[None], torch.as_tensor(truth)[None], torch.tensor([class_id]))
    return curve.best()
