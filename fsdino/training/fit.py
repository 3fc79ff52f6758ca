"""Fitting one stage of a run with Lightning: trainers, checkpoints, and going on where an earlier start was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from fsdino.training.callbacks import StageProgress, StepSeed, Throughput
from fsdino.training.loggers import LogPart, make_loggers

LAST, BEST = "last.ckpt", "best.ckpt"


@dataclass(frozen=True)
class Fitter:
    """Makes the Trainers of one run and fits its stages, each in a folder of its own.

    Args:
        options: for Lightning's Trainer; they come last and so win.
        config: the resolved recipe, for W&B.
    """

    folder: Path
    name: str
    options: dict[str, Any]
    log: LogPart
    seed: int
    config: dict[str, Any]

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
        data: LightningDataModule,
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
        """
        folder, done = self.folder / stage / "checkpoints", self.folder / stage / "done"
        last, best = folder / LAST, folder / BEST
        if not done.is_file():
            trainer = self.trainer(
                stage,
                unit,
                max_epochs=epochs,
                # What an epoch draws depends on its number, so its loader is made when it begins.
                reload_dataloaders_every_n_epochs=1,
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
                ],
            )
            # Best and last lie beside each other, so a run killed at any moment goes on from its last whole epoch.
            trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=True)
            # Only now: a stage that was stopped has checkpoints as well, and must not be taken for a whole one.
            done.write_text("finished\n")
        return best if best.is_file() else last


def checkpoints(folder: Path, monitor: str | None) -> list[ModelCheckpoint]:
    """The last epoch always, to resume from; the best on held-out base classes where there is something to watch."""
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    last = ModelCheckpoint(folder, filename="last", save_top_k=1, **options)
    if monitor is None:
        return [last]
    # The best comes first: the last, from which a run goes on, then knows of it whenever the run is killed.
    return [ModelCheckpoint(folder, filename="best", monitor=monitor, mode="max", **options), last]
