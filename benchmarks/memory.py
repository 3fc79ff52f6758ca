"""Whether memory grows with the number of predictions: `python benchmarks/memory.py [--csv FILE]`.

A process of its own for each runtime segments images of sixteen sizes, two remembered classes at a time, and notes
its resident memory on the way. What counts is the growth from a tenth of the run, when every size has been seen, to its
end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from provenance import ROOT, provenance, write_rows
from subjects import annotated
from timing import resident_mb

from fsdino.export.command import export
from fsdino.predict.command import open_engine
from fsdino.predict.engine import resolve

MODEL, BAR = "tiny", 20.0  # megabytes that may come from fragmentation
LINE = "resident"


def run_case(runtime: str, model: str, number: int) -> None:
    """Predict `number` times and print the resident memory at a tenth, a half and the end."""
    torch.set_num_threads(1)
    engine = open_engine(model, runtime, "cpu")  # type: ignore[arg-type]
    memories = [engine.remember([annotated(seed)]) for seed in range(2)]
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(60, 240, (16, 2))]
    for i in range(1, number + 1):
        size = sizes[i % len(sizes)]
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        resolve(engine.segment(memories, image), size, engine.threshold)
        if i in (number // 10, number // 2, number):
            print(LINE, i, resident_mb(), flush=True)


def measure(runtime: str, model: str, number: int) -> dict[str, Any]:
    """One row: megabytes at a tenth, a half and the end, and the growth.

    Raises:
        RuntimeError: If the process fails.
    """
    asked = [sys.executable, __file__, "--case", runtime, "--model", model, "--number", str(number)]
    ran = subprocess.run(asked, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{runtime} failed: {ran.stderr.strip()[-500:]}")
    found = [float(line.split()[2]) for line in ran.stdout.splitlines() if line.startswith(LINE)]
    grown = found[-1] - found[0]
    names = ("MB after a tenth", "after a half", "at the end")
    return {"runtime": runtime, "predictions": number, **{n: f"{mb:.1f}" for n, mb in zip(names, found)},
            "growth, MB": f"{grown:+.1f}", "bar": f"<= {BAR:.0f}", "met": "yes" if grown <= BAR else "no"}  # fmt: skip


def main() -> None:
    """Measure both runtimes and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", default=str(ROOT / "benchmarks" / "results" / "memory.csv"), help="file to write")
    parser.add_argument("--number", type=int, default=10_000, help="predictions")
    parser.add_argument("--model", default=MODEL, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)  # in a process of its own
    chosen = parser.parse_args()
    if chosen.case is not None:
        run_case(chosen.case, chosen.model, chosen.number)
        return
    with tempfile.TemporaryDirectory() as folder:
        export(MODEL, folder, ("onnx",))
        rows = [measure(name, where, chosen.number) for name, where in (("torch", MODEL), ("onnx", folder))]
    for row in rows:
        print("  ".join(str(value) for value in row.values()))
    about = provenance(seed=0, protocol=f"model {MODEL}, one thread, images of 16 sizes, two classes each")
    write_rows(chosen.csv, [row | about for row in rows])


if __name__ == "__main__":
    main()
