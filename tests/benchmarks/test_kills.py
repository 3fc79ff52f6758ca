"""A command killed at random moments and started again leaves the same files."""

from pathlib import Path

import pytest

from benchmarks.common import read_rows
from benchmarks.cost import kills


@pytest.mark.slow
def test_memories_are_the_same_after_kills(tmp_path: Path) -> None:
    kills.main(rounds=1, commands="remember", most=1, out=tmp_path / "kills.csv")
    (row,) = read_rows(tmp_path / "kills.csv").to_dict("records")
    assert (row["same"], row["differs"], row["files"]) == ("1", "0", "") and row["machine"]
