"""Distillation: cache or live teacher, coarse to fine, resumed bit for bit."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from fsdino.base.storage import CHECKPOINT_KEY
from fsdino.cache.cache import write_cache
from fsdino.cache.image_list import ImageList
from fsdino.training.distill import DistillModule
from fsdino.training.distill_data import DistillData, epoch_size
from tests.training.small import STUDENT, image_list, noise, small_teacher, small_trainer


class Losses(Callback):
    """Records the loss of every step, and stops hard after an epoch where it is told to."""

    def __init__(self, die_at_step=None):
        self.values, self.sizes, self.die_at_step = [], [], die_at_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.die_at_step:
            raise RuntimeError("killed")
        self.values.append(float(outputs["loss"]))
        self.sizes.append(batch["image"].shape[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return write_cache(small_teacher(), image_list(), folder, views=("plain", "hflip"), shard_size=3)


def fit(folder, data, module, callbacks=(), ckpt_path=None, epochs=3, **kwargs):
    trainer = small_trainer(folder, max_epochs=epochs, callbacks=list(callbacks), **kwargs)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def test_cache_and_live_teacher_give_the_same_losses(tmp_path, cache):
    cached, live = Losses(), Losses()
    options = {"sizes": [14, 28], "batch_size": 4, "hflip": True, "val_count": 2}
    fit(tmp_path, DistillData(image_list(), cache=cache, **options), DistillModule(STUDENT), [cached])
    module = DistillModule(STUDENT, teacher=small_teacher())
    fit(tmp_path, DistillData(image_list(), teacher_size=32, **options), module, [live])
    assert len(cached.values) == 3 and cached.sizes == live.sizes == [14, 28, 28]
    assert cached.values == pytest.approx(live.values, rel=2e-4)


def test_it_learns_and_touches_only_the_adapter(tmp_path, cache):
    module, losses = DistillModule(STUDENT, lr=1e-2), Losses()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    data = DistillData(image_list(), [28], cache=cache, batch_size=4, val_count=4, epoch_length=8)
    trainer = fit(tmp_path, data, module, [losses], epochs=15)
    assert losses.values[-1] < 0.8 * losses.values[0]
    changed = {name.split(".")[0] for name, value in module.model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"adapter"}
    assert {"val/mse", "val/cosine", "train/loss", "train/lr", "train/size"} <= set(trainer.callback_metrics)
    assert data.size(14) == 28


def test_only_the_blocks_up_to_the_tap_run(cache):
    module = DistillModule(STUDENT)
    ran = []
    for index, block in enumerate(module.model.encoder.backbone.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    module.model.embed(torch.zeros(1, 3, 28, 28))
    assert ran == [0, 1]


@pytest.mark.parametrize("loss", ["mse", "cosine_smooth_l1"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, cache, loss):
    def run(name, resume=None, die_at_step=None):
        data = DistillData(image_list(), [14, 28], cache=cache, batch_size=2, hflip=True)
        module = DistillModule(STUDENT, loss=loss, teacher=small_teacher(), mask_weight=0.5, optimizer="muon")
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
    data = DistillData(image_list(), [28], cache=cache, batch_size=4)
    trainer = fit(tmp_path, data, DistillModule(STUDENT, teacher=small_teacher(), mask_weight=1.0), epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved[CHECKPOINT_KEY]["stage"] == "distilled"
    assert {key.split(".")[0] for key in saved["state_dict"]} == {"model", "teacher_mean", "teacher_std"}
    assert not any("image_encoder" in key for key in saved["state_dict"])


def test_mask_loss_pulls_the_student_to_the_teachers_masks():
    teacher = small_teacher()
    module = DistillModule(STUDENT, teacher=teacher, mask_weight=1.0)
    target = teacher.embed(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    student = torch.zeros_like(target).requires_grad_()
    loss = module.mask_loss(student, target)
    loss.backward()
    assert student.grad.abs().sum() > 0
    assert module.mask_loss(target, target) < loss
    assert all(p.grad is None for p in teacher.sam.parameters())


def test_statistics_are_the_teachers(tmp_path, cache):
    module = DistillModule(STUDENT, loss="cosine_smooth_l1")
    fit(tmp_path, DistillData(image_list(), [28], cache=cache, batch_size=4), module, epochs=1)
    rows = torch.stack([cache[i].float() for i in range(8)]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(module.teacher_mean, rows.mean(1))
    torch.testing.assert_close(module.teacher_std, rows.std(1))


def test_sizes_follow_their_shares():
    sizes = [epoch_size(epoch, 8, [56, 84, 112], [1, 1, 2]) for epoch in range(8)]
    assert sizes == [56, 56, 84, 84, 112, 112, 112, 112]
    assert [epoch_size(e, 1, [56, 112], [1, 1]) for e in range(2)] == [112, 112]
    assert epoch_size(0, 6, [56], [0.1]) == 56


def test_epoch_order_depends_on_seed_and_epoch(cache):
    data = DistillData(image_list(), [28], cache=cache, batch_size=2, epoch_length=12, hflip=True)
    first = data.train_dataloader().dataset
    again = data.train_dataloader().dataset
    assert first.places == again.places and first.flips == again.flips and len(first) == 12
    assert sorted(first.places[:8]) == list(range(8)) and True in first.flips and False in first.flips
    other = DistillData(image_list(), [28], cache=cache, batch_size=2, epoch_length=12, seed=1)
    assert other.train_dataloader().dataset.places != first.places


def test_module_errors(cache):
    with pytest.raises(ValueError, match="unknown loss 'l1'"):
        DistillModule(STUDENT, loss="l1")
    with pytest.raises(ValueError, match="the mask loss needs the teacher's decoder"):
        DistillModule(STUDENT, mask_weight=1.0)
    with pytest.raises(ValueError, match="gives 32 channels, the adapter 16; set prompt_dim to 32"):
        DistillModule(type(STUDENT).from_dict({**STUDENT.to_dict(), "prompt_dim": 16}), teacher=small_teacher())
    with pytest.raises(ValueError, match="distillation has no targets"):
        DistillModule(STUDENT).target({"image": torch.zeros(1, 3, 28, 28)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [28], "teacher_size": None}, "needs a cache, or the teacher_size of a live teacher"),
        ({"sizes": [28], "val_count": 8}, "all 8 images are held out for validation; lower val_count"),
        ({"sizes": [14, 28], "shares": [1.0]}, "one share for each of the 2 sizes, got 1"),
        ({"sizes": [28], "batch_size": 9}, "an epoch of 8 images has no full batch of 9"),
    ],
    ids=["target", "val", "shares", "batch"],
)
def test_data_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DistillData(image_list(), **{"batch_size": 2, "teacher_size": 32, **options})


def test_cache_errors(cache, tmp_path):
    other = ImageList("other", ("3", "2"), noise)
    with pytest.raises(ValueError, match=r"from the 8 images of 'noise' .* this run has the 2 of 'other'"):
        DistillData(other, [28], cache=cache, batch_size=2)
    with pytest.raises(ValueError, match="resize_mode 'squash', this run has 'pad'"):
        DistillData(image_list(), [28], cache=cache, batch_size=2, resize_mode="pad")
    plain = write_cache(small_teacher(), image_list(), tmp_path)
    with pytest.raises(ValueError, match="has no mirrored images"):
        DistillData(image_list(), [28], cache=plain, batch_size=2, hflip=True)
