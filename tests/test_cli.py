"""The command line: help, errors in one sentence, exit codes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fsdino import cli
from fsdino.cli import COMMANDS, main, resolve, sentence, usage
from fsdino.evaluation.episode_choice import EpisodeChoice
from fsdino.evaluation.method_choice import MethodChoice
from fsdino.evaluation.work import Work

RECIPES = Path(__file__).parents[1] / "recipes"


def test_help_lists_every_command(capsys) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert len([line for line in usage().splitlines() if line.startswith("  ")]) == len(COMMANDS)


def test_a_name_with_the_end_of_a_line_stays_in_one() -> None:
    assert sentence(FileNotFoundError(2, "No such file", "a\nb")) == r"'a\nb': no such file."


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_resolves(name) -> None:
    assert callable(resolve(COMMANDS[name][0]))


def test_unknown_command_is_named(capsys) -> None:
    assert main(["distil"]) == 2
    assert "there is no command 'distil'" in capsys.readouterr().err


def test_python_looks_for_no_cycles_when_a_command_has_ended() -> None:
    code = (
        "import atexit, gc; atexit.register(lambda: print('left out:', gc.get_freeze_count() > 0)); "
        "from fsdino.cli import main; main(['compare', 'a', 'b'])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "left out: True\n" and "'a" in done.stderr


def test_help_and_package_import_neither_torch_nor_lightning() -> None:
    code = "import sys, fsdino.cli; fsdino.cli.main(['--help']); assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_options_of_parts_are_written_as_people_write_them(monkeypatch) -> None:
    seen: dict[str, Any] = {}

    def evaluate(choice: MethodChoice, test: EpisodeChoice, work: Work, strips: int = 12) -> int:
        seen.update(choice=choice, test=test, work=work, strips=strips)
        return 3

    monkeypatch.setattr("fsdino.evaluation.command.evaluate", evaluate)
    options = ["--skip-rare", "--num-workers=2", "--folds", "0,1", "--options.img-size", "64", "--strips", "0"]
    assert main(["evaluate", "tiny", *options]) == 3
    assert seen == {
        "choice": MethodChoice("tiny", options={"img-size": 64}),
        "test": EpisodeChoice(skip_rare=True, folds="0,1"),
        "work": Work(num_workers=2),
        "strips": 0,
    }


def test_a_run_needs_stages_that_there_are(capsys) -> None:
    assert main(["run", "--config", str(RECIPES / "fsdino" / "tiny.yaml"), "--stages", "train,measure"]) == 2
    assert "there is no stage 'measure'; use cache, distill, train, evaluate, export" in capsys.readouterr().err


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_a_sentence(sent, monkeypatch, capsys) -> None:
    def stopped() -> int:
        try:
            os.kill(os.getpid(), sent)
            time.sleep(5)
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning's trainers do
        return 0

    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    # Shells start what runs in the background deaf to SIGINT; this test may be among it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("fsdino.cli.resolve", lambda target: stopped)
    try:
        assert main(["models"]) == 130
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert "stopped; the same command goes on from here." in capsys.readouterr().err


def test_an_interrupt_that_python_drops_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tidied:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def call(*_: Any) -> int:
        Tidied()
        time.sleep(30)
        return 0

    monkeypatch.setattr(cli, "call", call)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(["models"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
