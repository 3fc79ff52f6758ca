"""SIGTERM and SIGINT end a command at once, what was done is kept, and the same command then ends as if undisturbed."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from fsdino.base import storage
from fsdino.cli import main
from fsdino.evaluation.measure import RowWriter
from fsdino.evaluation.tables import read_episodes
from fsdino.predict import command
from fsdino.predict.outputs import Outputs
from fsdino.predict.record import read_record
from tests.data.trees import label_folder_tree
from tests.pipeline.test_run import write_recipe
from tests.small import small_segmenter, write_image, write_references

Stop = Callable[..., list[int]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(storage.save(small_segmenter(), tmp_path_factory.mktemp("model")))


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Stop]:
    """Runs a command whose process is sent a signal once a function of it has been called so often."""
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    # Shells start what runs in the background deaf to SIGINT; this test may be among it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def stopped(arguments: list[str], owner: Any, name: str, times: int, sent: int) -> list[int]:
        called, lock = list[int](), Lock()
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            with lock:  # files are written by several threads
                called.append(len(called) + 1)
                if len(called) == times:
                    os.kill(os.getpid(), sent)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, watched)
            assert main(arguments) == 130
        assert "stopped; the same command goes on from here." in capsys.readouterr().err
        return called

    yield stopped
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_predict_keeps_the_images_that_are_done(sent: int, model: str, tmp_path: Path, stop: Stop) -> None:
    for i in range(60):
        write_image(tmp_path / "photos" / f"{i}.png", 40, 50, seed=i)
    support = str(write_references(tmp_path / "refs", {"cat": 1}))
    words = ["predict", "--support", support, "--images", str(tmp_path / "photos"), "--model", model, "--device", "cpu"]
    assert 3 <= len(stop([*words, "--out", str(tmp_path / "out")], Outputs, "write", 3, sent)) < 60
    done = {entry["image"] for entry in read_record(tmp_path / "out" / "progress.jsonl")[1]}
    assert 3 <= len(done) < 60
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "labels").iterdir() if path.name in done}
    for out in ("out", "whole"):
        assert main([*words, "--out", str(tmp_path / out)]) == 0
    assert made and all(path.stat().st_mtime_ns == time for path, time in made.items())
    for path in (tmp_path / "whole" / "labels").iterdir():
        np.testing.assert_array_equal(Image.open(path), Image.open(tmp_path / "out" / "labels" / path.name))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_evaluate_keeps_the_episodes_that_are_measured(sent: int, model: str, tmp_path: Path, stop: Stop) -> None:
    root = str(label_folder_tree(tmp_path / "data"))
    words = ["evaluate", model, "--data", "folder", "--root", root, "--episodes", "6", "--folds", "0", "--strips", "0"]
    words += ["--device", "cpu", "--out"]
    assert len(stop([*words, str(tmp_path / "out")], RowWriter, "on_predict_batch_end", 2, sent)) == 2
    (rows,) = tmp_path.glob("out/fold0/rows.*.csv")
    kept = rows.read_text()
    assert kept.count("\n") == 2
    for out in ("out", "whole"):
        assert main([*words, str(tmp_path / out)]) == 0
    assert rows.read_text().startswith(kept) and rows.read_text().count("\n") == 6
    assert read_episodes(tmp_path / "out").equals(read_episodes(tmp_path / "whole"))


def test_remember_keeps_the_memories_that_are_written(model: str, tmp_path: Path, stop: Stop) -> None:
    support = str(write_references(tmp_path / "refs", {"cat": 1, "dog": 1, "cup": 1}))
    words = ["remember", support, "--model", model, "--device", "cpu", "--out"]
    assert len(stop([*words, str(tmp_path / "out")], command, "save_memory", 2, signal.SIGTERM)) == 2
    assert len(list(tmp_path.glob("out/*.fsmem"))) == 2
    for out in ("out", "whole"):
        assert main([*words, str(tmp_path / out)]) == 0
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir()) and len(files) == 3
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files)


def test_export_leaves_the_older_model_whole(model: str, tmp_path: Path, stop: Stop) -> None:
    out, other = tmp_path / "out", storage.save(small_segmenter(seed=1), tmp_path / "other")
    assert main(["export", model, "--out", str(out), "--formats", "safetensors"]) == 0
    words = ["export", str(other), "--out", str(out), "--formats", "safetensors"]
    # The weights are written, under a name of their own.
    stop(words, storage, "steady", 1, signal.SIGINT)
    assert storage.load(out).fingerprint() == storage.load(model).fingerprint()
    assert len(list(out.iterdir())) == 3, "no half of a file is left"
    assert main(words) == 0
    assert storage.load(out).fingerprint() == storage.load(other).fingerprint() and len(list(out.iterdir())) == 3


def test_a_run_keeps_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    monkeypatch.chdir(write_recipe(tmp_path))
    words = ["run", "--config", "small.yaml", "--stages", "distill"]
    assert len(stop(words, ModelCheckpoint, "_save_checkpoint", 1, signal.SIGTERM)) == 1
    (last,) = tmp_path.glob("runs/small/*/distill/checkpoints/last.ckpt")
    assert not (last.parents[1] / "done").exists()
    saved: list[int] = []
    original = ModelCheckpoint._save_checkpoint
    monkeypatch.setattr(ModelCheckpoint, "_save_checkpoint", lambda *given: saved.append(1) or original(*given))
    assert main(words) == 0
    assert len(saved) == 1, "the second epoch alone is left"
    assert (last.parents[1] / "done").exists() and len(list((tmp_path / "runs" / "small").iterdir())) == 1
