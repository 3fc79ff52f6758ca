"""Whether memory grows with the number of predictions: `python -m benchmarks.cost.memory`.

A process of its own for each runtime segments images of sixteen sizes, two remembered classes at a time, and notes
its resident memory on the way. What counts is the growth from a tenth of the run, when every size has been seen, to its
end.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.common import RESULTS, Row, provenance, run_script, write_rows
from benchmarks.cost.subjects import reference
from benchmarks.cost.timing import apart, resident_mb
from fsdino.base.result import resolve
from fsdino.export.command import export
from fsdino.predict.engines.choice import EngineChoice

BAR = 20.0  # megabytes that may come from fragmentation
Runtime = Literal["torch", "onnx"]


def watch(runtime: Runtime, model: str, number: int) -> list[float]:
    """Predict `number` times; the resident megabytes at a tenth, a half and the end."""
    torch.set_num_threads(1)
    engine = EngineChoice(model, runtime, "cpu").open()
    memories = engine.join([engine.remember([reference(seed)]) for seed in range(2)])
    rng, noted = np.random.default_rng(0), []
    sizes = [(int(h), int(w)) for h, w in rng.integers(60, 240, (16, 2))]
    for i in range(1, number + 1):
        size = sizes[i % len(sizes)]
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        resolve(zip("ab", engine.find(memories, image)), size, engine.threshold)
        if i in (number // 10, number // 2, number):
            noted.append(resident_mb() or float("nan"))
    return noted


def measure(runtime: Runtime, model: str, number: int) -> Row:
    """One row: megabytes at a tenth, a half and the end, and the growth."""
    found = apart(watch, runtime, model, number)
    grown = found[-1] - found[0]
    names = ("MB after a tenth", "after a half", "at the end")
    row = {"runtime": runtime, "predictions": number} | {name: f"{mb:.1f}" for name, mb in zip(names, found)}
    return row | {"growth, MB": f"{grown:+.1f}", "bar": f"<= {BAR:.0f}", "met": "yes" if grown <= BAR else "no"}


def main(
    model: str = "tiny",
    number: int = 10_000,
    runtimes: tuple[Runtime, ...] = ("torch", "onnx"),
    csv: Path = RESULTS / "memory.csv",
) -> None:
    """Measure runtimes over at least ten predictions and write the CSV."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for runtime in runtimes:
            if runtime == "onnx":
                export(model, folder, ("onnx",))
            rows.append(measure(runtime, folder if runtime == "onnx" else model, number))
            print("  ".join(str(value) for value in rows[-1].values()))
    about = provenance(seed=0, protocol=f"model {model}, one thread, images of 16 sizes, two classes each")
    write_rows(csv, [row | about for row in rows])


if __name__ == "__main__":
    run_script(main)
