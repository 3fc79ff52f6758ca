"""Peak memory of large images, whole and window by window: `python -m benchmarks.cost.tiles`.

Every row is one image in a process of its own; what counts is how far the peak is above what the process held with the
model and the memories loaded.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from benchmarks.common import RESULTS, Row, provenance, run_script, write_rows
from benchmarks.cost.subjects import noise, reference
from benchmarks.cost.timing import apart, resident_mb
from fsdino.base.result import resolve
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.tiles import segment_tiled


def watch(model: str, size: tuple[int, int], classes: int, tile: int, min_score: float) -> tuple[float, float, float]:
    """Segment one image (H, W); megabytes held before, at the peak, and seconds."""
    torch.set_num_threads(1)
    engine = EngineChoice(model, "torch", "cpu").open()
    joined = engine.join([engine.remember([reference(seed % 10)]) for seed in range(classes)])
    names, image = [f"class {i}" for i in range(classes)], noise(size=size)
    before, started = resident_mb() or float("nan"), time.perf_counter()
    if tile:
        segment_tiled(engine, joined, names, image, tile, min_score=min_score)
    else:
        resolve(zip(names, engine.find(joined, image)), size, engine.threshold, min_score)
    return before, resident_mb("VmHWM") or float("nan"), time.perf_counter() - started


def main(
    model: str = "tiny",
    sizes: tuple[tuple[int, int], ...] = ((1370, 1825), (2740, 3650)),
    classes: tuple[int, ...] = (1, 10),
    tiles: tuple[int, ...] = (0, 512, 1024),
    csv: Path = RESULTS / "tiles.csv",
) -> None:
    """Measure every combination, and the largest once more with a least score, and write the CSV."""
    asked = [(size, number, tile, 0.0) for size in sizes for number in classes for tile in tiles]
    rows: list[Row] = []
    for size, number, tile, min_score in [*asked, (sizes[-1], classes[-1], tiles[-1], 0.01)]:
        before, peak, seconds = apart(watch, model, size, number, tile, min_score)
        row = {"height": size[0], "width": size[1], "classes": number, "tile": tile, "min_score": min_score}
        rows.append(row | {"extra_mb": round(peak - before), "peak_mb": round(peak), "seconds": round(seconds, 1)})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()))
    about = provenance(seed=0, protocol=f"model {model}, one image of noise in a process of its own, one thread")
    write_rows(csv, [row | about for row in rows])


if __name__ == "__main__":
    run_script(main)
