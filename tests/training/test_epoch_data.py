"""Loaders that outlive an epoch: what they hand out is what (seed, epoch) alone decides, with any number of workers."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from fsdino.training.distill import DistillPart
from fsdino.training.distill_data import BLOCKS, DistillData, shuffled
from fsdino.training.epoch_data import EpochData
from tests.training.small import image_list


class Numbers(Dataset):
    """100 epoch + i in a shuffled order."""

    def __init__(self, epoch, length):
        self.values = 100 * epoch + torch.randperm(length, generator=torch.Generator().manual_seed(epoch))

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return self.values[i]


class NumberData(EpochData):
    length = 11

    def train_dataset(self, epoch):
        return Numbers(epoch, self.length)


def running(epoch, rank=0, world=1, device="cpu"):
    """What a data module asks of Lightning's trainer."""
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=world, max_epochs=9, strategy=strategy)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_loader_hands_out_every_epoch_and_its_workers_stay(workers):
    data = NumberData(batch_size=2, num_workers=workers)
    data.trainer = running(0)
    loader, iterators = data.train_dataloader(), set()
    for epoch in (0, 1, 4):
        data.trainer.current_epoch = epoch
        batches = [batch.tolist() for batch in loader]
        assert torch.tensor(batches).flatten().tolist() == Numbers(epoch, 11).values[:10].tolist() and len(loader) == 5
        iterators.add(id(loader._iterator) if workers else 0)
    assert len(iterators) == 1
    # In the middle of an epoch; the next one is whole again.
    data.cut = (4, 3)
    assert [batch.tolist() for batch in loader] == batches[3:]
    data.trainer.current_epoch = 5
    assert len(list(loader)) == 5
    resumed = NumberData()
    resumed.load_state_dict(data.state_dict())
    assert resumed.cut == (4, 3)


def test_processes_share_an_epoch_as_lightning_s_own_sampler_does():
    parts = []
    for rank in (0, 1):
        data = NumberData(batch_size=3)
        data.trainer = running(2, rank, 2)
        parts.append(torch.cat(list(data.train_dataloader())).tolist())
    order = Numbers(2, 11).values.tolist()
    assert parts == [order[::2], [*order[1::2], order[0]]]  # filled up from the start


def test_memory_is_pinned_for_a_gpu_alone():
    data = NumberData(num_workers=1, prefetch=5)
    assert not data.train_dataloader().pin_memory and data.train_dataloader().prefetch_factor == 5
    data.trainer = running(0, device="cuda")
    assert data.train_dataloader().pin_memory and data.loader(Numbers(0, 4)).pin_memory


def test_distillation_with_workers_is_that_without():
    part = DistillPart(sizes=[8, 16], batch_size=2, val_count=2, epoch_length=4)
    seen = []
    for workers in (0, 2):
        data = DistillData(image_list(), part, teacher_size=8, hflip=True, num_workers=workers, seed=3)
        data.trainer = running(0)
        loader = data.train_dataloader()
        seen.append([])
        for epoch in (0, 8):
            data.trainer.current_epoch = epoch
            seen[-1] += [batch["image"] for batch in loader]
    assert [batch.shape[-1] for batch in seen[0]] == [8, 8, 16, 16]
    assert all(torch.equal(a, b) for a, b in zip(*seen))


def test_shuffled_by_blocks_every_image_comes_once_and_neighbours_stay_near():
    def generator():
        return torch.Generator().manual_seed(0)

    whole = shuffled(1003, None, generator())
    assert torch.equal(whole, torch.randperm(1003, generator=generator()))
    places = shuffled(1003, 4, generator())
    assert sorted(places.tolist()) == list(range(1003)) and not torch.equal(places, whole)
    for window in places.split(4 * BLOCKS):
        assert len(set((window // 4).tolist())) <= BLOCKS + 1
