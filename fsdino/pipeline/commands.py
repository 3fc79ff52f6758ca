"""What the recipe commands and small tools of `fsdino` do; each is a plain function with typed arguments."""

from __future__ import annotations

import time
from typing import Any

from fsdino.pipeline.recipe import Recipe


def run(recipe: Recipe, trainer_options: dict[str, Any]) -> int:
    """Cache, distill, train, evaluate and export; ends with one table and a sheet of images."""
    from fsdino.pipeline.folder import open_run
    from fsdino.pipeline.report import measure

    started = time.perf_counter()
    job = open_run(recipe, trainer_options)
    print(f"run folder: {job.folder}", flush=True)
    job.timed("cache", job.cache)
    distilled = job.timed("distill", job.distill)
    trained = job.timed("train", lambda: job.train(distilled))
    report = job.timed("evaluate", lambda: measure(job, trained))
    folder = job.export(report.model, report.headline)
    print(report.table(job.seconds, time.perf_counter() - started))
    print(f"\nimages  {report.sheet}\nmodel     {folder}  (fsdino predict --model {folder} ...)")
    job.log_results(report.headline, report.sheet, folder)
    (job.folder / "done").write_text("finished\n")
    return 0


def cache(recipe: Recipe, trainer_options: dict[str, Any]) -> int:
    """Write the caches of a recipe."""
    from fsdino.pipeline.folder import open_run

    open_run(recipe, trainer_options).cache()
    return 0


def distill(recipe: Recipe, trainer_options: dict[str, Any]) -> int:
    """Stage 1."""
    from fsdino.pipeline.folder import open_run

    print(f"checkpoint {open_run(recipe, trainer_options).distill()}")
    return 0


def train(recipe: Recipe, trainer_options: dict[str, Any]) -> int:
    """Stage 2, after stage 1 where the recipe has one."""
    from fsdino.pipeline.folder import open_run

    job = open_run(recipe, trainer_options)
    print(f"checkpoint {job.train(job.distill())}")
    return 0


def evaluate(recipe: Recipe, trainer_options: dict[str, Any]) -> int:
    """Measure the run of a recipe (training it first where that is not done) on its novel classes."""
    from fsdino.pipeline.folder import open_run
    from fsdino.pipeline.report import measure

    job = open_run(recipe, trainer_options)
    report = measure(job, job.train(job.distill()))
    print(report.table(job.seconds, 0.0))
    print(f"\nimages  {report.sheet}")
    return 0


def export(recipe: Recipe, trainer_options: dict[str, Any]) -> int:
    """Write the best model of a recipe's run."""
    from fsdino.base.storage import load
    from fsdino.pipeline.folder import open_run

    job = open_run(recipe, trainer_options)
    model: Any = load(job.train(job.distill()))  # the run's own method, whichever the recipe names
    print(job.export(model, {}))
    return 0
