"""Lightning data modules: one loader an epoch, drawn from (seed, epoch, i), so that a resumed run repeats nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class OwnShare(DistributedSampler):
    """A process's items of an epoch: every so many of the data set's order, without the first `start` of them.

    Processes that take steps of b items take together what one process with as many times b would.
    """

    def __init__(self, dataset: Dataset, processes: int, rank: int, start: int) -> None:
        super().__init__(dataset, processes, rank, shuffle=False)
        self.start = start

    def __iter__(self) -> Iterator[int]:
        # The length stays that of the whole epoch: Lightning counts from the step at which it goes on.
        return iter(list(super().__iter__())[self.start :])


class EpochData(LightningDataModule):
    """Base of the data modules: loaders are rebuilt each epoch (`reload_dataloaders_every_n_epochs=1`).

    Attributes:
        cut: (epoch, steps) that an earlier start had done when it was ended in the middle of an epoch.
    """

    def __init__(self, batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.cut: tuple[int, int] | None = None

    @property
    def epoch(self) -> int:
        """The running epoch; 0 outside of a run."""
        return self.trainer.current_epoch if self.trainer is not None else 0

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch was cut, for the checkpoint."""
        return {"cut": self.cut}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        self.cut = state_dict["cut"]

    def loader(self, dataset: Dataset, **kwargs: Any) -> DataLoader:
        """A loader in the data set's own order; where training goes on in the middle of an epoch, of its rest."""
        trainer, cut = self.trainer, self.cut
        # Of the loaders, that of training alone leaves out an incomplete batch.
        if trainer is not None and kwargs.get("drop_last"):
            start = cut[1] * self.batch_size if cut is not None and cut[0] == self.epoch else 0
            # Lightning's own sampler would shuffle what several processes train on.
            if start or trainer.world_size > 1:
                kwargs["sampler"] = OwnShare(dataset, trainer.world_size, trainer.global_rank, start)
        # Never shuffled: the order was drawn from (seed, epoch) when the data set was made.
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers, shuffle=False, **kwargs)
