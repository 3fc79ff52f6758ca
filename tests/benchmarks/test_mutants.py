"""The list of changed lines is true, and a change is told killed or survived by what its tests do."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.common import read_rows
from benchmarks.report import cost_tables
from benchmarks.trust import mutants
from benchmarks.trust.changes import CHANGES, COUNTS, Change
from tests.small import refuses


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.file}: {change.old}")
def test_each_change_is_one_of_a_line_that_is_there(change: Change) -> None:
    text = mutants.text_of(change)
    compile(text.replace(change.old, change.new), change.file, "exec")
    assert change.old != change.new
    files = change.tests.partition(" -k ")[0].split()
    assert files and all((mutants.ROOT / file).is_file() for file in files)


def test_a_text_that_is_gone_is_an_error_of_the_list() -> None:
    refuses("'no such text' stands 0 times in fsdino/metrics/few_shot.py", mutants.text_of,
            Change("metrics/few_shot.py", "no such text", "", COUNTS))  # fmt: skip


def test_lines_are_counted_by_file() -> None:
    told = {"file": "a.py", "reason": ""}
    rows = pd.DataFrame([told | {"result": "killed"}, told | {"result": "survived", "reason": "one in 10^17 draws"}])
    assert cost_tables.mutants(rows, Path()).endswith("| a.py | 2 | 1 | 1 | one in 10^17 draws |\n")


@pytest.mark.slow
def test_one_change_is_killed_and_one_survives(tmp_path: Path) -> None:
    csv = tmp_path / "mutants.csv"
    seen = Change("metrics/few_shot.py", "valid = truth != IGNORE", "valid = truth >= 0", f"{COUNTS} -k thousand")
    words = Change("metrics/few_shot.py", "expected as many of each.", "expected as many.", f"{COUNTS} -k thousand")
    refuses("1 changes that no test notices", mutants.main, csv=csv, changes=[seen, words], kind=SystemExit)
    rows = {row["old"]: row for row in read_rows(csv).to_dict("records")}
    killed, survived = rows[seen.old], rows[words.old]
    assert killed["result"] == "killed" and killed["by"].endswith("_to_the_last_count") and killed["machine"]
    assert (survived["result"], survived["by"]) == ("survived", "")
    mutants.main(csv=csv, changes=[words._replace(reason="a word of a message")])
