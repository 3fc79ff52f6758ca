"""Everything that a GPU should be asked, in one run that always ends: `python -m benchmarks.cost.gpu`.

Each section has its share of the time; one that fails or runs out of it leaves a row that says so, and the others go
on. Rows are written as they come. Weights are random. A ratio is time an image over the bare encoder's, in turn in the
same run; `mfu` is the share of the operations a second that a large matrix product reached in this run, operations
counted by torch. Sections:

    tests      tests/models on the device
    agree      share of equal pixels of masks from CPU and device, every method, every precision
    peak       a large matrix product
    encoder    bare encoders: precision, compiled blocks, channels_last, kinds of attention
    segment    remember, segment, ten classes
    distill    a step of stage 1 with cached targets and with a live SAM
    episodes   a step of stage 2 of every method that learns
    predict    `fsdino predict` from JPEG to PNG
    onnx       exported graphs on onnxruntime's CUDA provider

On a CPU it runs too (`--device cpu --small true --csv FILE`), to try the script; the result file is a GPU's alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from benchmarks.cost import gpu_networks, gpu_whole
from benchmarks.cost.gpu_timing import Bench, OutOfTime, at_most, told

ORDER = ("section", "method", "preset", "img_size", "batch", "step", "precision", "variant", "ms", "per_s", "base",
         "ratio", "gflop", "tflops", "mfu", "peak_mb", "equal", "largest", "spread", "syncs", "error")  # fmt: skip
KEY = ("section", "method", "preset", "img_size", "batch", "step", "precision", "variant", "device")
# What each may take of the whole, in percent; what one leaves over is the others'.
SECTIONS: dict[str, tuple[float, Callable[[Bench], Iterator[Row]]]] = {
    "tests": (22, gpu_whole.tests),
    "agree": (14, gpu_whole.agree),
    "peak": (3, gpu_networks.peak),
    "encoder": (18, gpu_networks.encoder),
    "segment": (10, gpu_networks.segment),
    "distill": (12, gpu_networks.distill),
    "episodes": (10, gpu_networks.episodes),
    "predict": (8, gpu_whole.predict),
    "onnx": (3, gpu_whole.onnx),
}


def section(name: str, bench: Bench, seconds: float) -> Iterator[Row]:
    """The rows of a section; where it fails or its time is up, the last one says so."""
    rows = SECTIONS[name][1](bench)
    end = time.monotonic() + seconds
    while True:
        try:
            with at_most(end - time.monotonic()):
                row = next(rows)
        except StopIteration:
            return
        except (Exception, OutOfTime) as error:  # whatever it is, the other sections go on
            late = OutOfTime(f"not done after {seconds:.0f} s")  # of the section, not of its last row
            yield {"step": "stopped", "error": told(late if isinstance(error, OutOfTime) else error)}
            return
        yield row


def main(
    device: str = "auto",
    seconds: float = 470,
    what: list[str] | None = None,
    small: bool = False,
    csv: Path | None = None,
) -> None:
    """Measure and update the CSV.

    Args:
        device: cuda, cuda:1, cpu, or auto: a GPU where there is one.
        seconds: for everything.
        what: sections; all when left out.
        small: tiny models, to try the script.
        csv: where rows go; left out: benchmarks/results/gpu.csv, from a GPU alone.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    bench = Bench(torch.device(kind), small, rounds=1 if small else 5)
    if csv is None and not bench.on_gpu:
        raise ValueError("no GPU is used, and its result file is not for a CPU's numbers; give --csv FILE.")
    path = csv or RESULTS / "gpu.csv"
    on = torch.cuda.get_device_name(bench.device) if bench.on_gpu else "cpu"
    about = provenance(seed=0, protocol="random weights, medians of rounds in turn") | {"device": on}
    del about["precision"]  # each row has its own
    # Steps are taken without a Trainer, which would log.
    warnings.filterwarnings("ignore", message=".*reference is not registered on the model.*")
    chosen = {name: SECTIONS[name][0] for name in what or SECTIONS}
    end, empty = time.monotonic() + seconds, dict.fromkeys(ORDER, "")
    for name in list(chosen):
        share = (end - time.monotonic()) * chosen[name] / sum(chosen.values())
        del chosen[name]
        started = time.monotonic()
        for row in section(name, bench, share):
            whole = empty | {"section": name} | row
            print("  ".join(str(value) for value in whole.values() if value != ""), flush=True)
            update_rows(path, [whole | about], KEY)
        print(f"{name}: {time.monotonic() - started:.0f} of {share:.0f} s", flush=True)
        bench.clear()


if __name__ == "__main__":
    run_script(main)
