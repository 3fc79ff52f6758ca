"""Every block of the tutorial runs, in order, in an empty folder."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import fsdino
from fsdino.cli import main
from fsdino.predict.engines.choice import EngineChoice

PAGE = Path(fsdino.__file__).with_name("tutorial.md")
SHORT = ["--train.epochs=1", "--train.epoch_length=4", "--train.batch_size=2", "--presence.episodes=8",
         "--data.val_episodes=3", "--data.test_episodes=3", "--evaluate.baselines=false",
         "--trainer.enable_progress_bar=false"]  # fmt: skip


def blocks() -> list[tuple[str, str]]:
    """Language and text of the page's blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def shell(block: str) -> None:
    """Run a block's commands in this process, trainings shortened."""
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "fsdino", f"the test knows no other program: {line}"
        assert main(arguments + (SHORT if arguments[0] == "run" else [])) == 0, line


def empty_graphs(model: Any, folder: Path, formats: Any, *_: Any) -> dict[str, float]:
    """In place of tracing, which takes half a minute and has its own tests (tests/export)."""
    for name in ("remember.onnx", "segment.onnx"):
        (folder / name).touch()
    return {}


def test_every_block_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fsdino.export.command.export_graphs", empty_graphs)
    monkeypatch.setattr("fsdino.predict.engines.choice.OnnxEngine", lambda folder, **_: EngineChoice("tiny").open())
    names: dict[str, Any] = {}
    for language, block in blocks():
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), names)
        else:
            assert language == "bash"
            shell(block)
    languages = [language for language, _ in blocks()]
    assert languages.count("python") >= 8 and languages.count("bash") >= 3
    said = capsys.readouterr().out
    assert "from a mask: " in said and "adapted: " in said
    assert names["found"].mask.shape == (names["other"].height, names["other"].width)
    for folder in ("out", "out-saved", "out-onnx"):
        assert list(Path(folder).rglob("b.png")), f"{folder} holds no label map"
