"""`fsdino run`: a recipe, or some of its stages; ends with one table and a sheet of images."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fsdino.base.storage import load
from fsdino.pipeline.disk import check_disk
from fsdino.pipeline.folder import forget_empty, open_run
from fsdino.pipeline.recipe import STAGES, read_run
from fsdino.pipeline.report import measure
from fsdino.pipeline.run import Run


def run(arguments: Sequence[str]) -> int:
    """Run the stages of a recipe, and before them what they stand on and is not done yet."""
    started = time.perf_counter()
    if not any(part.partition("=")[0] in ("--config", "-h", "--help") for part in arguments):
        raise ValueError("give a recipe to run: --config tiny, or a YAML file; its header says how long it takes.")
    recipe, trainer_options, stages = read_run(arguments)
    job = open_run(recipe, trainer_options)
    print(f"run folder: {job.folder}", flush=True)
    try:
        return _run(job, stages, started)
    except BaseException:
        forget_empty(job.folder)
        raise


def _run(job: Run, stages: Sequence[str], started: float) -> int:
    check_disk(job.recipe, job.train_set)
    # Named only to write caches ahead of time: distilling and training write what they need of them anyway.
    if "cache" in stages:
        job.timed("cache", job.cache)
    if set(stages) == {"cache"}:
        return 0
    distilled = job.timed("distill", job.distill)
    if not {"train", "evaluate", "export"} & set(stages):
        print(f"checkpoint {distilled}")
        return 0
    trained = job.timed("train", lambda: job.train(distilled))
    print(f"checkpoint {trained}")
    report = job.timed("evaluate", lambda: measure(job, trained)) if "evaluate" in stages else None
    if report is not None:
        print(report.table(job.seconds, time.perf_counter() - started))
        print(f"\nimages    {report.sheet}")
    if "export" in stages:
        model, results = (load(trained), None) if report is None else (report.model, report.headline)
        folder = job.export(model, results)
        print(f"model     {folder}  (fsdino predict --model {folder} ...)")
        if report is not None:
            job.log_results(report.headline, report.sheet, folder)
    # After some stages alone the folder stays open, and the other stages of the recipe go on in it.
    if set(stages) == set(STAGES):
        (job.folder / "done").write_text("finished\n")
    return 0
