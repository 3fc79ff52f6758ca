"""Distillation: cache or live teacher, coarse to fine, resumed bit for bit."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fsdino.base.checkpoint import CHECKPOINT_KEY
from fsdino.cache.image_list import ImageList
from fsdino.training.cache_writer import CachePart, OnGrid, write_cache
from fsdino.training.distill import DistillModule, DistillPart
from fsdino.training.distill_data import DistillData, epoch_size
from tests.small import refuses
from tests.training.small import Losses, image_list, noise, small_teacher, small_trainer, student


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return write_cache(small_teacher(), image_list(), CachePart(shard_size=3), folder=folder, views=("plain", "hflip"))


def fit(folder, data, module, callbacks=(), ckpt_path=None, epochs=3, **kwargs):
    trainer = small_trainer(folder, max_epochs=epochs, callbacks=list(callbacks), **kwargs)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def test_cache_and_live_teacher_give_the_same_losses(tmp_path, cache):
    cached, live = Losses(), Losses()
    part = DistillPart(sizes=[14, 28], batch_size=4, val_count=2)
    fit(tmp_path, DistillData(image_list(), part, cache=cache, hflip=True), DistillModule(student(), part), [cached])
    module = DistillModule(student(), part, small_teacher())
    fit(tmp_path, DistillData(image_list(), part, teacher_size=32, hflip=True), module, [live])
    assert len(cached.values) == 3 and cached.sizes == live.sizes == [14, 28, 28]
    assert cached.values == pytest.approx(live.values, rel=2e-4)


def test_a_cache_on_the_student_s_grid_gives_the_same_losses(tmp_path, cache):
    whole, small = Losses(), Losses()
    part = DistillPart(sizes=[28], batch_size=4, val_count=2)
    grid = student().embed(torch.zeros(1, 3, 28, 28)).shape[-1]
    assert grid < small_teacher().grid
    stored = write_cache(OnGrid(small_teacher(), grid), image_list(), CachePart(), folder=tmp_path / "small")
    for kept, losses in ((cache, whole), (stored, small)):
        fit(tmp_path, DistillData(image_list(), part, cache=kept), DistillModule(student(), part), [losses])
    assert stored[0].shape[-1] == grid and len(whole.values) == 3
    assert small.values == pytest.approx(whole.values, rel=1e-3)


def test_it_learns_and_touches_only_the_adapter(tmp_path, cache):
    part = DistillPart(sizes=[28], batch_size=4, val_count=4, epoch_length=8, lr=1e-2)
    module, losses = DistillModule(student(), part), Losses()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    data = DistillData(image_list(), part, cache=cache)
    trainer = fit(tmp_path, data, module, [losses], epochs=15)
    assert losses.values[-1] < 0.8 * losses.values[0]
    changed = {name.split(".")[0] for name, value in module.model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"adapter"}
    assert {"val/mse", "val/cosine", "train/loss", "train/size"} <= set(trainer.callback_metrics)
    assert data.size(14) == 28


@pytest.mark.parametrize("loss", ["mse", "cosine_smooth_l1"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, cache, loss):
    def run(name, resume=None, die_at_step=None):
        part = DistillPart(sizes=[14, 28], batch_size=2, val_count=0, loss=loss, mask_weight=0.5, optimizer="muon")
        data = DistillData(image_list(), part, cache=cache, hflip=True)
        module = DistillModule(student(), part, small_teacher())
        checkpoint = ModelCheckpoint(dirpath=tmp_path / name, save_last=True)
        callbacks = [checkpoint, Losses(die_at_step)]
        fit(tmp_path, data, module, callbacks, resume, epochs=3, enable_checkpointing=True)
        return module.state_dict()

    whole = run("whole")
    with pytest.raises(RuntimeError, match="killed"):
        run("cut", die_at_step=6)  # in the middle of the second epoch
    resumed = run("cut", resume=tmp_path / "cut" / "last.ckpt")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_checkpoint_holds_the_student_alone(tmp_path, cache):
    part = DistillPart(sizes=[28], batch_size=4, val_count=0, mask_weight=1.0)
    data = DistillData(image_list(), part, cache=cache)
    trainer = fit(tmp_path, data, DistillModule(student(), part, small_teacher()), epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved[CHECKPOINT_KEY]["stage"] == "distilled"
    assert {key.split(".")[0] for key in saved["state_dict"]} == {"model", "teacher_mean", "teacher_std"}
    assert not any("image_encoder" in key for key in saved["state_dict"])


def test_mask_loss_pulls_the_student_to_the_teachers_masks():
    teacher = small_teacher()
    module = DistillModule(student(), DistillPart(mask_weight=1.0), teacher)
    target = teacher.embed(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    embedding = torch.zeros_like(target).requires_grad_()
    loss = module.mask_loss(embedding, target)
    loss.backward()
    assert embedding.grad.abs().sum() > 0
    assert module.mask_loss(target, target) < loss
    assert all(p.grad is None for p in teacher.sam.parameters())


def test_statistics_are_the_teachers(tmp_path, cache):
    part = DistillPart(sizes=[28], batch_size=4, val_count=0, loss="cosine_smooth_l1")
    module = DistillModule(student(), part)
    fit(tmp_path, DistillData(image_list(), part, cache=cache), module, epochs=1)
    rows = torch.stack([cache[i].float() for i in range(8)]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(module.teacher_mean, rows.mean(1))
    torch.testing.assert_close(module.teacher_std, rows.std(1))


def test_sizes_follow_their_shares():
    sizes = [epoch_size(epoch, 8, [56, 84, 112], [1, 1, 2]) for epoch in range(8)]
    assert sizes == [56, 56, 84, 84, 112, 112, 112, 112]
    assert [epoch_size(e, 1, [56, 112], [1, 1]) for e in range(2)] == [112, 112]
    assert epoch_size(0, 6, [56], [0.1]) == 56


def test_epoch_order_depends_on_seed_and_epoch(cache):
    part = DistillPart(sizes=[28], batch_size=2, val_count=0, epoch_length=12)
    data = DistillData(image_list(), part, cache=cache, hflip=True)
    first, again, later = (data.train_dataset(epoch) for epoch in (0, 0, 1))
    assert first.places.tolist() == again.places.tolist() and first.flips.tolist() == again.flips.tolist()
    assert sorted(first.places[:8]) == list(range(8)) and True in first.flips and False in first.flips
    other = DistillData(image_list(), part, cache=cache, seed=1)
    assert len(first) == 12 and later.places.tolist() != first.places.tolist() != other.train_dataset(0).places.tolist()


def test_module_errors(cache):
    refuses("loss: expected 'mse' or .* got 'l1'", DistillPart, loss="l1")
    refuses("the mask loss needs the teacher's decoder", DistillModule, student(), DistillPart(mask_weight=1.0))
    with pytest.raises(ValueError, match="gives 32 channels, the adapter 16; set prompt_dim to 32"):
        DistillModule(student(prompt_dim=16), teacher=small_teacher())
    with pytest.raises(ValueError, match="distillation has no targets"):
        DistillModule(student()).target({"image": torch.zeros(1, 3, 28, 28)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a cache, or the teacher_size of a live teacher"),
        ({"val_count": 8}, "all 8 images are held out for validation; lower val_count"),
        ({"sizes": [14, 28], "shares": [1.0]}, "one share for each of the 2 sizes, got 1"),
        ({"batch_size": 9}, "an epoch of 8 images has no full batch of 9"),
    ],
)
def test_data_errors(options, message):
    with pytest.raises(ValueError, match=message):
        part = DistillPart(**{"sizes": [28], "batch_size": 2, "val_count": 0, **options})
        DistillData(image_list(), part, teacher_size=32 if options else None)


def test_cache_errors(cache, tmp_path):
    other, part = ImageList("other", ("3", "2"), noise), DistillPart(sizes=[28], batch_size=2, val_count=0)
    refuses(r"from the 8 images of 'noise' .* this run has the 2 of 'other'", DistillData, other, part, cache=cache)
    refuses("resize_mode 'squash', this run has 'pad'", DistillData, image_list(), part, cache=cache, resize_mode="pad")
    plain = write_cache(small_teacher(), image_list(), CachePart(), folder=tmp_path)
    refuses("has no mirrored images", DistillData, image_list(), part, cache=plain, hflip=True)
