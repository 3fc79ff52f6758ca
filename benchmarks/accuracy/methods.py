"""SANSA and FSSAM on the embedded world, on FS-DINO's fixed list: `python -m benchmarks.accuracy.methods`.

Both train from `recipes/*/tiny.yaml`, three seeds each, on as many episodes as FS-DINO; held-out base classes pick
checkpoint and threshold. The mini SAM2 without adapters stands beside them. Rows that `methods.csv` has are kept, and
an interrupted run goes on. FS-DINO and the prototype have their rows in `tiny_seeds*.csv`; times are measured by
`benchmarks.cost.methods`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.accuracy.experiments import best_val_miou, measure, sizes
from benchmarks.common import RESULTS, Row, provenance, read_rows, run_script, update_rows
from fsdino.base.registry import build
from fsdino.base.storage import load
from fsdino.evaluation.measure import evaluate
from fsdino.pipeline.recipe import read_recipe
from fsdino.pipeline.run import Run

TRAINED = {"sansa": "SANSA", "fssam": "FSSAM"}
FROZEN = "SAM2, frozen"
RUNS = Path("runs/experiments/methods")


def recipe_of(method: str) -> str:
    """The recipe of a system in the embedded world's size."""
    return f"recipes/{method}/tiny.yaml"


def plan() -> Iterator[tuple[str, str, int]]:
    """Name, system and seed of every run."""
    yield "frozen", FROZEN, 0
    for seed in range(3):
        for method in TRAINED:
            yield f"{method}-seed{seed}", method, seed


def run_once(name: str, method: str, seed: int, runs: Path = RUNS, overrides: list[str] | None = None) -> Row:
    """Train one system with one seed, or take the frozen one, and measure it on the novel classes."""
    trained = method in TRAINED
    path = recipe_of(method if trained else "sansa")
    common = ["--config", path, "--log.wandb=off", f"--seed={seed}"]
    recipe, options = read_recipe([*common, *(overrides or [])])
    job, started = Run(recipe, options, runs / name), time.perf_counter()
    if trained:
        checkpoint = job.train(job.distill())
        seconds, model, val = round(time.perf_counter() - started), load(checkpoint), best_val_miou(checkpoint)
    else:  # SANSA without adapters, at the threshold 0.5
        seconds, model = 0, build("sansa", **{**recipe.arguments(), "factor": 0})
        held_out = job.train_set
        assert held_out.val_episodes is not None  # the recipe holds out base classes
        found = evaluate(model, held_out.index, held_out.val_episodes, job.folder / "held-out")
        val = round(100 * found.score.miou, 3)
    head = {"run": name, "seed": seed, "fold": recipe.data.fold, "shots": recipe.data.shots}
    about = {"method": TRAINED.get(method, FROZEN), "val_miou": val}
    episodes = recipe.train.epochs * recipe.train.epoch_length if trained else 0
    return head | about | measure(job, name, model) | sizes(model) | {"episodes": episodes, "seconds": seconds}


def main(
    only: str = "", csv: Path = RESULTS / "methods.csv", runs: Path = RUNS, overrides: list[str] | None = None
) -> None:
    """Train and measure what is missing, of the runs whose name holds `only`."""
    for name, method, seed in plan():
        old = read_rows(csv)
        if only in name and not (len(old) and name in set(old["run"])):
            row = run_once(name, method, seed, runs, overrides)
            update_rows(csv, [row | provenance()], ("run",))
            print(f"methods: {name} done", flush=True)


if __name__ == "__main__":
    run_script(main)
