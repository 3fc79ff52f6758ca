"""Whether images pay in batches: `python -m benchmarks.cost.batches`.

Torch and onnxruntime segment the same images one at a time and several in one pass, in turn in one process. A row
holds the time an image of each size of batch over that of single images, and by how much probabilities differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from benchmarks.cost.subjects import noise, reference
from benchmarks.cost.timing import interleaved
from fsdino.export.command import export
from fsdino.predict.engines import Engine
from fsdino.predict.engines.choice import EngineChoice, Runtime


def found(engine: Engine, joined: Any, images: list[np.ndarray], batch: int) -> list[np.ndarray]:
    """Probabilities of one class in every image, `batch` images at a time."""
    if batch == 1:
        return [next(engine.find(joined, image)).probs for image in images]
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    return [next(one).probs for part in parts for one in engine.find_batch(joined, part)]


def rows(engine: Engine, batches: tuple[int, ...], number: int, repetitions: int) -> list[Row]:
    """A row for each size of batch, the first of which is 1."""
    images = [noise(seed, (90 + seed, 120)) for seed in range(number)]
    joined = engine.join([engine.remember([reference(0)])])
    actions: dict[str, Callable[[], Any]] = {
        str(batch): lambda batch=batch: found(engine, joined, images, batch) for batch in batches
    }
    timings, alone = interleaved(actions, repetitions), found(engine, joined, images, 1)
    result = []
    for batch in batches:
        several = found(engine, joined, images, batch)
        largest = max(float(np.abs(a - b).max()) for a, b in zip(alone, several))
        ratio = round(timings.ratio((str(batch),), "1"), 3)
        result.append({"batch": batch, "time an image, ratio": ratio, "largest difference": f"{largest:.1e}"})
    return result


def main(
    model: str = "tiny",
    batches: tuple[int, ...] = (1, 2, 4, 8),
    number: int = 8,
    repetitions: int = 5,
    runtimes: tuple[Runtime, ...] = ("torch", "onnx"),
    device: str = "cpu",
    csv: Path = RESULTS / "batches.csv",
) -> None:
    """Time batches and update the CSV."""
    about = provenance(protocol=f"{number} images, one class, medians of {repetitions} rounds in turn")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for runtime in runtimes:
            if runtime != "torch":
                with torch.enable_grad():  # the exporter's own checks switch it off
                    export(model, folder, ("onnx",))
            opened = EngineChoice(folder if runtime != "torch" else model, runtime, device).open()
            timed = rows(opened, batches, number, repetitions)
            about_this = {"model": model, "runtime": runtime, "device": device}
            update_rows(csv, [about_this | row | about for row in timed], ["model", "runtime", "device", "batch"])
            for row in timed:
                print(runtime, *row.values())


if __name__ == "__main__":
    run_script(main)
