"""What the processes of a distributed run do once among them."""

import time
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from fsdino.base.processes import own_items, write_once


def _process(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=2)

    def write() -> None:
        time.sleep(0.2)  # the other process must wait for what it goes on with
        (folder / f"written-by-{rank}").touch()

    write_once(write)
    (folder / f"{rank}-saw-{len(list(folder.glob('written-*')))}").touch()
    distributed.destroy_process_group()


def test_one_process_writes_and_the_other_waits(tmp_path: Path) -> None:
    multiprocessing.start_processes(_process, (tmp_path,), nprocs=2, start_method="fork")
    names = {path.name for path in tmp_path.iterdir()} - {"meeting"}
    assert names == {"written-by-0", "0-saw-1", "1-saw-1"}


def test_without_a_distributed_run_everything_is_written() -> None:
    written: list[int] = []
    write_once(lambda: written.append(1))
    assert written == [1]


def test_items_belong_to_one_process_each() -> None:
    first, second = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 0])  # five items; the last is handed out again
    assert own_items(first, 0, 2).tolist() == [True] * 3 and own_items(second, 1, 2).tolist() == [True, True, False]
