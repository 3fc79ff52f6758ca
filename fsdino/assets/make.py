"""Makes the bundled weights: `python -m fsdino.assets.make STEP`; `make assets` calls the steps in order.

All three pre-trainings see the embedded world's pretrain classes alone and go on after a kill.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from safetensors.torch import save_file

from fsdino.assets.pretrain_encoder import PretrainModule
from fsdino.assets.pretrain_sam2 import Sam2PretrainModule
from fsdino.assets.scenes import Precision, SceneData, fit_scenes
from fsdino.base.bundled import bundled_file
from fsdino.base.storage import load, save
from fsdino.methods.sam2.weights import save_sam2
from fsdino.models.config import PRESETS
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.pipeline.command import run
from fsdino.pipeline.recipe import Recipe, read_recipe
from fsdino.pipeline.run import Run
from fsdino.teachers.sam import SamTeacher, save_sam
from fsdino.training.presence import PresenceData, train_presence
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
        start: checkpoint of an earlier run to take the weights from.
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
    if start is not None:
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


def bundle(complete: bool = False, out: str = str(ASSETS / "fsdino_tiny")) -> None:
    """Run the tiny recipe and bundle its model in half precision.

    Args:
        complete: train nothing but what the bundled model lacks: a presence head that has seen absent objects, and
            SAM's prompted half, which starts as the teacher's.
    """
    arguments = ["--config", "recipes/fsdino/tiny.yaml"]
    recipe, options = read_recipe(arguments)
    if complete:
        model = load("tiny", method="fsdino")
    else:
        run(arguments)
        newest = max(Path("runs/fsdino-tiny").glob("*/export"), key=lambda path: path.stat().st_mtime)
        model = load(newest, method="fsdino")
    results: dict[str, float | str] = getattr(model, "recorded_results", ("", {}))[1]
    save(completed(model, recipe, options), out, half=True, results=results, encoder="tiny_encoder")
    print(f"bundled   {out}")


def completed(model: FewShotSegmenter, recipe: Recipe, options: dict[str, Any]) -> FewShotSegmenter:
    """A model with everything that a user can ask of it; its masks stay as they are."""
    whole = model if model.sam is not None else promptable(model)
<<<<<<< HEAD
    # A head that judges likeness has seen absent objects already.
    if whole.config.presence_likeness:
        return whole
    job = Run(recipe, options, Path("runs/assets/presence"))
    data = PresenceData(job.train_set, maps=job.maps(whole, job.train_set.annotated), seed=recipe.seed)
    return train_presence(whole, data, recipe.presence.episodes)
=======
    job = Run(recipe, options, Path("runs/assets/complete"))
    # A head with statistics has seen absent objects already.
    if not whole.config.presence_statistics:
        data = PresenceData(job.train_set, maps=job.maps(whole, job.train_set.annotated), seed=recipe.seed)
        whole = train_presence(whole, data, recipe.presence.episodes)
    if not whole.config.learnt_drawing:
        whole = load(job.learn_drawing(whole, job.maps(whole, job.train_set.annotated)))
    return whole
>>>>>>> draw


def promptable(model: FewShotSegmenter) -> FewShotSegmenter:
    """The same model with the bundled teacher's prompted half."""
    # The threshold lives in the method once it is tuned, and would fall back to the configuration's.
    config = replace(model.config, promptable=True, threshold=model.threshold)
    whole = FewShotSegmenter(replace(config, encoder_weights=None))
    whole.load_prompter_(SamTeacher.from_checkpoint(bundled_file("tiny_sam")).sam.state_dict())
    # The model's own weights win, so that its masks stay as they are and only the prompted half is new.
    whole.load_state_dict({**whole.state_dict(), **model.state_dict()})
    return whole.eval()


STEPS: dict[str, Any] = {step.__name__: step for step in (encoder, sam, sam2, bundle)}

if __name__ == "__main__":
    auto_cli(STEPS, as_positional=False)
