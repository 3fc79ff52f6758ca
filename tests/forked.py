"""The command in processes of its own that can be killed, forked from one that has imported everything."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

# From a server, not from the process of the tests: what that one has computed may have left threads behind. Its imports
# are paid once, where every `python -m fsdino.cli` would pay them again.
_CONTEXT = multiprocessing.get_context("forkserver")
_COMMANDS = ("pipeline", "predict", "evaluation", "export")
_CONTEXT.set_forkserver_preload(["tests.forked", *(f"fsdino.{room}.command" for room in _COMMANDS)])


def started(folder: Path, arguments: Sequence[str]) -> ForkServerProcess:
    """`fsdino ARGUMENTS` in a folder; what it says goes to `log.txt` there."""
    process = _CONTEXT.Process(target=_command, args=(str(folder), list(arguments)))
    process.start()
    return process


def _command(folder: str, arguments: list[str]) -> None:
    from fsdino.cli import main

    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        code = main(arguments)
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.exit(code)
