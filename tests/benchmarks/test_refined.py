"""The benchmark of SAM behind the chain, on one episode of the shared photographs."""

from pathlib import Path

import pytest

from benchmarks.accuracy.refined import SHARED, main
from benchmarks.common import read_rows
from benchmarks.report.table import render


@pytest.mark.skipif(not (SHARED / "data" / "coco386").is_dir(), reason="the shared photographs are not here")
def test_three_rows_that_the_table_shows(tmp_path: Path) -> None:
    main(episodes=1, img_size=112, csv=tmp_path / "refined.csv")
    rows = read_rows(tmp_path / "refined.csv")
    assert list(rows["agreement"]) == ["", "0.5", "0.0"] and len(set(rows["miou"])) > 1
    assert render("refined", tmp_path).count("\n| ") == 5
