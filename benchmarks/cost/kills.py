"""Commands killed at random moments (kill -9) and started again: is what they leave the same, byte by byte?

python -m benchmarks.cost.kills --kills 3
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, ROOT, provenance, run_script, update_rows
from fsdino.base.storage import load

RECIPE = """
preset: tiny
model: {encoder_weights: "bundled:tiny_encoder"}
data:
  train: [{name: synthetic, options: {images_per_class: 2}}]
  test: {name: synthetic, options: {images_per_class: 3}}
  val_episodes: 4
  test_episodes: 4
cache: {shard_size: 16, hflip: false}
distill: {epochs: 1, sizes: [56]}
train: {epochs: 1, epoch_length: 16, batch_size: 8}
presence: {episodes: 8}
evaluate: {strips: 2}
log: {wandb: "off"}
"""
WORLD = ["--data_options.images_per_class", "3", "--folds", "0", "--device", "cpu"]
REFERENCES = ["--support", "refs", "--model", "tiny", "--device", "cpu"]
COMMANDS: dict[str, list[str]] = {
    "remember": ["remember", *REFERENCES, "--out", "memories"],
    "predict": ["predict", *REFERENCES, "--images", "photos", "--out", "out"],
    "evaluate": ["evaluate", "tiny", *WORLD, "--episodes", "12", "--strips", "2", "--out", "measured"],
    "export": ["export", "--model", "tiny", "--out", "exported", "--formats", "safetensors"],
    "run": ["run", "--config", "small.yaml"],
}
# Clocks, logs, and the paths of this machine differ between any two runs.
VARYING = ("log.txt", "progress.jsonl", "metrics.csv", ".ckpt", "hparams.yaml")


def prepare(folder: Path) -> None:
    """What the commands work on: references, photographs and a recipe."""
    from tests.small import write_image, write_references

    write_references(folder / "refs", {"cat": 2, "dog": 1})
    for i in range(6):
        write_image(folder / "photos" / f"{i}.png", 50, 70, seed=i)
    (folder / "small.yaml").write_text(RECIPE)


def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    """A command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fsdino.cli", *COMMANDS[name]], cwd=folder, env=environment, stdout=log, stderr=log
        )


def state(folder: Path) -> dict[str, str]:
    """Every file by its place, the time in a run folder's name taken out, with a digest of its content."""
    found: dict[str, str] = {}
    runs = {path.name: f"run {i}" for i, path in enumerate(sorted(folder.glob("runs/small/*")))}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(VARYING)):
        place = "/".join(runs.get(part, part) for part in file.relative_to(folder).parts)
        found[place] = hashlib.sha256(file.read_bytes()).hexdigest()
    for path in folder.glob("runs/small/*/export"):
        found["model"] = load(path).fingerprint()
    return found


def main(
    kills: int = 3,
    commands: str = ",".join(COMMANDS),
    most: int = 3,
    seed: int = 0,
    out: str = str(RESULTS / "kills.csv"),
) -> None:
    """Kill, start again, compare.

    Args:
        kills: rounds of each command.
        commands: which, with commas.
        most: kills of a round, drawn from one to so many.
        seed: of the moments.
        out: file of the numbers.
    """
    rng, rows = np.random.default_rng(seed), []
    for name in commands.split(","):
        whole = Path(tempfile.mkdtemp())
        prepare(whole)
        started = time.monotonic()
        if start(name, whole).wait() != 0:
            raise SystemExit((whole / "log.txt").read_text()[-2000:])
        seconds, wanted = time.monotonic() - started, state(whole)
        same, killed, differs = 0, 0, set[str]()
        for _ in range(kills):
            folder = Path(tempfile.mkdtemp())
            prepare(folder)
            for _ in range(int(rng.integers(1, most + 1))):
                process = start(name, folder)
                # Not before Python has loaded what it needs, where nothing is written yet.
                try:
                    process.wait(float(rng.uniform(0.3, 1.0)) * seconds)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    killed += 1
            code, found = start(name, folder).wait(), state(folder)
            different = {place for place in {*wanted, *found} if wanted.get(place) != found.get(place)}
            differs |= different | ({f"exit code {code}"} if code else set())
            same += not different and code == 0
            shutil.rmtree(folder)
        shutil.rmtree(whole)
        row = {"what": name, "rounds": kills, "kills": killed, "same": same, "differs": kills - same}
        rows.append(row | {"files": "; ".join(sorted(differs)[:6]), **provenance(seed=seed)})
        print(row, sorted(differs)[:6], flush=True)
        update_rows(out, rows, ("what",))


if __name__ == "__main__":
    run_script(main)
