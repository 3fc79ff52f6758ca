"""The bar, the speed, the strips, and the seed of each step."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from fsdino.base.result import Segmentation
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.training.callbacks import EpisodeStrips, RateMeter, StageProgress, StepSeed, Throughput, batch_images
from fsdino.training.fit import LAST, checkpoints
from tests.data.small import MemoryIndex
from tests.training.small import small_trainer


class Linear(LightningModule):
    """The smallest module that trains and predicts."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        loss = self.net(batch["image"].flatten(1)).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def predict_step(self, batch, batch_idx):
        return self.net(batch["image"].flatten(1))


def loader(batches=4):
    return DataLoader([{"image": torch.ones(1, 2, 2)} for _ in range(3 * batches)], batch_size=3)


def test_bar_says_stage_loss_speed_and_rest(tmp_path):
    stream = io.StringIO()
    bar = StageProgress("distill", stream=stream)
    trainer = small_trainer(tmp_path, max_epochs=2, callbacks=[bar], enable_progress_bar=True)
    trainer.fit(Linear(), loader())
    trainer.predict(Linear(), loader())
    lines = stream.getvalue().replace("\r", "\n").split("\n")
    last = [line for line in lines if "loss" in line][-1]
    assert last.startswith("distill 2 px 100%")
    for part in ("loss ", "images/s", "left"):
        assert part in last
    assert any(line.startswith("distill 100%") for line in lines)  # predict knows no image size


def test_bar_can_be_silent(tmp_path):
    stream = io.StringIO()
    bar = StageProgress("train", unit="episodes", stream=stream)
    bar.disable()
    small_trainer(tmp_path, max_epochs=1, callbacks=[bar], enable_progress_bar=True).fit(Linear(), loader())
    assert stream.getvalue() == ""
    bar.enable()
    small_trainer(tmp_path, max_epochs=1, callbacks=[bar], enable_progress_bar=True).fit(Linear(), loader())
    assert "episodes/s" in stream.getvalue()


def test_bar_closes_when_a_run_breaks(tmp_path):
    class Broken(Linear):
        def training_step(self, batch, batch_idx):
            raise KeyError("x")

    bar = StageProgress("train", stream=io.StringIO())
    with pytest.raises(KeyError):
        small_trainer(tmp_path, max_epochs=1, callbacks=[bar], enable_progress_bar=True).fit(Broken(), loader())
    assert bar._bar is None


def test_speed_is_logged(tmp_path):
    trainer = small_trainer(tmp_path, max_epochs=1, callbacks=[Throughput(every_n_steps=1)])
    trainer.fit(Linear(), loader())
    assert trainer.callback_metrics["train/images_per_s"] > 0


def test_rate(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr("fsdino.training.callbacks.time.perf_counter", lambda: next(now))
    meter = RateMeter(window=2)
    assert [meter.update(10) for _ in range(4)] == [0.0, 10.0, 20 / 3, 20 / 3]
    meter.pause()
    assert not meter._steps


def test_images_of_a_batch():
    assert batch_images({"name": "x", "image": torch.zeros(5, 3, 2, 2)}) == 5
    assert batch_images([torch.zeros(2, 3)]) == 2
    assert batch_images(torch.tensor(1.0)) == 1
    assert batch_images("nothing") == 0


class Everything:
    """A method that answers with the whole image."""

    def remember(self, references):
        return references

    def segment(self, memory, image):
        ones = np.ones(image.shape[:2], np.float32)
        return Segmentation(mask=ones > 0, probs=ones, score=0.5, present=True)


def test_strips_are_drawn_after_validation(tmp_path):
    episodes = EpisodeList.draw(MemoryIndex(), 0, num_episodes=2)
    callback = EpisodeStrips(MemoryIndex(), episodes, tmp_path / "images", count=1)
    assert len(callback.episodes) == 1

    class Validated(Linear):
        model = Everything()

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", 0.0)

    trainer = small_trainer(tmp_path, max_epochs=1, callbacks=[callback], num_sanity_val_steps=1)
    trainer.fit(Validated(), loader(1), loader(1))
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["epoch-000.png"]


def test_every_step_epoch_and_process_is_seeded_anew():
    def drawn(*where, seed=3):
        trainer = SimpleNamespace(**dict(zip(("current_epoch", "global_rank"), where)))
        StepSeed(seed).on_train_batch_start(trainer, None, None, where[2])
        return float(torch.rand(()))

    places = [(epoch, rank, step) for epoch in range(2) for rank in range(2) for step in range(2)]
    assert len({drawn(*place) for place in places} | {drawn(0, 0, 0, seed=4)}) == 9
    assert drawn(1, 0, 1) == drawn(1, 0, 1)


class Dropping(LightningModule):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(8, 1)
        nn.init.ones_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def training_step(self, batch, batch_idx):
        return self.line(nn.functional.dropout(batch, 0.5)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_resumed_run_drops_the_same(tmp_path):
    def fit(folder, epochs, resume=None):
        module = Dropping()
        callbacks = [StepSeed(3), *checkpoints(folder, None)]
        trainer = small_trainer(folder, max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(module, DataLoader(torch.ones(6, 8), batch_size=2), ckpt_path=resume)
        return module.line.weight.detach()

    whole = fit(tmp_path / "whole", 3)
    fit(tmp_path / "parts", 1)
    torch.rand(17)  # another process stands elsewhere in its stream
    assert torch.equal(fit(tmp_path / "parts", 3, tmp_path / "parts" / LAST), whole)
