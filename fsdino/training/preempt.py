"""A run that is asked to end (SIGTERM) in the middle of an epoch: a checkpoint on the way, and on from there."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed


class Preemption(Callback):
    """At SIGTERM all processes finish the same step, write one checkpoint, and end as at Ctrl+C.

    Clusters send the signal to some or all processes of a job, some time before they kill it.

    Args:
        folder: of the stage's checkpoints.
        every: steps between two looks at whether another process was told to end; a process alone looks at each.
    """

    def __init__(self, folder: str | Path, every: int = 8) -> None:
        self.folder, self.every = Path(folder), every
        self.asked = False
        self._before: Any = None
        self._group: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signal from Lightning, whose handler talks to the other processes in the middle of a step."""
        if trainer.world_size > 1 and self._group is None:
            # On the CPU, so that asking makes no GPU wait.
            self._group = distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the checkpoint and ends, once a process was asked to.

        Raises:
            KeyboardInterrupt: then.
        """
        done = batch_idx + 1
        # Gradients that are being accumulated are in no checkpoint; and the last step of an epoch has one of its own.
        if done % trainer.accumulate_grad_batches or done >= trainer.num_training_batches:
            return
        if not self._anyone_asked(trainer, done):
            return
        trainer.datamodule.cut = (trainer.current_epoch, done)  # type: ignore[attr-defined]
        # Every process takes part, the first one writes, and all wait for it.
        trainer.save_checkpoint(cut_file(self.folder, trainer.world_size))
        raise KeyboardInterrupt("asked to end")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets where an earlier start was cut: the epoch is whole."""
        trainer.datamodule.cut = None  # type: ignore[attr-defined]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signal back."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signal back."""
        self._give_back()

    def _note(self, *_: Any) -> None:
        self.asked = True

    def _anyone_asked(self, trainer: Trainer, done: int) -> bool:
        """Whether any process was asked to end; all of them get the same answer at the same step."""
        if trainer.world_size == 1:
            return self.asked
        if done % self.every:
            return False
        asked = torch.tensor(int(self.asked))
        distributed.all_reduce(asked, op=distributed.ReduceOp.MAX, group=self._group)
        return bool(asked)

    def _give_back(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


def cut_file(folder: Path, processes: int) -> Path:
    """The checkpoint of a run of so many processes that was ended in the middle of an epoch."""
    return folder / f"cut-{processes}.ckpt"


def resume_from(folder: Path, last: Path, processes: int) -> Path | None:
    """The checkpoint to go on from: the newer one of the last whole epoch's and where the run was cut.

    Where another number of processes was cut, the epoch begins anew: its batches were shared in another way.
    """
    found = [path for path in (last, cut_file(folder, processes)) if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
