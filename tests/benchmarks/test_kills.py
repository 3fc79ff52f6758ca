"""A command killed at random moments and started again leaves the same files."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.common import read_rows
from benchmarks.cost import cache_kills, kills
from benchmarks.report import cost_tables


def test_rounds_with_equal_files_are_told() -> None:
    rows = pd.DataFrame([{"what": "run", "signal": "9", "rounds": "3", "kills": "5", "same": "3", "longest_s": "1.26"}])
    assert cost_tables.kills(rows, Path()).endswith("| run | 9 | 5 | 1.3 | 3 of 3 |\n")


@pytest.mark.slow
def test_memories_are_the_same_after_kills(tmp_path: Path) -> None:
    kills.main(rounds=1, commands="remember", most=1, out=tmp_path / "kills.csv")
    (row,) = read_rows(tmp_path / "kills.csv").to_dict("records")
    assert (row["same"], row["differs"], row["files"]) == ("1", "0", "") and row["machine"]


def test_a_cache_is_that_of_one_process_after_kills(tmp_path: Path) -> None:
    cache_kills.main(rounds=1, processes=2, kills=1, seconds=0.0, out=str(tmp_path / "kills.csv"))
    (row,) = read_rows(tmp_path / "kills.csv").to_dict("records")
    assert [row[name] for name in ("rows", "missing", "twice", "files_that_differ")] == ["83", "0", "0", "0"]
