"""Scenes of the embedded world as training data, and the loop that the makers of the bundled weights share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from fsdino.data.world.stream import SyntheticScenes
from fsdino.training.callbacks import StageProgress, StepSeed
from fsdino.training.epoch_data import EpochData
from fsdino.training.fit import LAST, checkpoints

Precision = Literal["32-true", "bf16-mixed"]


class SceneData(EpochData):
    """Scenes of the embedded world's pretrain classes; of each, `max_objects` masks, objects before clutter."""

    def __init__(
        self,
        epoch_length: int = 3200,
        val_length: int = 256,
        seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 0,
        max_objects: int = 6,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.epoch_length, self.val_length, self.seed, self.max_objects = epoch_length, val_length, seed, max_objects

    def train_dataset(self, epoch: int) -> Dataset:
        """Scenes of an epoch."""
        return SyntheticScenes("pretrain", self.epoch_length, self.seed, epoch, self.max_objects)

    def val_dataloader(self) -> DataLoader:
        """The same held-out scenes of the pretrain classes every time."""
        # Another stream than that of training, whatever the epoch.
        return self.loader(SyntheticScenes("pretrain", self.val_length, self.seed + 1_000_003, 0, self.max_objects))


def fit_scenes(module: LightningModule, data: SceneData, epochs: int, folder: str, precision: Precision) -> None:
    """Fit a module on scenes, from its last checkpoint where there is one."""
    last = Path(folder) / LAST
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        precision=precision,
        max_epochs=epochs,
        gradient_clip_val=1.0,
        check_val_every_n_epoch=2,
        num_sanity_val_steps=0,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[StageProgress(Path(folder).name), StepSeed(data.seed), *checkpoints(Path(folder), None)],
    )
    resumed: Any = last if last.is_file() else None
    trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
