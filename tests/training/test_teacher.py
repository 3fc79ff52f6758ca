"""Training of a promptable SAM."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from fsdino.training.teacher import TeachModule, evaluate_prompts
from tests.small import SAM
from tests.training.small import Losses, rectangles, small_trainer


def test_learns_rectangles(tmp_path):
    module, losses = TeachModule(SAM, lr=5e-3, correct_prob=0.0), Losses()
    data = DataLoader(rectangles(8), 8)
    trainer = small_trainer(tmp_path, max_epochs=30, callbacks=[losses], limit_val_batches=0)
    trainer.fit(module, data)
    assert losses.values[-1] < 0.75 * losses.values[0]
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-4
    scores = small_trainer(tmp_path).validate(module, data, verbose=False)[0]
    assert set(scores) == {"val/click_iou", "val/click_single_iou", "val/box_iou"}


@pytest.mark.parametrize(("click", "box"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_every_prompt_gives_a_gradient_under_bf16(tmp_path, click, box):
    module = TeachModule(SAM, click_share=click, box_share=box, correct_prob=1.0)
    before = {name: value.clone() for name, value in module.sam.state_dict().items()}
    trainer = small_trainer(tmp_path, max_steps=1, precision="bf16-mixed", limit_val_batches=0)
    trainer.fit(module, DataLoader(rectangles(4), 4))
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    changed = {name.split(".")[0] for name, value in module.sam.state_dict().items() if not value.equal(before[name])}
    assert changed == {"image_encoder", "prompt_encoder", "mask_decoder"}


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    def run(name, resume=None, die_at_step=None):
        checkpoint = ModelCheckpoint(dirpath=tmp_path / name, save_last=True)
        callbacks, module = [checkpoint, Losses(die_at_step)], TeachModule(SAM, seed=3, correct_prob=0.5)
        options = {"max_epochs": 2, "limit_val_batches": 0, "enable_checkpointing": True, "callbacks": callbacks}
        small_trainer(tmp_path, **options).fit(module, DataLoader(rectangles(6), 2), ckpt_path=resume)
        return module.sam.state_dict()

    whole = run("whole")
    with pytest.raises(RuntimeError, match="killed"):
        run("cut", die_at_step=5)
    resumed = run("cut", resume=tmp_path / "cut" / "last.ckpt")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_images_without_objects_are_no_error(tmp_path):
    items = rectangles(4)
    for item in items:
        item["valid"] = torch.zeros(2, dtype=torch.bool)
    losses = Losses()
    trainer = small_trainer(tmp_path, max_epochs=1, callbacks=[losses])
    trainer.fit(TeachModule(SAM), DataLoader(items, 4), DataLoader(items, 4))
    assert losses.values == [0]


def test_evaluation_of_a_perfect_decoder(monkeypatch):
    batch = rectangles(1)[0]
    masks = batch["masks"][batch["masks"].eq(1).flatten(1).any(1)]
    logits = torch.where(masks == 1, 5.0, -5.0)[:, None].repeat(1, 4, 1, 1)
    scores = torch.tensor([[0.1, 0.2, 0.9, 0.3]]).repeat(len(masks), 1)
    logits[:, 1] = -5.0  # not the one that the predicted IoU picks
    monkeypatch.setattr("fsdino.training.teacher.decode_prompts", lambda *args, **kwargs: (logits, scores))
    found = evaluate_prompts(None, torch.zeros(1, 1, 1, 1), torch.zeros(len(masks), dtype=torch.long), masks)
    assert all(value.eq(1).all() for value in found.values())


def test_errors():
    with pytest.raises(ValueError, match=r"expected images of 32x32 px .* got 16x16; resize the images"):
        TeachModule(SAM).embed(torch.zeros(1, 3, 16, 16))
