"""Lightning data modules: one loader an epoch, drawn from (seed, epoch, i), so that a resumed run repeats nothing."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from fsdino.data.world.stream import SyntheticScenes


class EpochData(LightningDataModule):
    """Base of the data modules: loaders are rebuilt each epoch (`reload_dataloaders_every_n_epochs=1`).

    Args:
        batch_size: items a step and process.
        num_workers: loader processes; 0 loads in the training process.
    """

    def __init__(self, batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    @property
    def epoch(self) -> int:
        """The running epoch; 0 outside of a run."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    def loader(self, dataset: Dataset, **kwargs: Any) -> DataLoader:
        """A loader in order: the order was drawn when the data set was made."""
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers, shuffle=False, **kwargs)


class SceneData(EpochData):
    """Scenes of the embedded world's pretrain classes, for the tiny encoder and the tiny SAM.

    Args:
        epoch_length: scenes an epoch.
        val_length: scenes of the validation set.
        seed: the stream.
        batch_size: scenes a step and process.
        num_workers: loader processes.
        max_objects: masks kept of a scene, objects before clutter.
    """

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

    def train_dataloader(self) -> DataLoader:
        """Scenes of the running epoch."""
        return self.loader(self._scenes(self.epoch_length, self.seed), drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The same held-out scenes of the pretrain classes every time."""
        return self.loader(SyntheticScenes("pretrain", self.val_length, self.seed + 1_000_003, 0, self.max_objects))

    def _scenes(self, length: int, seed: int) -> SyntheticScenes:
        return SyntheticScenes("pretrain", length, seed, self.epoch, self.max_objects)
