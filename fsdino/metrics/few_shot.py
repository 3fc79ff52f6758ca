"""Few-shot mIoU and FB-IoU: exact counts pooled per class, with bootstrap intervals over episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from fsdino.base.image import IGNORE


@dataclass
class FewShotScore:
    """Scores of a list of episodes.

    Attributes:
        miou: mean over the drawn classes of pooled foreground IoU, in [0, 1]; NaN when nothing was counted.
        fb_iou: mean of the foreground and the background IoU, each pooled over all episodes.
        per_class: class id -> IoU of each class that counts.
        undrawn: classes that no episode asked for, or for which nothing was to be found and nothing was predicted.
        num_episodes: episodes counted.
    """

    miou: float
    fb_iou: float
    per_class: dict[int, float] = field(default_factory=dict)
    undrawn: tuple[int, ...] = ()
    num_episodes: int = 0


def intersection_union(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Count one episode.

    Args:
        pred: (H, W) bool, or numbers whose nonzero means object.
        truth: (H, W) in {0, 1, 255}; pixels of 255 count nowhere.

    Returns:
        Intersection and union, each (2,) int64: background, foreground.

    Raises:
        ValueError: the shapes differ, or the truth holds another value.
    """
    if pred.shape != truth.shape or pred.ndim != 2:
        raise ValueError(
            f"prediction {tuple(pred.shape)} and truth {tuple(truth.shape)} must be one (H, W): resize the prediction "
            "to the image first."
        )
    truth = truth.to(pred.device)
    valid = truth != IGNORE
    positive = truth == 1
    if not bool((positive | (truth == 0) | ~valid).all()):
        raise ValueError("truth holds values other than 0, 1 and 255 (ignore): give one class's binary mask.")
    pred = (pred != 0) & valid
    # Background counts follow from the foreground's, because every valid pixel is one of the two.
    both = (pred & positive).sum()
    either = (pred | positive).sum()
    total = valid.sum()
    return torch.stack([total - either, both]).long(), torch.stack([total - both, either]).long()


class FewShotIoU(Metric):
    """Few-shot mIoU: intersections and unions are summed per class, divided, then averaged over classes.

    This is not a mean of per-episode IoUs. Sums are int64, so the order of episodes and the number of processes change
    nothing.

    Args:
        class_ids: the classes of the fold (or of all folds).
        kwargs: for `torchmetrics.Metric`.

    Raises:
        ValueError: a class id is given twice.
    """

    full_state_update = False
    higher_is_better = True
    intersection: Tensor
    union: Tensor
    episodes: Tensor

    def __init__(self, class_ids: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_ids = [int(class_id) for class_id in class_ids]
        self._row = {class_id: i for i, class_id in enumerate(self.class_ids)}
        if len(self._row) != len(self.class_ids):
            raise ValueError(f"class ids {self.class_ids} hold one twice; each class is counted once.")
        size = len(self.class_ids)
        for name, shape in (("intersection", (size, 2)), ("union", (size, 2)), ("episodes", (size,))):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, pred: Tensor | Sequence[Tensor], truth: Tensor | Sequence[Tensor], class_ids: Tensor | Sequence[int]
    ) -> None:
        """Add a batch of episodes.

        Args:
            pred: (B, H, W) or B tensors (H, W): bool or nonzero = object.
            truth: the same in {0, 1, 255}.
            class_ids: B class ids.

        Raises:
            ValueError: lengths or shapes differ, or a class is not one of the metric's.
        """
        classes = [int(class_id) for class_id in class_ids]
        if not len(pred) == len(truth) == len(classes):
            raise ValueError(
                f"got {len(pred)} predictions, {len(truth)} truths and {len(classes)} class ids; "
                "expected as many of each."
            )
        for one_pred, one_truth, class_id in zip(pred, truth, classes):
            self.add_counts(*intersection_union(one_pred, one_truth), class_id)

    def add_counts(self, intersection: Tensor, union: Tensor, class_id: int) -> None:
        """Add one episode that was counted before (by `intersection_union`).

        Raises:
            ValueError: the class is not one of the metric's.
        """
        if class_id not in self._row:
            raise ValueError(
                f"class {class_id} is not among the {len(self.class_ids)} classes of this metric; "
                "build it with the classes of the fold that is measured."
            )
        row = self._row[class_id]
        self._computed = None  # torchmetrics forgets an earlier result by itself in `update` alone
        self._update_count += 1
        self.intersection[row] += intersection.to(self.intersection.device)
        self.union[row] += union.to(self.union.device)
        self.episodes[row] += 1

    def compute(self) -> FewShotScore:
        """Scores over everything added so far, in all processes."""
        intersection, union = self.intersection.cpu().numpy(), self.union.cpu().numpy()
        counted = union[:, 1] > 0
        iou = intersection[:, 1] / np.maximum(union[:, 1], 1)
        pooled = _divide(intersection.sum(0), union.sum(0))
        return FewShotScore(
            miou=float(iou[counted].mean()) if counted.any() else float("nan"),
            fb_iou=float(pooled.mean()),
            per_class={c: float(iou[i]) for i, c in enumerate(self.class_ids) if counted[i]},
            undrawn=tuple(c for i, c in enumerate(self.class_ids) if not counted[i]),
            num_episodes=int(self.episodes.sum()),
        )


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
