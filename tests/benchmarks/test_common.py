"""Provenance and result files."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import common
from tests.small import refuses


def test_columns_say_how_a_row_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(common.ROOT / "benchmarks/cost/speed.py"), "--csv", "a b.csv"])
    about = common.provenance(seed=3, protocol="batch 1")
    assert tuple(about) == common.COLUMNS and "seed" not in common.provenance()  # for rows with a seed of their own
    assert about["command"] == "python -m benchmarks.cost.speed --csv 'a b.csv'"
    assert about["threads"] == torch.get_num_threads() and about["machine"].endswith("cores")


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(common, "ROOT", tmp_path)
    assert common.commit() == "unknown"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one committed file of code and one of results."""
    if shutil.which("git") is None:
        pytest.skip("git is not on this machine")
    root = tmp_path / "repository"
    for name in ("fsdino/code.py", "benchmarks/results/old.csv"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("1\n")
    about = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*about, "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    monkeypatch.setattr(common, "ROOT", root)
    monkeypatch.setattr(common, "RESULTS", root / "benchmarks" / "results")
    monkeypatch.delenv("FSDINO_ALLOW_DIRTY", raising=False)
    return root


def test_numbers_of_changed_code_are_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, elsewhere = common.RESULTS / "old.csv", repository / "rows.csv"
    common.update_rows(old, [{"run": "a"}], ("run",))
    assert not common.commit().endswith("-dirty"), "a file of results that was written is no change of the code"
    (repository / "fsdino" / "code.py").write_text("2\n")
    words = r"'old.csv' would come from code that no commit has \(fsdino/code.py changed\); commit first"
    refuses(words, common.write_rows, old, [{"run": "b"}])
    refuses(words, common.update_rows, old, [{"run": "b"}], ("run",))
    assert old.read_text() == "run\na\n"
    common.write_rows(elsewhere, [{"run": "b"}])
    monkeypatch.setenv("FSDINO_ALLOW_DIRTY", "1")
    common.write_rows(old, [{"commit": common.commit()}])
    assert old.read_text().endswith("-dirty\n")


def test_a_script_is_refused_before_it_measures(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Path] = []

    def main(csv: Path = common.RESULTS / "old.csv") -> None:
        measured.append(csv)

    (repository / "fsdino" / "code.py").write_text("2\n")
    monkeypatch.setattr(sys, "argv", ["script"])
    refuses("no commit has", common.run_script, main)
    assert not measured
    monkeypatch.setattr(sys, "argv", ["script", "--csv", "a.csv"])
    common.run_script(main)
    assert measured == [Path("a.csv")]


def test_rows_with_different_columns_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    common.write_rows(path, [{"a": 1, "seed": 0}, {"b": 2.5, "seed": 1}])
    assert path.read_text() == "a,seed,b\n1,0,\n,1,2.5\n"
    assert common.read_rows(path).to_dict("records")[1] == {"a": "", "seed": "1", "b": "2.5"}
    assert common.read_rows(tmp_path / "none.csv").empty and common.load(tmp_path, "none").empty


def test_measured_rows_take_the_place_of_those_with_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for value in (1, 2):
        common.update_rows(path, [{"run": "a", "shots": 1, "x": value}], ("run", "shots"))
        common.update_rows(path, [{"run": "a", "shots": 5, "x": value, "y": ""}], ("run", "shots"))
    assert path.read_text() == "run,shots,x,y\na,1,2,\na,5,2,\n"


def test_bootstrap_of_a_mean() -> None:
    mean, low, high = common.mean_interval([0.2] * 50 + [0.6] * 50, np.random.default_rng(0))
    assert mean == 40.0 and 34 < low < 38 and 42 < high < 46
