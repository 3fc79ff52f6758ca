"""How an evaluation is computed and what it shows meanwhile: processes, threads, loaders, a bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TextIO

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from fsdino.base.ranges import Batch, Devices, Workers, check_fields
from fsdino.evaluation.measure import EvaluateModule
from fsdino.training.callbacks import StageProgress, batch_images

Device = Literal["auto", "cpu", "cuda"]
# How torch hands on what went wrong in a loader's process, and in one of several that share the work.
HANDED_ON = ("Original Traceback", "terminated with the following error")
EXPECTED = ("ValueError", "DataSetError", "FileNotFoundError")


def plain_error(error: Exception) -> Exception:
    """The sentence about the data that was raised in another process, as a ValueError; any other error as it is."""
    text = str(error).rstrip()
    if not any(mark in text for mark in HANDED_ON):
        return error
    kind, _, sentence = text.splitlines()[-1].partition(": ")
    return ValueError(sentence) if kind.rpartition(".")[2] in EXPECTED and sentence else error


class Threads(Callback):
    """Gives every process its number of CPU threads."""

    def __init__(self, count: int) -> None:
        self.count = count

    def setup(self, *_: Any, **__: Any) -> None:
        """Sets it in the process that runs."""
        # In `setup`, because Lightning gives a process it starts another number just before.
        torch.set_num_threads(self.count)


class EvaluationProgress(StageProgress):
    """One bar over a list, of which some are done: `fold 0  45% |███   | mIoU 47.3 · 21 episodes/s · 0:12 left`."""

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
        # The first process counts for all, and the last batches of the others may be smaller: never beyond the total.
        room = self.total - int(self._bar.n if self._bar is not None else 0)
        # The mIoU is NaN before anything was counted.
        parts = [f"mIoU {100 * miou:.1f}"] if miou == miou else []
        self._advance(min(episodes, room), episodes, parts, None)


@dataclass(frozen=True)
class Work:
    """How an evaluation is computed; none of it changes a count, but for rounding where that is said.

    Args:
        devices: processes (on a GPU one each) that share a list.
        device: cpu, cuda, or auto: a GPU where there is one.
        threads: CPU threads of each process; with another number than 1 last digits may differ.
        num_workers: loader processes of each.
        batch_size: episodes loaded at a time, at least `batch`.
        batch: episodes that go through the network together, which saves a fifth on a CPU and is meant for GPUs; with
            another number than 1 last digits may differ.
    """

    devices: Devices = 1
    device: Device = "auto"
    threads: Devices = 1
    num_workers: Workers = 0
    batch_size: Batch = 1
    batch: Batch = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def trainer(self, progress: EvaluationProgress) -> Trainer:
        """Lightning's Trainer for one list.

        Raises:
            ValueError: there is no such device here.
        """
        on_gpu = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        if on_gpu and torch.cuda.device_count() < self.devices:
            raise ValueError(
                f"--device cuda --devices {self.devices} was asked for, this machine has {torch.cuda.device_count()} "
                "GPU(s); use fewer, or --device cpu."
            )
        # A fork is quick, but neither a GPU's state nor the threads of the arithmetic survive it.
        many = "ddp_spawn" if on_gpu or self.threads > 1 else "ddp_fork"
        return Trainer(
            accelerator="gpu" if on_gpu else "cpu",
            devices=self.devices,
            strategy="auto" if self.devices == 1 else many,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[Threads(self.threads), progress],
        )
