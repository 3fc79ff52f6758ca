"""What the small tools of `fsdino` do; each is a plain function with typed arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def pretrain(
    out: str = "fsdino/assets/tiny_encoder.safetensors",
    epochs: int = 60,
    epoch_length: int = 3200,
    lr: float = 2e-3,
    fine_share: float = 0.2,
    thin_share: float = 0.0,
    start: str | None = None,
    seed: int = 0,
    folder: str = "runs/assets/encoder",
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed",
) -> int:
    """Train the tiny DINOv2-architecture encoder on the embedded world's pretrain classes; goes on after a kill.

    Args:
        out: where the weights go, half precision.
        epochs: epochs.
        epoch_length: scenes an epoch.
        lr: peak learning rate.
        fine_share: share of the epochs, at the end, with overlapping patches.
        thin_share: share of those, at their start, with a random half of these patches a step.
        start: checkpoint of an earlier run to take the weights from.
        seed: of weights and scenes.
        folder: checkpoints and metrics.
        precision: of the arithmetic.

    Returns:
        Exit code.
    """
    import torch
    from safetensors.torch import save_file

    from fsdino.assets.pretrain_encoder import PretrainModule
    from fsdino.models.config import PRESETS
    from fsdino.training.epoch_data import SceneData

    tiny = PRESETS["tiny"]
    module = PretrainModule(
        tiny.encoder, tiny.encoder_kwargs, tiny.img_size, tiny.encoder_stride or 14, fine_share, thin_share, lr=lr,
        seed=seed,
    )  # fmt: skip
    if start is not None:
        module.load_state_dict(torch.load(start, map_location="cpu", weights_only=True)["state_dict"])
    fit_scenes(module, SceneData(epoch_length, seed=seed, num_workers=1), epochs, folder, precision, "pretrain")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in module.encoder_state().items()}, out)
    print(f"encoder   {out}")
    return 0


def teach(
    out: str = "fsdino/assets/tiny_sam.safetensors",
    epochs: int = 11,
    epoch_length: int = 1600,
    lr: float = 2e-3,
    seed: int = 0,
    folder: str = "runs/assets/sam",
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed",
) -> int:
    """Train the tiny promptable SAM on the embedded world's pretrain classes; goes on after a kill.

    Args:
        out: where the weights go.
        epochs: epochs.
        epoch_length: scenes an epoch.
        lr: peak learning rate.
        seed: of weights, scenes and prompts.
        folder: checkpoints and metrics.
        precision: of the arithmetic.

    Returns:
        Exit code.
    """
    from fsdino.teachers.sam import save_sam
    from fsdino.training.epoch_data import SceneData
    from fsdino.training.teacher import TeachModule

    module = TeachModule(lr=lr, correct_prob=0.3, seed=seed)
    data = SceneData(epoch_length, val_length=96, seed=seed, batch_size=8, max_objects=4)
    fit_scenes(module, data, epochs, folder, precision, "teach")
    save_sam(module.sam, module.config, out)
    print(f"teacher   {out}")
    return 0


def pretrain_sam2(
    out: str = "fsdino/assets/mini_sam2.safetensors",
    epochs: int = 12,
    epoch_length: int = 2560,
    batch_size: int = 16,
    lr: float = 2e-3,
    optimizer: Literal["adamw", "muon"] = "muon",
    seed: int = 0,
    folder: str = "runs/assets/sam2",
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> int:
    """Train the mini SAM2 on the embedded world's pretrain classes; goes on after a kill.

    Args:
        out: where the weights go, half precision.
        epochs: epochs.
        epoch_length: scenes an epoch.
        batch_size: scenes a step.
        lr: peak learning rate.
        optimizer: adamw or muon.
        seed: of weights, scenes, prompts and views.
        folder: checkpoints and metrics.
        precision: of the arithmetic; bfloat16 is slower on processors without its matrix units.

    Returns:
        Exit code.
    """
    from fsdino.assets.pretrain_sam2 import Sam2PretrainModule
    from fsdino.methods.sam2.weights import save_sam2
    from fsdino.training.epoch_data import SceneData

    module = Sam2PretrainModule("mini", 128, lr=lr, optimizer=optimizer, seed=seed)
    data = SceneData(epoch_length, val_length=96, seed=seed, batch_size=batch_size, max_objects=4)
    fit_scenes(module, data, epochs, folder, precision, "pretrain SAM2")
    save_sam2(module.sam2, out, half=True)
    print(f"mini SAM2 {out}")
    return 0


def fit_scenes(module: Any, data: Any, epochs: int, folder: str, precision: Any, stage: str) -> None:
    """Fit a module on the embedded world's scenes, from its last checkpoint where there is one."""
    from lightning import Trainer
    from lightning.pytorch.loggers import CSVLogger

    from fsdino.training.callbacks import StageProgress, StepSeed
    from fsdino.training.fit import LAST, checkpoints

    last = Path(folder) / LAST
    callbacks = [StageProgress(stage), StepSeed(data.seed), *checkpoints(Path(folder), None)]
    trainer = Trainer(
        accelerator="auto", devices=1, precision=precision, max_epochs=epochs, gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1, check_val_every_n_epoch=2, num_sanity_val_steps=0,
        logger=CSVLogger(folder, name="", version=""), callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=True)
