"""Lightning data modules: one loader an epoch, drawn from (seed, epoch, i), so that a resumed run repeats nothing."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset


class EpochData(LightningDataModule):
    """Base of the data modules: loaders are rebuilt each epoch (`reload_dataloaders_every_n_epochs=1`)."""

    def __init__(self, batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    @property
    def epoch(self) -> int:
        """The running epoch; 0 outside of a run."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    def loader(self, dataset: Dataset, **kwargs: Any) -> DataLoader:
        """A loader in the data set's own order."""
        # Never shuffled: the order was drawn from (seed, epoch) when the data set was made.
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers, shuffle=False, **kwargs)
