"""Time and memory with the bare encoder beside: `python benchmarks/speed.py --csv FILE [--what SECTION ...]`.

Weights are random, arithmetic is float32, one image at a time. What is compared is timed in turn in one process, and
a ratio is the median over the rounds of the ratio within a round. Sections:

    reader    what comes after the encoder as a share of the bare encoder, and memory above it at twice the size
    methods   every method at its published configuration: remember, segment, whole one-shot episode
    classes   ten classes at once against one
    distill   a step of stage 1 with cached embeddings against a live SAM
    onnx      the exported graphs in onnxruntime, float32 and 8 bit, against torch
    start     the package's import and the command line's help
    job       `make distill` from nothing: seconds and peak memory

Memory is the peak of a process of its own above what Python and the libraries take, weights included. Rows of sections
that are not run are kept. `--small` runs tiny models instead, to try the script.
"""

from __future__ import annotations

import argparse

import torch
from provenance import provenance, read_rows, write_rows
from speed_rows import columns
from speed_sections import SECTIONS, run_case


def main() -> None:
    """Measure the sections asked for and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="file to write")
    parser.add_argument("--what", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--repetitions", type=int, default=3, help="rounds that count, after one that does not")
    parser.add_argument("--small", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # a case of `run_case`, in a process of its own
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    if chosen.peak is not None:
        run_case(chosen.peak)
        return
    if chosen.csv is None:
        parser.error("give --csv FILE")
    for name in chosen.what:
        found = SECTIONS[name](chosen.small, chosen.repetitions)
        about = provenance(seed=0, protocol=f"batch 1, random weights, medians of {chosen.repetitions} rounds in turn")
        for row in columns([{"section": name} | row for row in found]):
            print("  ".join(str(value) for value in row.values() if value != ""), flush=True)
        kept = [row for row in read_rows(chosen.csv) if row["section"] != name]
        write_rows(chosen.csv, [*kept, *columns([{"section": name} | row | about for row in found])])


if __name__ == "__main__":
    main()
