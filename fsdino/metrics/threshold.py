"""The probability above which a pixel is object, chosen on base classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

CUTS = tuple(round(0.05 * k, 2) for k in range(1, 20))


class CutCurve(Metric):
    """Few-shot mIoU at every cut of a grid, from summed counts (so processes and batches do not matter).

    Args:
        class_ids: classes that may come.
        cuts: ascending probabilities in (0, 1).
        kwargs: for `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    hits: Tensor
    predicted: Tensor
    positives: Tensor
    pixels: Tensor

    def __init__(self, class_ids: Sequence[int], cuts: Sequence[float] = CUTS, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._row = {class_id: row for row, class_id in enumerate(class_ids)}
        self.grid = tuple(cuts)
        self.register_buffer("cuts", torch.tensor(list(cuts)), persistent=False)
        shape = (len(self._row), len(cuts))
        self.add_state("hits", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("predicted", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("positives", torch.zeros(shape[0], 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros(shape[0], 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probs: Tensor, truth: Tensor, class_ids: Tensor) -> None:
        """Add episodes.

        Args:
            probs: (B, H, W) in [0, 1].
            truth: (B, H, W) in {0, 1, 255}; 255 counts nowhere.
            class_ids: (B,).
        """
        for one, mask, class_id in zip(probs, truth, class_ids.tolist()):
            row = self._row[class_id]
            # bucket k holds the pixels that pass the first k cuts; sums from the right count those that pass each
            passed = torch.bucketize(one, self.cuts)  # type: ignore[arg-type]
            for state, chosen in ((self.hits, mask == 1), (self.predicted, (mask == 1) | (mask == 0))):
                counts = torch.bincount(passed[chosen], minlength=state.shape[1] + 1)
                state[row] += counts.flip(0).cumsum(0).flip(0)[1:]
            self.positives[row] += (mask == 1).sum()
            self.pixels[row] += ((mask == 1) | (mask == 0)).sum()

    def compute(self) -> Tensor:
        """(2, cuts): at each cut mIoU over the classes that came, and FB-IoU over all of them together."""
        union = self.positives + self.predicted - self.hits
        counted = self.positives[:, 0] > 0
        if not bool(counted.any()):
            return torch.zeros(2, self.hits.shape[1])
        foreground = self.hits.sum(0) / union.sum(0).clamp(min=1)
        background = (self.pixels - union).sum(0) / (self.pixels - self.hits).sum(0).clamp(min=1)
        return torch.stack([(self.hits / union.clamp(min=1))[counted].mean(0), (foreground + background) / 2])

    def best(self) -> tuple[float, float]:
        """The cut of the best mIoU, of equals the middle one, and that mIoU."""
        curve = self.compute()[0]
        top = (curve >= curve.max() - 1e-9).nonzero()[:, 0]
        return self.grid[int(top[len(top) // 2])], float(curve.max())

    def at(self, cut: float) -> dict[str, float]:
        """`miou` and `fb_iou` at one of the cuts."""
        miou, fb_iou = self.compute()[:, self.grid.index(cut)].tolist()
        return {"miou": miou, "fb_iou": fb_iou}
