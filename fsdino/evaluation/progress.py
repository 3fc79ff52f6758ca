"""The bar of an evaluation: episodes done, the running mIoU, the speed."""

from __future__ import annotations

from typing import Any, TextIO

from lightning import LightningModule, Trainer

from fsdino.evaluation.measure import EvaluateModule
from fsdino.training.callbacks import StageProgress, batch_images


class EvaluationProgress(StageProgress):
    """One bar over a list: `fold 0  45% |███   | mIoU 47.3 · 21 episodes/s · 0:12 left`.

    The mIoU is that of this process's episodes so far; with several processes, the first one's share.

    Args:
        stage: what the bar is called.
        total: episodes of the list.
        done: of them, those that an earlier run has measured.
        stream: where it is drawn; None = stderr.
    """

    def __init__(self, stage: str, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        super().__init__(stage, "episodes", stream)
        self.total, self.done = total, done

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar where an earlier run stopped."""
        self._start(self.total, self.done)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Moves the bar by the episodes of a batch, times the processes."""
        assert isinstance(pl_module, EvaluateModule)
        miou = pl_module.running.compute().miou
        episodes = batch_images(batch) * trainer.world_size
        room = self.total - int(self._bar.n if self._bar is not None else 0)
        parts = [f"mIoU {100 * miou:.1f}"] if miou == miou else []  # NaN before anything was counted
        self._advance(min(episodes, room), episodes, parts, None)
