"""Lightning data modules whose items are drawn from (seed, epoch, i), so that a resumed run repeats nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class EpochItems(Dataset):
    """Items (epoch, i) of the data set that `make` gives for an epoch, all of `length`; the last one is kept.

    The epoch comes with every index, so it reaches worker processes that outlive an epoch.
    """

    def __init__(self, make: Callable[[int], Dataset], length: int) -> None:
        self.make, self.length = make, length
        self._made: tuple[int, Dataset] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, i = key
        if self._made is None or self._made[0] != epoch:
            self._made = epoch, self.make(epoch)
        return self._made[1][i]


class EpochSampler(DistributedSampler):
    """This process's items of the running epoch, in the data set's own order, as (epoch, i).

    Args:
        running: asked whenever an epoch begins: its number, and how many of this process's items are done already.
        world: number of processes; each takes every `world`-th item from its rank on.
    """

    # A distributed sampler, since Lightning puts one of its own in the place of any other.
    def __init__(self, length: int, running: Callable[[], tuple[int, int]], rank: int = 0, world: int = 1) -> None:
        super().__init__(range(length), world, rank, shuffle=False)  # type: ignore[arg-type]
        self.running = running

    def __iter__(self) -> Iterator[Any]:
        epoch, done = self.running()
        # The length stays that of the whole epoch: Lightning counts from the step at which it goes on.
        return iter([(epoch, i) for i in list(super().__iter__())[done:]])


class EpochData(LightningDataModule):
    """Base of the data modules: one loader for all epochs, whose workers stay. `collate` makes batches of items.

    Args:
        num_workers: loader processes, those of training for the whole stage.
        prefetch: batches that each of them makes ahead.

    Attributes:
        cut: (epoch, steps) that an earlier start had done when it was ended in the middle of an epoch.
        max_epochs: of the run.
    """

    collate: Callable[[Any], Any] | None = None
    max_epochs = 1

    def __init__(self, batch_size: int = 32, num_workers: int = 0, prefetch: int = 2) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.prefetch = batch_size, num_workers, prefetch
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

    def train_dataset(self, epoch: int) -> Dataset:
        """The items of an epoch in their order; as many in every epoch."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        """The items of the running epoch, whichever that is when it begins, without the rest of a batch."""
        trainer = self.trainer
        if trainer is not None:
            self.max_epochs = trainer.max_epochs or 1
        # Worker processes get the module without its trainer, which cannot be sent to them.
        sent = copy(self)
        sent.trainer = None
        items = EpochItems(sent.train_dataset, len(sent.train_dataset(self.epoch)))  # type: ignore[arg-type]
        rank, world = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        sampler = EpochSampler(len(items), self._running, rank, world)
        stay = self.num_workers > 0
        return DataLoader(items, sampler=sampler, drop_last=True, persistent_workers=stay, **self._options())

    def loader(self, dataset: Dataset) -> DataLoader:
        """A loader over a fixed data set, in its own order."""
        return DataLoader(dataset, shuffle=False, **self._options())

    def _running(self) -> tuple[int, int]:
        epoch, steps = self.cut or (-1, 0)
        return self.epoch, steps * self.batch_size if epoch == self.epoch else 0

    def _options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "prefetch_factor": self.prefetch if self.num_workers > 0 else None,
            "collate_fn": self.collate,
            # A GPU copies from pages that stay in place while it computes; they are scarce, so for nothing else.
            "pin_memory": self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        }
