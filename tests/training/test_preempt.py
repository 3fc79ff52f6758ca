"""SIGTERM in the middle of an epoch: a checkpoint there, and the same weights in the end."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from fsdino.base.storage import load, save
from fsdino.training.compute import ComputePart, compile_frozen_
from fsdino.training.distill import DistillModule, DistillPart
from fsdino.training.distill_data import DistillData
from fsdino.training.epoch_data import EpochSampler
from fsdino.training.fit import LAST, Fitter, same_step
from fsdino.training.loggers import LogPart
from fsdino.training.preempt import cut_file, resume_from
from tests.contract import assert_same, episodes
from tests.small import refuses, small_segmenter
from tests.training.small import image_list, small_teacher, student

FLAGS = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
PART = DistillPart(sizes=[14, 28], batch_size=2, val_count=0, mask_weight=0.5)


class Steps(Callback):
    """Notes each step's loss, and sends this process a signal after one of them."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.losses = at, dict[int, float]()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses[trainer.global_step] = float(outputs["loss"])
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def run(folder: Path, steps: Steps, **options) -> dict[str, torch.Tensor]:
    """Two epochs of four steps, or what is left of them."""
    fitter = Fitter(folder, "run", {**FLAGS, **options}, LogPart(wandb="off"), 0, {})
    module = DistillModule(student(), PART, small_teacher())
    data = DistillData(image_list(), PART, teacher_size=32, hflip=True)
    fitter.fit("distill", module, data, 2, callbacks=[steps])
    return module.state_dict()


@pytest.fixture(autouse=True)
def signals():
    """Lightning leaves Ctrl+C off after a run that was ended."""
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.slow
def test_the_batch_that_fits_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    step = DistillModule.training_step

    def limited(module: DistillModule, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        sizes.append(len(batch["image"]))
        if sizes[-1] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return step(module, batch, batch_idx)

    monkeypatch.setattr(DistillModule, "training_step", limited)
    part = replace(PART, batch_size=1, mask_weight=0.0)
    for find in (True, False):  # a second start takes what was found
        fitter = Fitter(tmp_path, "run", FLAGS, LogPart(wandb="off"), 0, {}, ComputePart(find_batch_size=find))
        module, data = DistillModule(student(), part, small_teacher()), DistillData(image_list(), part, teacher_size=32)
        fitter.fit("distill", module, data, 1)
        assert data.batch_size == 2
        (tmp_path / "distill" / "done").unlink()
    assert max(sizes) == 4 and sizes[-4:] == [2] * 4


@pytest.mark.parametrize("at", [2, 6])
def test_a_run_goes_on_in_the_middle_of_an_epoch_bit_for_bit(tmp_path: Path, at: int) -> None:
    whole, first, second = Steps(), Steps(at), Steps()
    expected = run(tmp_path / "whole", whole)
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", first)
    folder = tmp_path / "cut" / "distill" / "checkpoints"
    assert cut_file(folder, 1).is_file() and max(first.losses) == at
    found = run(tmp_path / "cut", second)
    assert min(second.losses) == at + 1 and first.losses | second.losses == whole.losses
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [path.name for path in folder.iterdir()] == [LAST]  # nothing is left of the cut


def test_asked_in_the_last_step_the_stage_is_finished_and_the_run_ends(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="asked to end"):
        run(tmp_path, Steps(8))
    again = Steps()
    run(tmp_path, again)
    assert not again.losses and (tmp_path / "distill" / "done").is_file()


def test_gradients_that_are_accumulated_are_finished_first(tmp_path: Path) -> None:
    whole, first, second = Steps(), Steps(1), Steps()
    expected = run(tmp_path / "whole", whole, accumulate_grad_batches=2)
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", first, accumulate_grad_batches=2)
    found = run(tmp_path / "cut", second, accumulate_grad_batches=2)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_newer_checkpoint_of_as_many_processes(tmp_path: Path) -> None:
    last = tmp_path / LAST
    assert resume_from(tmp_path, last, 2) is None
    for i, path in enumerate((cut_file(tmp_path, 2), last, cut_file(tmp_path, 4))):
        path.touch()
        os.utime(path, (i, i))
    assert resume_from(tmp_path, last, 2) == last and resume_from(tmp_path, last, 4) == cut_file(tmp_path, 4)
    assert resume_from(tmp_path, last, 1) == last


def test_shares_of_an_epoch_take_turns() -> None:
    parts = [EpochSampler(11, lambda: (3, 2), rank, 2) for rank in range(2)]  # epoch 3, two items each are done
    assert [[i for _, i in part] for part in parts] == [[4, 6, 8, 10], [5, 7, 9, 0]]
    assert {epoch for part in parts for epoch, _ in part} == {3}
    assert len(parts[0]) == 6  # of the whole epoch


def test_a_step_stays_as_large_with_another_number_of_processes(tmp_path: Path) -> None:
    assert same_step(tmp_path / "a", 8, 4) == 8  # begins with four
    assert [same_step(tmp_path / "a", 8, count) for count in (4, 1, 2, 8, 16)] == [8, 32, 16, 4, 2]
    refuses("steps of 32 items, which 3 processes cannot share evenly", same_step, tmp_path / "a", 8, 3)


def test_frozen_blocks_alone_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))  # which takes a minute
    model = small_segmenter()
    # The encoder's, and in episodes the adapter's.
    assert compile_frozen_(model) == 6 and compiled == [*model.encoder.backbone.blocks, *model.adapter.blocks]
    assert compile_frozen_(model.requires_grad_(True)) == 0
    assert compile_frozen_(small_segmenter(attention_taps=(0, 2))) == 4  # hooks would see nothing
    refuses("timeout: expected", ComputePart, timeout=-1)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_compute_the_same(tmp_path: Path) -> None:
    model = small_segmenter()
    inputs = episodes(model, 1, 1)
    expected = model(*inputs)
    compile_frozen_(model)
    assert_same(model(*inputs), expected, 1e-4)
    assert_same(load(save(model, tmp_path / "model"))(*inputs), expected, 0.0)  # nothing of it is saved
