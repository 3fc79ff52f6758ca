"""`fsdino plan RECIPE`: disk, memory, downloads and hours of a recipe before anything starts."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import torch

from fsdino.base.hub import looks_like_id
from fsdino.data.catalog import data_set
from fsdino.data.part import DataSpec
from fsdino.data.splits import open_test, open_train
from fsdino.pipeline.disk import free_bytes, gigabytes
from fsdino.pipeline.needs import FLOAT, Needs, count
from fsdino.pipeline.recipe import Recipe, read_recipe
from fsdino.teachers.architecture import SAM_CONFIGS, build_sam
from fsdino.teachers.sam import SAM_URLS

SIDE = 1024  # of the matrices whose product tells this machine's rate


def plan(arguments: Sequence[str]) -> int:
    """Print what a recipe needs; takes `RECIPE` or `--config RECIPE`, and overrides as `fsdino run`."""
    parser = ArgumentParser(
        "fsdino plan",
        usage="fsdino plan RECIPE [--images N] [--annotated N] [--rate TFLOPS] [overrides as for fsdino run]",
        description="What a recipe needs: disk, memory, downloads, hours. Nothing is written.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--images", type=int, help="images of distillation, where they are not on this disk")
    parser.add_argument("--annotated", type=int, help="annotated images, where they are not on this disk")
    parser.add_argument("--rate", type=float, help="10^12 operations a second; measured here when left out")
    given = list(arguments)
    if given and not given[0].startswith("-"):
        given.insert(0, "--config")
    own, rest = parser.parse_known_args(given)
    if not any(part.partition("=")[0] == "--config" for part in rest):
        raise ValueError("give a recipe to plan: fsdino plan recipes/fsdino/b14_coco20i.yaml.")
    for name in ("images", "annotated", "rate"):
        if (value := getattr(own, name)) is not None and value <= 0:
            raise ValueError(f"--{name} {value} is not a number above 0; leave it out to have it counted or measured.")
    recipe, trainer = read_recipe(rest)
    missing = missing_data(recipe)
    images, annotated = (own.images, own.annotated)
    if not missing:
        found = open_train(recipe.data, open_test(recipe.data), recipe.seed)
        images, annotated = images or len(found.images), annotated or len(found.annotated)
    needs = Needs(recipe, images or (None if recipe.data.images else annotated), annotated)
    lines = [*disk(needs), memory(needs), *downloads(needs), *data(missing)]
    print("\n".join([f"plan of {recipe.name}", *lines, *hours(needs, own.rate, str(trainer.get("precision", "32")))]))
    return 0


def disk(needs: Needs) -> list[str]:
    """Lines on caches and checkpoints."""
    lines, folder = [], Path(needs.recipe.cache.dir)
    total = needs.checkpoints
    for need in needs.caches:
        if need.count is None:
            option = "--images" if need.kind == "teacher" else "--annotated"
            size = f"{gigabytes(need.bytes(1000))} for 1,000 images"
            lines.append(
                f"  disk      cache {need.kind}: {need.formula()} = {size}; their number is unknown, give {option} N"
            )
        else:
            total += need.bytes(need.count)
            lines.append(f"  disk      cache {need.kind}: {need.formula()} = {gigabytes(need.bytes(need.count))}")
    lines.append(f"  disk      checkpoints and export: {gigabytes(needs.checkpoints)}")
    verdict = f"{gigabytes(total)} in all, {gigabytes(free_bytes(folder))} free in '{folder}'"
    return [*lines, f"  disk      {verdict}{'' if total <= free_bytes(folder) else ': NOT ENOUGH'}"]


def memory(needs: Needs) -> str:
    """A line on the stage that needs most."""
    worst = max(needs.stages, key=lambda stage: stage.memory)
    return (
        f"  memory    about {gigabytes(worst.memory)} a device in stage '{worst.name}', beside what Python takes: "
        "weights, gradients, optimiser and what a step keeps for the way back, in float32; an estimate"
    )


def downloads(needs: Needs) -> list[str]:
    """Lines on weights that are fetched on first use."""
    recipe, lines = needs.recipe, []
    given = recipe.arguments()
    if given.get("encoder_weights") == "timm":
        encoder = needs.method.shared_encoder()
        size = "" if encoder is None else f", about {gigabytes(FLOAT * count(encoder))}"
        name = getattr(getattr(needs.method, "config", None), "encoder", given.get("encoder", "DINOv2"))
        lines.append(f"  download  {name}{size}, through timm from the Hugging Face Hub")
    for name in (given.get("weights"), recipe.train.init_from):
        if name and not Path(str(name)).exists() and looks_like_id(str(name)):
            lines.append(f"  download  {name}, from the Hugging Face Hub")
    checkpoint = recipe.teacher.checkpoint
    if needs.recipe.distills and (checkpoint in SAM_URLS or urlparse(checkpoint).scheme in ("http", "https")):
        url = SAM_URLS.get(checkpoint, checkpoint)
        path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlparse(url).path).name
        if not path.is_file():
            size = f", {gigabytes(FLOAT * sam_parameters(checkpoint))}" if checkpoint in SAM_CONFIGS else ""
            lines.append(f"  download  {path.name}{size}, from {url}")
    return lines or ["  download  nothing"]


def sam_parameters(name: str) -> int:
    """Parameters of an official SAM."""
    with torch.device("meta"):
        return count(build_sam(SAM_CONFIGS[name]))


def missing_data(recipe: Recipe) -> list[str]:
    """What of the data is not on this disk, and how it is fetched."""
    part, lines = recipe.data, []
    for spec in dict.fromkeys(map(_place, (*part.train, *part.images, part.test))):
        name, root = spec
        if name == "images":
            if root is None or not Path(root).is_dir():
                lines.append(f"images of distillation in '{root}': a folder of images without masks")
        elif data_set(name).needs_root:
            entry = data_set(name)
            if root is None or not Path(root).is_dir():
                fetch = " --download" if entry.sources else ""
                lines.append(f"{entry.title} in '{root}': see `fsdino data {name} --root {root}{fetch}`")
    return lines


def _place(spec: DataSpec) -> tuple[str, str | None]:
    return spec.name, spec.root


def data(missing: Sequence[str]) -> list[str]:
    """Lines on the data."""
    return [f"  data      missing: {line}" for line in missing] or ["  data      all folders are there"]


def hours(needs: Needs, rate: float | None, precision: str) -> list[str]:
    """Lines on time: the operations of each stage over the rate of a plain matrix product."""
    speed = 1e12 * rate if rate else measured_rate(precision)
    whose = "as given" if rate else f"that of a matrix product of {SIDE} x {SIDE} here, on one device"
    lines, total = [], 0.0
    for stage in needs.stages:
        if stage.times is None:
            lines.append(f"  hours     {stage.name}: {stage.flops:.2e} operations an image, of an unknown number")
            continue
        spent = stage.times * stage.flops / speed / 3600
        total += spent
        lines.append(f"  hours     {stage.name}: {stage.times:,} x {stage.flops:.2e} operations = {spent:.2f}")
    lines.append(
        f"  hours     {total:.2f} in all at {speed / 1e12:.3g} x 10^12 operations a second ({whose}): at least that, "
        "since reading images and all that is no matrix product come on top"
    )
    return lines


def measured_rate(precision: str) -> float:
    """Operations a second of a matrix product on the device that a run would take."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and "bf16" in precision else torch.float32
    a = torch.ones(SIDE, SIDE, device=device, dtype=dtype)
    best = float("inf")
    # The best of a few: the first ones wake the device up.
    for _ in range(8):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        b = a @ a
        # Reading a number waits until it is there.
        float(b[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2.0 * SIDE**3 / best
