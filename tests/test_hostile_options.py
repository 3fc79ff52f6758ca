"""Odd texts for every option of every command: taken, or refused in one sentence, soon, and never with a traceback."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.cli import COMMANDS, main, parser_of, resolve
from tests.hostile import Tally, ended, judge
from tests.small import scene, write_references

# A recipe's options are those of a file, which test_hostile_values tries.
BASES: dict[str, list[str]] = {
    "predict": ["--support", "refs", "--images", "photos", "--out", "out", "--model", "tiny"],
    "remember": ["--support", "refs", "--out", "memories", "--model", "tiny"],
    "adapt": ["--images", "photos", "--out", "out", "--model", "tiny"],
    "evaluate": ["--method", "all_foreground", "--data", "synthetic", "--out", "measured"],
    "compare": ["--a", "refs", "--b", "refs"],
    "export": ["--out", "graphs"],
    "demo": ["--model", "tiny"],
    "models": [],
    "label-studio": ["--port", "0", "--model", "tiny"],
    "pre-annotate": ["--project", "1", "--model", "tiny"],
    "cvat": ["--task", "1", "--model", "tiny"],
    "serve": ["--port", "0", "--model", "tiny"],
    "data": ["--name", "synthetic", "--samples", "1"],
    "episodes": ["--name", "synthetic", "--number", "2"],
}
ODD = {
    "empty": "", "a word": "x", "minus one": "-1", "zero": "0", "huge": str(10**9), "beyond 64 bits": str(10**30),
    "a fraction": "0.123", "NaN": "nan", "YAML's NaN": ".nan", "infinity": "inf", "null": "null", "true": "true",
    "a list": "[a, -1]", "nested": "[[[]]]", "a table": "{a: -1}", "open": "[[{", "long": "A" * 100_000,
    "control characters": "a\nb\x07", "not ASCII": "\N{SNOWMAN}\ud800", "a folder": "photos", "a file": "photos/a.png",
    "outside": "../../../../..", "an option": "--port", "a tag": "!!python/object/apply:os.system ['true']",
}  # fmt: skip


class Reached(ValueError):
    """What was given is taken, and the work would begin."""


def options_of(command: str) -> list[str]:
    parser, _ = parser_of(resolve(COMMANDS[command][0]), command)
    return [key for key in parser.get_defaults().as_dict() if key not in ("config", "help")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """References and a photograph in the current folder; where models open and servers are called, commands end."""
    write_references(tmp_path / "refs", {"cat": 1})
    (tmp_path / "photos").mkdir()
    Image.fromarray(scene(50, 70, seed=4)[0]).save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)

    def reached(*_: Any, **__: Any) -> Any:
        raise Reached("this is where the work begins.")

    for target in ("predict.engines.choice.EngineChoice.open", "export.command.load", "demo.serve.open_studio",
                   "evaluation.command.measure_folds"):  # fmt: skip
        monkeypatch.setattr(f"fsdino.{target}", reached)
    pytest.importorskip("cvat_sdk", reason="the options of `fsdino cvat` need cvat-sdk")
    pytest.importorskip("prometheus_client", reason="the options of `fsdino serve` need fsdino[serve]")
    monkeypatch.setattr("fsdino.annotate.cvat.task._connected", reached)
    monkeypatch.setattr("fsdino.annotate.label_studio.client.Studio.project", reached)
    yield tmp_path


def run(command: str, option: str, value: str) -> int:
    """A command in this process; its refusal as an error, once it is known to be one line."""
    said = io.StringIO()
    base = BASES[command]
    given = [text for pair in zip(base[::2], base[1::2]) if pair[0] != f"--{option}" for text in pair]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([command, *given, f"--{option}={value}"])
    lines = said.getvalue().strip("\n").split("\n")
    if code == 2:
        assert lines[-1].startswith(f"fsdino {command}: ") and sum(": " in line for line in lines) == len(lines), lines
        raise ValueError(lines[-1][:2000] + lines[-1][-1:])
    assert "Traceback" not in said.getvalue()
    return code


def tried(cases: list[tuple[str, str, str]]) -> None:
    tally = Tally()
    for command, option, odd in cases:
        judge(tally, f"{command} --{option} {odd}", lambda c=command, o=option, v=ODD[odd]: run(c, o, v), free=True)
    ended(tally, "options", len(cases))


def cases_of(command: str) -> list[tuple[str, str, str]]:
    every = [(command, option, odd) for option in options_of(command) for odd in ODD]
    # Left out is the protocol's own number, a thousand, which takes its time.
    return [case for case in every if case != ("episodes", "number", "null")]


def test_every_command_is_tried() -> None:
    assert set(BASES) == set(COMMANDS) - {"run", "plan"}


def test_some_odd_options(place: Path) -> None:
    cases = [case for command in BASES for case in cases_of(command)]
    assert len(cases) > 2000
    chosen = np.random.default_rng(0).permutation(len(cases))[:60]
    tried([cases[i] for i in chosen])


@pytest.mark.slow
@pytest.mark.parametrize("command", BASES)
def test_every_odd_option(command: str, place: Path) -> None:
    tried(cases_of(command))
