"""Milliseconds of every system in the embedded world's size: `python -m benchmarks.cost.methods`.

Remembering one reference and segmenting one image, all systems in turn in one process, with random weights, which
change no time. Writes `methods_times.csv`; what the systems find is measured by `benchmarks.accuracy.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.experiments import sizes
from benchmarks.accuracy.methods import FROZEN, TRAINED, recipe_of
from benchmarks.common import RESULTS, Row, provenance, run_script, write_rows
from benchmarks.cost.params import prototype
from benchmarks.cost.subjects import noise, segmenter
from benchmarks.cost.timing import interleaved
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.registry import build
from fsdino.pipeline.recipe import read_recipe

SIDE = (112, 112)  # of the embedded world's images
CALLS = 10  # in a round


def systems() -> dict[str, FewShotMethod]:
    """Every system of the table by title, with random weights."""
    found: dict[str, FewShotMethod] = {f"FS-DINO {kind}": segmenter("tiny", kind) for kind in ("compact", "full")}
    for name, title in TRAINED.items():
        recipe, _ = read_recipe(["--config", recipe_of(name)])
        args = {key: value for key, value in recipe.method.args.items() if key not in ("weights", "encoder_weights")}
        found[title] = build(name, size="mini", version="2.1", **args)
    img_size = found["SANSA"].img_size
    found[FROZEN] = build("sansa", size="mini", version="2.1", img_size=img_size, factor=0)
    return found | {"prototype": prototype("tiny")}


@torch.no_grad()
def times(found: dict[str, FewShotMethod], repetitions: int) -> list[Row]:
    """A row a system, medians over the rounds."""
    actions: dict[str, Callable[[], Any]] = {}
    mask = np.zeros(SIDE, np.uint8)
    mask[30:70, 40:80] = 1
    shown, image = [Reference(noise(1, SIDE), mask=mask)], noise(0, SIDE)
    for title, method in found.items():
        memory = method.remember(shown)
        actions[f"{title}|remember"] = lambda method=method: [method.remember(shown) for _ in range(CALLS)]
        actions[f"{title}|segment"] = lambda method=method, memory=memory: [
            method.segment(memory, image) for _ in range(CALLS)
        ]
    timings = interleaved(actions, repetitions)
    rows = []
    for title, method in found.items():
        ms = {f"{step}_ms": round(timings.ms(f"{title}|{step}") / CALLS, 2) for step in ("remember", "segment")}
        rows.append({"method": title} | ms | sizes(method))
    return rows


def main(repetitions: int = 5, csv: Path = RESULTS / "methods_times.csv") -> None:
    """Time every system and write the CSV."""
    rounds = f"medians of {repetitions} rounds in turn"
    about = provenance(protocol=f"batch 1, {SIDE[0]} px images, random weights, {rounds}")
    write_rows(csv, [row | about for row in times(systems(), repetitions)])


if __name__ == "__main__":
    run_script(main)
