"""Commands killed at random moments (kill -9) and started again: is what they leave the same, byte by byte?

python -m benchmarks.cost.kills --rounds 3

A start is a fork of a process that has imported everything, so moments are drawn from what a command does, not from its
imports. With `--sent 15` (SIGTERM) or 2 (SIGINT) commands are told to stop instead, and their longest end is noted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, provenance, run_script, update_rows
from fsdino.base.storage import load
from tests.data.trees import label_folder_tree
from tests.forked import started
from tests.pipeline.test_run import write_recipe
from tests.small import write_image, write_references

DATA = ["--data", "folder", "--root", "data", "--folds", "0", "--device", "cpu"]
REFERENCES = ["--support", "refs", "--model", "tiny", "--device", "cpu"]
COMMANDS: dict[str, list[str]] = {
    "remember": ["remember", *REFERENCES, "--out", "memories"],
    "predict": ["predict", *REFERENCES, "--images", "photos", "--out", "out"],
    "evaluate": ["evaluate", "tiny", *DATA, "--episodes", "12", "--strips", "2", "--out", "measured"],
    "export": ["export", "--model", "tiny", "--out", "exported", "--formats", "safetensors"],
    "run": ["run", "--config", "small.yaml"],
}
# Clocks, logs, and the paths of this machine differ between any two runs.
VARYING = ("log.txt", "progress.jsonl", "metrics.csv", ".ckpt", "hparams.yaml")
# What a killed writer had not finished stays under its name of its own, and no reader takes it.
UNFINISHED = ".part"


def prepare(folder: Path) -> None:
    """What the commands work on: references, photographs, a data set, and a recipe with its images."""
    write_references(folder / "refs", {"cat": 2, "dog": 1})
    for i in range(6):
        write_image(folder / "photos" / f"{i}.png", 50, 70, seed=i)
    label_folder_tree(folder / "data")
    write_recipe(folder)


def state(folder: Path) -> dict[str, str]:
    """Every file by its place, the time in a run folder's name taken out, with a digest of its content."""
    found: dict[str, str] = {}
    runs = {path.name: f"run {i}" for i, path in enumerate(sorted(folder.glob("runs/small/[!.]*")))}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not file.name.endswith((*VARYING, UNFINISHED)):
            place = "/".join(runs.get(part, part) for part in file.relative_to(folder).parts)
            found[place] = hashlib.sha256(file.read_bytes()).hexdigest()
    for path in folder.glob("runs/small/*/export"):
        found["model"] = load(path).fingerprint()
    return found


def done(folder: Path) -> bool:
    """Whether a recipe's run is whole: the signal came after its last file, and a start would begin another."""
    return any(folder.glob("runs/small/[!.]*/done"))


def disturbed(arguments: list[str], folder: Path, seconds: float, sent: int) -> float | None:
    """Start a command and send it a signal after so long; seconds until it ended, None where it had ended before."""
    process = started(folder, arguments)
    process.join(seconds)
    if process.exitcode is not None:
        return None
    clock = time.monotonic()
    os.kill(process.pid or 0, sent)
    process.join()
    return time.monotonic() - clock


def ended(arguments: list[str], folder: Path) -> int:
    """Exit code of a command that is left alone."""
    process = started(folder, arguments)
    process.join()
    return process.exitcode or 0


def main(
    rounds: int = 3,
    commands: str = ",".join(COMMANDS),
    most: int = 3,
    sent: int = signal.SIGKILL,
    seed: int = 0,
    out: Path = RESULTS / "kills.csv",
) -> None:
    """Kill, start again, compare.

    Args:
        rounds: of each command.
        commands: which, with commas.
        most: kills of a round, drawn from one to so many.
        sent: the signal.
        seed: of the moments.
        out: file of the numbers.
    """
    # Shells start what runs in the background deaf to SIGINT, and so would be the commands.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = np.random.default_rng(seed)
    for name in commands.split(","):
        whole = Path(tempfile.mkdtemp())
        prepare(whole)
        ended(["models"], whole)  # the imports
        began = time.monotonic()
        if ended(COMMANDS[name], whole):
            raise SystemExit((whole / "log.txt").read_text()[-2000:])
        seconds, wanted = time.monotonic() - began, state(whole)
        same, took, differs = 0, list[float](), set[str]()
        for _ in range(rounds):
            folder = Path(tempfile.mkdtemp())
            prepare(folder)
            for moment in rng.random(int(rng.integers(1, most + 1))):
                if done(folder):
                    break
                if (end := disturbed(COMMANDS[name], folder, float(moment) * seconds, sent)) is not None:
                    took.append(end)
            code = 0 if done(folder) else ended(COMMANDS[name], folder)
            found = state(folder)
            different = {place for place in {*wanted, *found} if wanted.get(place) != found.get(place)}
            differs |= different | ({f"exit code {code}"} if code else set())
            same += not different and code == 0
            shutil.rmtree(folder)
        shutil.rmtree(whole)
        row = {"what": name, "signal": int(sent), "rounds": rounds, "kills": len(took), "same": same}
        row |= {"differs": rounds - same, "longest_s": round(max(took, default=0.0), 2)}
        row |= {"files": "; ".join(sorted(differs)[:6]), **provenance(seed=seed)}
        print(row, flush=True)
        update_rows(out, [row], ("what", "signal"))


if __name__ == "__main__":
    run_script(main)
