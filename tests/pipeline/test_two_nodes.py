"""Two nodes of one process each on the loopback: the same weights, through kills, signals, other numbers of nodes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fsdino.base.storage import load

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RECIPE = """
preset: tiny
model: {encoder_weights: "bundled:tiny_encoder"}
data:
  train: [{name: synthetic, options: {images_per_class: 2}}]
  test: {name: synthetic, options: {images_per_class: 3}}
  val_episodes: 6
  test_episodes: 4
cache: {features: false, teacher: false}
distill: {epochs: 0}
train: {epochs: 2, epoch_length: 16, batch_size: 2}
presence: {episodes: 8}
log: {wandb: "off"}
compute: {timeout: 1.0}
"""
NEAR = 0.05
SECONDS = 600  # for a run; the machine may be busy


def start(folder: Path, nodes: int, node: int, port: int, send: str, *more: str) -> subprocess.Popen[str]:
    """One node."""
    command = [sys.executable, "-m", "tests.pipeline.node", "run", "--config", "small.yaml", "--stages", "train"]
    options = [f"--trainer.num_nodes={nodes}", "--trainer.accelerator=cpu", *more]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "NODE_RANK": str(node), "SEND": send,
    }  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    quiet = ["--trainer.enable_progress_bar=false"]
    return subprocess.Popen([*command, *options, *quiet], cwd=folder, env=environment, **pipes)  # type: ignore[call-overload]


def run(folder: Path, *more: str, nodes: int = 2, send: str = "-1:0:SIGTERM") -> list[tuple[int, str]]:
    """Exit code and words of each node; one that stands still is killed once the others have ended."""
    folder.mkdir(exist_ok=True)
    (folder / "small.yaml").write_text(RECIPE)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [start(folder, nodes, node, port, send, *more) for node in range(nodes)]
    silent = int(send.partition(":")[0]) if send.endswith("SIGSTOP") else -1
    said = {}
    try:
        for node in sorted(range(nodes), key=lambda node: node == silent):
            if node == silent:
                processes[node].kill()
            said[node] = processes[node].communicate(timeout=SECONDS)[0]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, said[node]) for node, process in enumerate(processes)]


def weights(folder: Path, rank: int = 0, nodes: int = 2) -> dict[str, torch.Tensor]:
    """What a process ended with."""
    return torch.load(folder / f"weights-{rank}-{nodes}.pt", weights_only=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def apart(folder: Path, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """How far two trainings are apart, as a share of how far the first went.

    Not number by number: where a gradient is next to nothing, AdamW makes a whole step of its rounding.
    """
    start = torch.load(folder / "start.pt", weights_only=True)

    def distance(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor]) -> float:
        return sum(float((x[name].double() - y[name].double()).square().sum()) for name in a) ** 0.5

    return distance(a, b) / distance(a, start)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "whole"
    for code, text in run(folder):
        assert code == 0, text[-3000:]
    return folder


def test_both_nodes_end_with_the_same_weights_which_are_one_process_s_with_twice_the_batch(
    whole: Path, tmp_path: Path
) -> None:
    assert same(weights(whole, 0), weights(whole, 1))
    ((code, text),) = run(tmp_path / "one", "--train.batch_size=4", nodes=1)
    assert code == 0, text[-3000:]
    share = apart(whole, weights(whole), weights(tmp_path / "one", nodes=1))
    assert share < NEAR, share
    (folder,) = whole.glob("runs/small/*")
    assert load(folder).learns_absence  # what fsdino opens


def test_a_node_that_is_killed_ends_the_other_with_a_sentence_and_the_run_goes_on(whole: Path, tmp_path: Path) -> None:
    folder, started = tmp_path / "killed", time.monotonic()
    (code, text), (killed, _) = run(folder, send="1:6:SIGKILL")
    assert killed == -9 and code == 2, text[-3000:]
    assert "another process of this run ended, or did not answer" in text and "start all of them again" in text
    assert time.monotonic() - started < SECONDS
    shutil.copytree(folder, tmp_path / "fewer")
    assert [code for code, _ in run(folder)] == [0, 0]
    assert same(weights(folder), weights(whole))  # from the last whole epoch
    # One node takes the steps of two, and ends where they would have: sums in another order apart.
    ((code, text),) = run(tmp_path / "fewer", nodes=1)
    assert code == 0 and "going on with" in text, text[-3000:]
    share = apart(whole, weights(whole), weights(tmp_path / "fewer", nodes=1))
    assert share < NEAR, share


@pytest.mark.parametrize("silent", [0, 1])
def test_a_node_that_stands_still_ends_the_other_within_the_limit(silent: int, whole: Path, tmp_path: Path) -> None:
    # Neither dead nor heard of: connections stay open, so nothing but the limit ends the wait.
    found = run(tmp_path, "--compute.timeout=0.25", send=f"{silent}:6:SIGSTOP")
    code, text = found[1 - silent]
    assert code == 2 and found[silent][0] == -9, text[-3000:]
    assert "another process of this run ended, or did not answer for 0.25 minutes" in text, text[-3000:]
    if silent:
        assert [code for code, _ in run(tmp_path)] == [0, 0]
        assert same(weights(tmp_path), weights(whole))


def test_a_signal_to_one_node_stops_both_in_the_middle_of_an_epoch(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "asked"
    for code, text in run(folder, send="1:6:SIGTERM"):
        assert code == 130 and "stopped; the same command goes on from here" in text, text[-3000:]
    assert [path.name for path in folder.glob("runs/small/*/train/checkpoints/cut-*")] == ["cut-2.ckpt"]
    assert [code for code, _ in run(folder)] == [0, 0]
    assert same(weights(folder), weights(whole))
