"""A whole run: killed in each stage and started again by the same command, it ends with the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import fsdino

RECIPE = """
preset: tiny
model: {encoder_weights: "bundled:tiny_encoder"}
data:
  train: [{name: synthetic, options: {images_per_class: 2}}]
  test: {name: synthetic, options: {images_per_class: 3}}
  val_episodes: 8
  test_episodes: 6
cache: {shard_size: 16, hflip: false}
distill: {epochs: 2, sizes: [56, 112]}
train: {epochs: 2, epoch_length: 24, batch_size: 8}
presence: {episodes: 16}
evaluate: {strips: 2}
log: {wandb: "off"}
"""
COMMAND = [sys.executable, "-m", "fsdino.cli", "run", "--config", "small.yaml"]


def _run(folder: Path, kill_at: str | None = None) -> int:
    """Run in a folder; with `kill_at`, kill -9 as soon as a file of that pattern is there."""
    folder.mkdir(exist_ok=True)
    (folder / "small.yaml").write_text(RECIPE)
    environment = {**os.environ, "PYTHONPATH": str(Path(fsdino.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(COMMAND, cwd=folder, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            if kill_at is not None and any(folder.glob(kill_at)):
                process.send_signal(signal.SIGKILL)
            time.sleep(0.005)
    return process.returncode


def _weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    (path,) = folder.glob(f"runs/small/*/{stage}/checkpoints/last.ckpt")
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def test_kill_in_every_stage_changes_no_weight(tmp_path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert _run(whole) == 0, (whole / "log.txt").read_text()[-2000:]
    for pattern in (
        "runs/cache/teacher-*/*.npy", "runs/small/*/distill/checkpoints/last.ckpt",
        "runs/small/*/train/checkpoints/last.ckpt", "runs/small/*/evaluate/*/rows.0.csv",
    ):  # fmt: skip
        assert _run(parts, pattern) == -signal.SIGKILL, f"no {pattern}: {(parts / 'log.txt').read_text()[-2000:]}"
    assert _run(parts) == 0, (parts / "log.txt").read_text()[-2000:]
    for stage in ("distill", "train"):
        expected, found = _weights(whole, stage), _weights(parts, stage)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), stage
    scores = [sorted(f.glob("runs/small/*/evaluate/*/rows.0.csv"))[0] for f in (whole, parts)]
    assert scores[0].read_text() == scores[1].read_text()
