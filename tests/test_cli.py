"""The command line: help, errors in one sentence, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fsdino.cli import FUNCTION_COMMANDS, RECIPE_COMMANDS, main, resolve, usage


def test_help_lists_every_command(capsys) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in {**RECIPE_COMMANDS, **FUNCTION_COMMANDS})


@pytest.mark.parametrize("name", sorted({**RECIPE_COMMANDS, **FUNCTION_COMMANDS}))
def test_every_command_resolves(name) -> None:
    assert callable(resolve({**RECIPE_COMMANDS, **FUNCTION_COMMANDS}[name][0]))


def test_unknown_command_is_named(capsys) -> None:
    assert main(["distil"]) == 2
    assert "there is no command 'distil'" in capsys.readouterr().err


def test_expected_errors_are_one_sentence_without_traceback(capsys) -> None:
    assert main(["data", "--name", "pascal5i"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fsdino data: data set 'pascal5i'") and error.count("\n") == 1


def test_help_and_package_import_neither_torch_nor_lightning() -> None:
    code = "import sys, fsdino.cli; fsdino.cli.main(['--help']); assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_episodes_are_drawn_written_and_verified(tmp_path, capsys) -> None:
    out = str(tmp_path / "list.json")
    arguments = ["episodes", "--name", "synthetic", "--number", "5", "--out", out]
    assert main(arguments) == 0
    first = Path(out).read_text()
    assert main(arguments) == 0 and Path(out).read_text() == first
    assert main(["episodes", "--name", "synthetic", "--verify", out]) == 0
    assert "5 episodes" in capsys.readouterr().out


def test_usage_has_a_line_for_each_command() -> None:
    assert len([line for line in usage().splitlines() if line.startswith("  ")]) == len(RECIPE_COMMANDS) + len(
        FUNCTION_COMMANDS
    )


def test_evaluate_takes_a_recipe_or_a_method(monkeypatch) -> None:
    monkeypatch.setattr("fsdino.pipeline.commands.evaluate", lambda recipe, options: 70 + len(recipe.name))
    assert main(["evaluate", "--config", "recipes/fsdino/tiny.yaml"]) == 70 + len("fsdino-tiny")
    seen = {}

    def evaluate(method: str, num_workers: int = 0, skip_rare: bool = False, folds: str = "all") -> int:
        seen.update(method=method, num_workers=num_workers, skip_rare=skip_rare, folds=folds)
        return 3

    monkeypatch.setattr("fsdino.evaluation.command.evaluate", evaluate)
    assert main(["evaluate", "tiny", "--skip-rare", "--num-workers=2", "--folds", "0,1"]) == 3
    assert seen == {"method": "tiny", "num_workers": 2, "skip_rare": True, "folds": "0,1"}
