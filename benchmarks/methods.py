"""All systems on the same episodes of the embedded world: `python benchmarks/methods.py [--only SUBSTRING] [--times]`.

SANSA and FSSAM train from `recipes/*_tiny.yaml`, three seeds each, on as many episodes as FS-DINO, and are measured on
its fixed list; held-out base classes pick checkpoint and cut. The mini SAM2 without adapters stands beside them. Rows
that are in `benchmarks/results/methods.csv` are kept, and an interrupted run goes on. FS-DINO and the prototype have
their rows in `tiny_seeds*.csv`.

`--times` measures remembering and segmenting of every system in turn in one process, with random weights, which change
no time, and writes `methods_times.csv`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from experiments import RESULTS, ROOT, append, best_key, measure, scores
from provenance import provenance, read_rows, write_rows
from subjects import noise
from timing import interleaved

from fsdino.base.method import FewShotMethod, Reference
from fsdino.base.registry import build_method
from fsdino.base.storage import load
from fsdino.evaluation.measure import evaluate
from fsdino.models.config import preset
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.pipeline.folder import make_job
from fsdino.pipeline.recipe import read_recipe
from fsdino.training.optim import count_parameters

TRAINED = {"sansa": "SANSA", "fssam": "FSSAM"}
FROZEN = "SAM2, frozen"
SIDE = (112, 112)  # of the embedded world's images


def runs() -> Iterator[tuple[str, str, int]]:
    """Name, method and seed of every run."""
    yield "frozen", FROZEN, 0
    for seed in range(3):
        for method in TRAINED:
            yield f"{method}-seed{seed}", method, seed


def run_once(name: str, method: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train one system with one seed and measure it on the novel classes.

    Args:
        name: Of the run's folder.
        method: A key of `TRAINED`.
        seed: Of new weights, held-out classes and episodes.
        overrides: Of the recipe.

    Returns:
        A row for the CSV.
    """
    path = f"recipes/{method}_tiny.yaml"
    recipe, options = read_recipe(["--config", path, "--log.wandb=off", f"--seed={seed}", *overrides])
    job, started = make_job(recipe, options, ROOT / "methods" / name), time.perf_counter()
    trained = job.train(job.distill())
    seconds, model = time.perf_counter() - started, load(trained)
    val = float(torch.load(trained, weights_only=True)["callbacks"][best_key(trained)]["best_model_score"])
    return {
        "run": name, "seed": seed, "fold": recipe.data.fold, "shots": recipe.data.shots, "method": TRAINED[method],
        "val_miou": round(100 * val, 3), **scores(measure(job, name, model)), "cut": model.threshold, **sizes(model),
        "episodes": recipe.train.epochs * recipe.train.epoch_length, "seconds": round(seconds),
    }  # fmt: skip


def frozen_once(name: str) -> dict[str, Any]:
    """Measure the mini SAM2 as it was pre-trained: SANSA without adapters, at the cut 0.5."""
    recipe, options = read_recipe(["--config", "recipes/sansa_tiny.yaml", "--log.wandb=off"])
    job, args = make_job(recipe, options, ROOT / "methods" / name), {**recipe.method_args(), "factor": 0}
    model, held_out = build_method("sansa", **args), job.train_set.val_episodes
    val = evaluate(model, job.train_set.index, held_out, job.folder / "held-out")
    return {
        "run": name, "seed": 0, "fold": recipe.data.fold, "shots": recipe.data.shots, "method": FROZEN,
        "val_miou": round(100 * val.score.miou, 3), **scores(measure(job, name, model)), "cut": model.threshold,
        **sizes(model), "episodes": 0, "seconds": 0,
    }  # fmt: skip


def sizes(model: FewShotMethod) -> dict[str, int]:
    """Parameters that learn from episodes, and all."""
    trained = count_parameters(model.trainable_parameters())  # type: ignore[operator]
    return {"trained": trained, "total": count_parameters(model.parameters())}


def subjects() -> dict[str, FewShotMethod]:
    """Every system of the table in the embedded world's size, with random weights."""
    found: dict[str, FewShotMethod] = {}
    for variant in ("compact", "full"):
        config = preset("tiny", variant=variant, encoder_weights=None)
        found[f"FS-DINO {variant}"] = FewShotSegmenter(config, load_encoder=False).eval()
    for name, title in TRAINED.items():
        recipe, _ = read_recipe(["--config", f"recipes/{name}_tiny.yaml"])
        args = {k: v for k, v in recipe.method.args.items() if k not in ("weights", "encoder_weights")}
        found[title] = build_method(name, size="mini", version="2.1", **args)
    found[FROZEN] = build_method("sansa", size="mini", version="2.1", img_size=found["SANSA"].img_size, factor=0)
    tiny = preset("tiny")
    found["prototype"] = build_method(
        "prototype", encoder=tiny.encoder, img_size=tiny.img_size, encoder_kwargs=tiny.encoder_kwargs,
        encoder_stride=tiny.encoder_stride, tap=tiny.reader_taps[-1],
    )  # fmt: skip
    return found


@torch.no_grad()
def times(found: dict[str, FewShotMethod], repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds of remembering one reference and of segmenting one image, all systems in turn.

    Args:
        found: The systems by name.
        repetitions: Rounds that count; a round of one system is ten calls.

    Returns:
        A row a system, with its parameters.
    """
    actions: dict[str, Callable[[], Any]] = {}
    mask = np.zeros(SIDE, np.uint8)
    mask[30:70, 40:80] = 1
    shown, image = [Reference(noise(1, SIDE), mask=mask)], noise(0, SIDE)
    for title, method in found.items():
        memory = method.remember(shown)
        actions[f"{title}|remember"] = lambda method=method: [method.remember(shown) for _ in range(10)]
        actions[f"{title}|segment"] = lambda method=method, memory=memory: [
            method.segment(memory, image) for _ in range(10)
        ]
    timings = interleaved(actions, repetitions)
    return [
        {"method": title, "remember_ms": round(timings.ms(f"{title}|remember") / 10, 2),
         "segment_ms": round(timings.ms(f"{title}|segment") / 10, 2), **sizes(method)}
        for title, method in found.items()
    ]  # fmt: skip


def main() -> None:
    """Train and measure what is missing, or measure times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--times", action="store_true", help="measure times instead")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds of the times that count")
    parser.add_argument("overrides", nargs="*", help="of the recipes, after --")
    chosen = parser.parse_args()
    if chosen.times:
        protocol = f"batch 1, {SIDE[0]} px images, random weights, medians of {chosen.repetitions} rounds in turn"
        about = provenance(protocol=protocol)
        write_rows(RESULTS / "methods_times.csv", [row | about for row in times(subjects(), chosen.repetitions)])
        return
    path = RESULTS / "methods.csv"
    for name, method, seed in runs():
        if chosen.only in name and name not in {row["run"] for row in read_rows(path)}:
            row = frozen_once(name) if method == FROZEN else run_once(name, method, seed, chosen.overrides)
            append(path, [row | provenance()])
            print(f"methods: {name} done", flush=True)


if __name__ == "__main__":
    main()
