"""Would the tests notice? Each change of a line is made in a copy of the package; the tests named with it must fail.

python -m benchmarks.trust.mutants --only splits
"""

from __future__ import annotations

import compileall
import multiprocessing
import os
import py_compile
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import RESULTS, ROOT, Row, provenance, read_rows, run_script, update_rows, write_rows
from benchmarks.trust.changes import CHANGES, Change

# What every test would import anew; nothing of the package, which each change gives other lines.
HEAVY = ("lightning.pytorch", "timm", "torchmetrics", "cv2", "PIL.Image", "scipy.stats")
KEY = ("file", "old", "new")
SECONDS = 600  # for the tests of one change; a changed line may never end


class Failures:
    """A plugin of pytest that notes the first test that fails, and how many passed."""

    def __init__(self) -> None:
        self.first, self.passed = "", 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of a test."""
        self.passed += report.passed and report.when == "call"
        if report.failed and not self.first:
            self.first = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Of a file that cannot be imported."""
        if report.failed and not self.first:
            self.first = f"import of {report.nodeid}"


def copied(target: Path) -> Path:
    """The package and its tests in a folder where lines can be changed."""
    for name in ("fsdino", "tests", "benchmarks", "recipes", "docs"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "README.md", "Makefile"):
        shutil.copy(ROOT / name, target / name)
    # By content: two texts of one length within one second would pass for each other by time.
    compileall.compile_dir(target / "fsdino", quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return target


def text_of(change: Change, root: Path = ROOT) -> str:
    """The file of a change as it is.

    Raises:
        ValueError: the text that is to be changed does not stand there exactly once.
    """
    text = (root / "fsdino" / change.file).read_text(encoding="utf-8")
    if (count := text.count(change.old)) != 1:
        raise ValueError(
            f"{change.old!r} stands {count} times in fsdino/{change.file}; correct the list in benchmarks/trust."
        )
    return text


def outcome(tree: Path, tests: str) -> tuple[str, int]:
    """The first test that fails in a copy, and how many passed; both in a process that has the copy's package."""
    # Forked from here, where what is heavy is loaded; nothing was computed, so no thread of arithmetic is lost.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_pytest, args=(tree, tests, sender))
    process.start()
    sender.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return f"no end after {SECONDS} s", 0
    try:
        found: tuple[str, int] = receiver.recv()
    except EOFError:
        return f"exit code {process.exitcode}", 0
    return found


def _pytest(tree: Path, tests: str, sender: Connection) -> None:
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ |= {"PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    # The tool's own package is that of the repository; the tests' is the copy's.
    for name in [name for name in sys.modules if name.partition(".")[0] in ("benchmarks", "fsdino", "tests")]:
        del sys.modules[name]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    failures = Failures()
    files, _, words = tests.partition(" -k ")
    pytest.main(
        [*files.split(), "-k", words, "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"], plugins=[failures]
    )
    package = sys.modules.get("fsdino")
    if package is not None and not str(package.__file__).startswith(str(tree)):
        raise SystemExit("the tests have read another package than the changed copy.")
    sender.send((failures.first, failures.passed))


def measure(change: Change, tree: Path) -> Row:
    """Make one change, run its tests, take it back."""
    path, text = tree / "fsdino" / change.file, text_of(change)
    path.write_text(text.replace(change.old, change.new), encoding="utf-8")
    first, passed = outcome(tree, change.tests)
    path.write_text(text, encoding="utf-8")
    if not first and not passed:
        raise ValueError(f"no test ran for {change.old!r}: correct {change.tests!r} in benchmarks/trust.")
    told = {"file": change.file, "old": change.old, "new": change.new, "tests": change.tests}
    return told | {"result": "killed" if first else "survived", "by": first, "reason": change.reason}


def main(
    only: str = "", csv: Path = RESULTS / "mutants.csv", changes: Sequence[Any] | None = None, again: bool = True
) -> None:
    """Change the lines, one at a time.

    Args:
        only: files of the package whose name has this text; empty: all.
        csv: file of the results.
        changes: other changes than those of the list.
        again: measure also what the file tells to be killed.

    Raises:
        SystemExit: a change that no test notices has no reason.
    """
    wanted = [change for change in changes or CHANGES if only in change.file]
    for change in wanted:
        text_of(change)
    rows = [] if again else read_rows(csv).to_dict("records")
    known = {tuple(row[name] for name in KEY) for row in rows if row["result"] == "killed"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name in HEAVY:
        import_module(name)
    with tempfile.TemporaryDirectory(prefix="fsdino-mutants-") as folder:
        tree = copied(Path(folder))
        sound: set[str] = set()
        for change in wanted:
            if (change.file, change.old, change.new) not in known:
                # Tests that fail without any change would notice everything.
                if change.tests not in sound and (first := outcome(tree, change.tests)[0]):
                    raise SystemExit(f"{first} fails without a change; mend it first.")
                sound.add(change.tests)
                row = measure(change, tree)
                print(f"{row['result']:<9}{change.file}: {change.old} -> {change.new}  {row['by']}", flush=True)
                update_rows(csv, [row | provenance()], KEY)
    found = {tuple(row[name] for name in KEY): row for row in read_rows(csv).to_dict("records")}
    listed = found if changes else {tuple(change[:3]): found.get(tuple(change[:3])) for change in CHANGES}
    write_rows(csv, [row for row in listed.values() if row])
    open_ones = [key for key, row in listed.items() if row and row["result"] == "survived" and not row["reason"]]
    if open_ones:
        raise SystemExit(f"{len(open_ones)} changes that no test notices: {open_ones}")


if __name__ == "__main__":
    run_script(main)
