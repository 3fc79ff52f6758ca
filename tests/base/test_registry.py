"""Methods by name, on disk, and their training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from fsdino.base.memory import SegmenterOutput
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.registry import METHODS, build, describe, load, save
from fsdino.methods.sam2.sizes import sam2_config, size_and_version
from fsdino.methods.sansa.method import Sansa
from fsdino.predict.engines.torch import TorchEngine
from fsdino.predict.memory_file import SavedMemory, load_memory, save_memory
from fsdino.training.method_module import MethodModule, poly_factor
from tests.contract import assert_same, episodes, sketch
from tests.methods.small import small_sam2

TINY_VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2}
SAM = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, "global_blocks": (1,), "prompt_dim": 16}
ARGS: dict[str, dict[str, Any]] = {
    "all_foreground": {"img_size": 28},
    "prototype": {
        "encoder": "vit_small_patch14_dinov2", "img_size": 56, "tap": (1, 3), "cut": 0.1, "encoder_kwargs": TINY_VIT
    },
    "persam": {"config": SAM},
    "sansa": {"size": "mini", "img_size": 64, "memory_order": "video"},
    "fssam": {
        "size": "mini", "img_size": 64, "encoder": "vit_small_patch14_dinov2", "encoder_img_size": 70, "tap": 3,
        "encoder_kwargs": TINY_VIT, "rounds": 2,
    },
}  # fmt: skip


def batch(method: FewShotMethod, shots: int = 1) -> dict[str, Any]:
    query, images, masks = episodes(method, 2, shots)
    truth = torch.zeros(2, method.img_size, method.img_size, dtype=torch.long)
    truth[:, 8:30, 10:40] = 1
    truth[:, :4] = 255
    return {"query_image": query, "support_images": images, "support_masks": masks, "query_mask": truth,
            "support_truths": (masks > 0.5).to(torch.uint8), "class_id": torch.tensor([3, 4]),
            "episode_index": torch.tensor([0, 1])}  # fmt: skip


@pytest.mark.parametrize("name", list(METHODS))
@torch.no_grad()
def test_every_method_survives_disk(name: str, tmp_path: Path) -> None:
    method = build(name, **ARGS[name])
    method.threshold = 0.35
    loaded = load(save(method, tmp_path / name))
    assert type(loaded) is type(method) and loaded.threshold == 0.35 and not loaded.training
    inputs = episodes(method, 1, 2)
    assert_same(loaded(*inputs), method(*inputs), 0.0)
    again = json.loads(json.dumps(describe(loaded)))
    assert again == json.loads(json.dumps(describe(method)))


@torch.no_grad()
def test_files_of_weights_are_not_needed_again(tmp_path: Path) -> None:
    small_sam2(version="2.1").net.save(tmp_path / "sam2")
    method = build("sansa", weights=str(tmp_path / "sam2"), img_size=64)
    assert describe(method)["args"] == {"img_size": 64, "size": "mini", "version": "2.1"}
    folder = save(method, tmp_path / "sansa", half=True)
    (tmp_path / "sam2" / "model.safetensors").unlink()
    inputs = episodes(method, 1, 1)
    assert_same(load(folder)(*inputs), method(*inputs), 0.05)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sansa", {"num_targets": 2, "iou_weight": 0.1}),
        ("fssam", {"loss": "dice", "schedule": "poly", "horizon": 3.0}),
        ("sansa", {"loss": "focal_dice", "tune_threshold": False}),
    ],
)
def test_training_moves_the_trainable_weights_alone(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = build(name, **ARGS[name])
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    module = MethodModule(method, val_classes=(3, 4), lr=1e-2, **options)
    loader = DataLoader([batch(method, 2)] * 2, batch_size=None)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False, num_sanity_val_steps=0,
        limit_val_batches=1,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    moved = {n for n, p in method.named_parameters() if not torch.equal(p, before[n])}
    trainable = {n for n, p in method.named_parameters() if p.requires_grad}
    assert moved and moved <= trainable
    assert 0.0 <= float(trainer.callback_metrics["val/miou"]) <= 1.0
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    if options.get("tune_threshold") is False:
        assert method.threshold == 0.5
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load(tmp_path / "last.ckpt")
    inputs = episodes(method, 1, 1)
    with torch.no_grad():
        assert_same(loaded(*inputs), method.eval()(*inputs), 1e-6)


def test_ignored_pixels_take_part_in_no_loss() -> None:
    module = MethodModule(build("sansa", **ARGS["sansa"]), iou_weight=1.0)
    truth = batch(module.method)["query_mask"]
    logits = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[..., :1, :] = 50.0  # the four rows of ignored pixels are the first row of the grid
    ones = torch.ones(2, 1)
    first, second = (module.losses(SegmenterOutput(x, ones, ones), truth) for x in (logits, other))
    assert set(first) == {"dice", "bce", "iou"}
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_poly_ends_at_zero() -> None:
    assert poly_factor(0, 10) == 1.0 and poly_factor(10, 10) == 0.0
    assert poly_factor(5, 10) == pytest.approx(0.5**0.9)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown method 'matcher'; use one of all_foreground"):
        build("matcher")
    with pytest.raises(ValueError, match=r"'all_foreground' does not take these arguments: .*sizes"):
        build("all_foreground", sizes=3)
    with pytest.raises(ValueError, match="does not know how it was built; make it with build"):
        describe(Sansa(small_sam2()))
    with pytest.raises(FileNotFoundError, match=r"give a folder with config\.json and model"):
        load(tmp_path)
    folder = save(build("sansa", **ARGS["sansa"]), tmp_path / "sansa")
    info = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**info, "args": {**info["args"], "factor": 0.0}}))
    with pytest.raises(ValueError, match=r"lacks .*layer_norm2.* its description belongs to other weights"):
        load(folder)
    (folder / "config.json").write_text(json.dumps({"segmenter": {}}))
    with pytest.raises(ValueError, match=r"opened with fsdino.load\(\)"):
        load(folder)
    wide = sam2_config("mini", 64)
    wide.vision_config.backbone_config.hidden_size = 17  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"17 wide with blocks .* is of no known size"):
        size_and_version(wide)
    method = build("sansa", **ARGS["sansa"])
    with pytest.raises(ValueError, match="unknown loss 'mse'"):
        MethodModule(method, loss="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        MethodModule(method, schedule="step")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="AllForeground has nothing to train"):
        MethodModule(build("all_foreground"))
    with pytest.raises(ValueError, match="Fssam has no chain of targets"):
        MethodModule(build("fssam", **ARGS["fssam"]), num_targets=3)
    with pytest.raises(ValueError, match="3 targets need episodes of at least 3 shots"):
        MethodModule(method, num_targets=3)._targets(batch(method, 2))


@pytest.mark.parametrize("name", list(METHODS))
def test_concepts_of_every_method_survive_disk(name: str, tmp_path: Path) -> None:
    method = build(name, **ARGS[name])
    engine = TorchEngine(method)
    image, mask = sketch(50, 70, 0)
    memory = method.remember([Reference(image, mask=mask), Reference(image[::-1].copy(), mask=mask[::-1].copy())])
    concept = SavedMemory("thing", engine.fingerprint, engine.pack(memory), image)
    read = load_memory(save_memory(concept, tmp_path / "thing.fsmem", max_bytes=1000), engine.fingerprint)
    restored = engine.unpack(read.arrays)
    assert type(restored) is type(memory)
    for key, tensor in memory.tensors().items():
        torch.testing.assert_close(restored.tensors()[key], tensor, atol=2e-3, rtol=2e-3)
