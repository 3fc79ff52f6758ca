"""Makes the bundled weights: `python -m fsdino.assets.make STEP`; `make assets` calls the steps in order.

All three pre-trainings see the embedded world's pretrain classes alone and go on after a kill.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from safetensors.torch import save_file

from fsdino.assets.pretrain_encoder import PretrainModule
from fsdino.assets.pretrain_sam2 import Sam2PretrainModule
from fsdino.assets.scenes import Precision, SceneData, fit_scenes
from fsdino.base.storage import load, save
from fsdino.methods.sam2.weights import save_sam2
from fsdino.models.config import PRESETS
from fsdino.models.encoder_weights import read_weights
from fsdino.pipeline.command import run
from fsdino.teachers.sam import save_sam
from fsdino.training.teacher import TeachModule

ASSETS = Path(__file__).parent


def encoder(
    out: str = str(ASSETS / "tiny_encoder.safetensors"),
    epochs: int = 60,
    epoch_length: int = 3200,
    lr: float = 2e-3,
    fine_share: float = 0.2,
    thin_share: float = 0.0,
    start: str | None = None,
    seed: int = 0,
    folder: str = "runs/assets/encoder",
    precision: Precision = "bf16-mixed",
) -> None:
    """Train the tiny DINOv2-architecture encoder and store it in half precision.

    Args:
        fine_share: share of the epochs, at the end, with overlapping patches.
        thin_share: share of those, at their start, with a random half of these patches a step.
        start: checkpoint of an earlier run to take the weights from; or the encoder that it stored, which learns to
            name its patches anew.
    """
    tiny = PRESETS["tiny"]
    module = PretrainModule(
        tiny.encoder,
        tiny.encoder_kwargs,
        tiny.img_size,
        tiny.encoder_stride or 14,
        fine_share=fine_share,
        thin_share=thin_share,
        lr=lr,
        seed=seed,
    )
    if start is not None and start.endswith(".safetensors"):
        module.vit.load_state_dict(read_weights(tiny.encoder, start)[1])
    elif start is not None:
        module.load_state_dict(torch.load(start, map_location="cpu", weights_only=True)["state_dict"])
    fit_scenes(module, SceneData(epoch_length, seed=seed, num_workers=1), epochs, folder, precision)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in module.encoder_state().items()}, out)
    print(f"encoder   {out}")


def sam(
    out: str = str(ASSETS / "tiny_sam.safetensors"),
    epochs: int = 11,
    epoch_length: int = 1600,
    lr: float = 2e-3,
    seed: int = 0,
    folder: str = "runs/assets/sam",
    precision: Precision = "bf16-mixed",
) -> None:
    """Train the tiny promptable SAM; the seed is of weights, scenes and prompts."""
    module = TeachModule(lr=lr, correct_prob=0.3, seed=seed)
    data = SceneData(epoch_length, val_length=96, seed=seed, batch_size=8, max_objects=4)
    fit_scenes(module, data, epochs, folder, precision)
    save_sam(module.sam, module.config, out)
    print(f"teacher   {out}")


def sam2(
    out: str = str(ASSETS / "mini_sam2.safetensors"),
    epochs: int = 12,
    epoch_length: int = 2560,
    batch_size: int = 16,
    lr: float = 2e-3,
    optimizer: Literal["adamw", "muon"] = "muon",
    seed: int = 0,
    folder: str = "runs/assets/sam2",
    precision: Precision = "32-true",
) -> None:
    """Train the mini SAM2 and store it in half precision."""
    # In single precision: bfloat16 is slower on processors without its matrix units.
    module = Sam2PretrainModule("mini", 128, lr=lr, optimizer=optimizer, seed=seed)
    data = SceneData(epoch_length, val_length=96, seed=seed, batch_size=batch_size, max_objects=4)
    fit_scenes(module, data, epochs, folder, precision)
    save_sam2(module.sam2, out, half=True)
    print(f"mini SAM2 {out}")


def bundle(out: str = str(ASSETS / "fsdino_tiny"), run_folder: str | None = None) -> None:
    """Run the tiny recipe and bundle its model in half precision.

    Args:
        run_folder: a finished run of the recipe, to bundle in place of a new one.
    """
    if run_folder is None:
        run(["--config", "recipes/fsdino/tiny.yaml"])
        found = Path("runs/fsdino-tiny").glob("*/export")
        export = max(found, key=lambda path: path.stat().st_mtime)
    else:
        export = Path(run_folder) / "export"
    model = load(export, method="fsdino")
    results: dict[str, float | str] = getattr(model, "recorded_results", ("", {}))[1]
    save(model, out, half=True, results=results, encoder="tiny_encoder")
    print(f"bundled   {out}")


STEPS: dict[str, Any] = {step.__name__: step for step in (encoder, sam, sam2, bundle)}

if __name__ == "__main__":
    auto_cli(STEPS, as_positional=False)
