"""Fitting one stage of a run with Lightning: trainers, checkpoints, and going on where an earlier start was stopped."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fsdino.training.callbacks import StageProgress, StepSeed, Throughput
from fsdino.training.compute import ComputePart, compile_frozen_
from fsdino.training.epoch_data import EpochData
from fsdino.training.loggers import LogPart, make_loggers
from fsdino.training.preempt import Preemption, resume_from

LAST, BEST = "last.ckpt", "best.ckpt"
# How gloo and NCCL say that they wait for a process that is gone.
LOST = re.compile(r"closed by peer|timed? ?out|connection (reset|refused)|remote process|NCCL|gloo", re.I)


@dataclass(frozen=True)
class Fitter:
    """Makes the Trainers of one run and fits its stages, each in a folder of its own.

    Args:
        options: for Lightning's Trainer; they come last and so win.
        config: the resolved recipe, for W&B.
        compute: how it is computed.
    """

    folder: Path
    name: str
    options: dict[str, Any]
    log: LogPart
    seed: int
    config: dict[str, Any]
    compute: ComputePart = field(default_factory=ComputePart)

    def trainer(self, stage: str, unit: str = "images", **stage_options: Any) -> Trainer:
        """A Trainer for one stage."""
        options: dict[str, Any] = {
            "accelerator": "auto",
            "devices": 1,
            "enable_model_summary": False,
            "logger": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 10,
        }
        if _several(self.options):
            options["strategy"] = DDPStrategy(timeout=timedelta(minutes=self.compute.timeout))
        callbacks = stage_options.pop("callbacks", [])
        if self.options.get("enable_progress_bar", True):
            callbacks = [StageProgress(stage, unit), *callbacks]
        return Trainer(callbacks=callbacks, **{**options, **stage_options, **self.options})

    def loggers(self, stage: str) -> list[Logger]:
        """`metrics.csv` in the stage's folder, and W&B where it is wanted."""
        name = f"{self.name}-{self.folder.name}-{stage}"
        return make_loggers(self.folder / stage, name, self.log, self.config, group=self.name)

    def fit(
        self,
        stage: str,
        module: LightningModule,
        data: EpochData,
        epochs: int,
        *,
        unit: str = "images",
        monitor: str | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Path:
        """Train a stage, or go on with it.

        Args:
            stage: name of its folder and of its bar.
            epochs: epochs in all.
            unit: what the bar counts.
            monitor: metric that picks the best checkpoint; None keeps the last alone.

        Returns:
            The best checkpoint, or the last where nothing picks one.

        Raises:
            ConnectionError: another process of a distributed run ended, or did not answer in time.
            KeyboardInterrupt: the process was asked to end.
            ValueError: the run was begun by a number of processes whose steps these cannot take.
        """
        folder, done = self.folder / stage / "checkpoints", self.folder / stage / "done"
        last, best = folder / LAST, folder / BEST
        if not done.is_file():
            preemption = Preemption(folder)
            trainer = self.trainer(
                stage,
                unit,
                max_epochs=epochs,
                enable_checkpointing=True,
                gradient_clip_val=1.0,
                logger=self.loggers(stage),
                callbacks=[
                    Throughput(),
                    # Lightning's monitor refuses to run without a logger.
                    *([] if self.options.get("logger") is False else [LearningRateMonitor("step")]),
                    StepSeed(self.seed),
                    *callbacks,
                    *checkpoints(folder, monitor),
                    preemption,
                ],
            )
            self._find_batch_size(stage, module, data, fresh=not last.is_file() and trainer.world_size == 1)
            data.batch_size = same_step(self.folder / stage, data.batch_size, trainer.world_size)
            if self.compute.compile:
                compile_frozen_(module)
            # Best and last lie beside each other, so a run killed at any moment goes on from its last whole epoch.
            start = resume_from(folder, last, trainer.world_size)
            # The loader is made anew, at the step where the epoch was cut; Lightning looks for another sign of that.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
            with self.hearing(stage, trainer):
                trainer.fit(module, data, ckpt_path=start, weights_only=True)
            for file in folder.glob("cut-*.ckpt") if trainer.is_global_zero else ():
                file.unlink()
            # Only now: a stage that was stopped has checkpoints as well, and must not be taken for a whole one.
            done.write_text("finished\n")
            if preemption.asked:  # in the last step: the stage is whole, the run is not
                raise KeyboardInterrupt("asked to end")
        return best if best.is_file() else last

    @contextmanager
    def hearing(self, stage: str, trainer: Trainer) -> Iterator[None]:
        """Says in a sentence that the other processes of a distributed run are no longer heard.

        Raises:
            ConnectionError: another process ended, or did not answer in time.
        """
        try:
            yield
        except RuntimeError as error:
            if trainer.world_size == 1 or not LOST.search(str(error)):
                raise
            where = f"process {trainer.global_rank} of {trainer.world_size} saw: {str(error).splitlines()[0]}"
            raise ConnectionError(
                f"stage {stage}: another process of this run ended, or did not answer for {self.compute.timeout:g} "
                f"minutes ({where}); start all of them again with the same command, and the run goes on from its "
                "last checkpoint."
            ) from error

    def _find_batch_size(self, stage: str, module: LightningModule, data: EpochData, fresh: bool) -> None:
        """Give the data the batch that was found to fit, now or at an earlier start."""
        noted = self.folder / stage / "batch_size.txt"
        if self.compute.find_batch_size and fresh and not noted.is_file():
            noted.parent.mkdir(parents=True, exist_ok=True)
            once: dict[str, Any] = {
                "max_epochs": 1,
                "default_root_dir": noted.parent,
                "reload_dataloaders_every_n_epochs": 1,
            }
            trainer = self.trainer(f"{stage}, batch size", **once)
            found = Tuner(trainer).scale_batch_size(
                module, datamodule=data, init_val=data.batch_size, steps_per_trial=2
            )
            noted.write_text(f"{found}\n")
            print(f"stage {stage}: batch_size {found} was found to fit", flush=True)
        # A run that goes on must take the same steps, whatever fits by now.
        if noted.is_file():
            data.batch_size = int(noted.read_text())


def _several(options: dict[str, Any]) -> bool:
    """Whether Trainer's options ask for several processes without saying how they work together."""
    devices = str(options.get("devices", 1))
    several = (devices.isdigit() and int(devices) > 1) or int(options.get("num_nodes", 1)) > 1
    return several and options.get("strategy", "auto") == "auto"


def same_step(folder: Path, batch_size: int, processes: int) -> int:
    """The batch of a process with which a stage goes on by steps as large as those that it was begun with.

    Raises:
        ValueError: if the step cannot be shared evenly among so many processes.
    """
    noted = folder / "processes.txt"
    # Learning rate and schedule belong to the step, so it stays what it was when a run goes on with other machines.
    step = batch_size * (int(noted.read_text()) if noted.is_file() else processes)
    if step % processes:
        raise ValueError(
            f"this run was begun with steps of {step} items, which {processes} processes cannot share evenly; take a "
            f"number of processes that divides {step}, or give the run another name."
        )
    if not noted.is_file() and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        noted.write_text(f"{processes}\n")
    return step // processes


def checkpoints(folder: Path, monitor: str | None) -> list[ModelCheckpoint]:
    """The last epoch always, to resume from; the best on held-out base classes where there is something to watch."""
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    last = ModelCheckpoint(folder, filename="last", save_top_k=1, **options)
    if monitor is None:
        return [last]
    # The best comes first: the last, from which a run goes on, then knows of it whenever the run is killed.
    return [ModelCheckpoint(folder, filename="best", monitor=monitor, mode="max", **options), last]
