"""The scripts that measure exports and memory and draw the gallery, on a small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsdino.base.storage import save_pretrained
from tests.benchmarks.scripts import script
from tests.small import small_segmenter


def test_forms_are_compared_with_float32_on_the_same_episodes() -> None:
    rows = script("export").measure({"torch float32": small_segmenter(), "other": small_segmenter(seed=1)}, 3)
    assert [row["form"] for row in rows] == ["torch float32", "other"] and rows[0]["lost"] == "+0.00"
    assert all(row["episodes"] == 3 for row in rows) and rows[0]["met"] == "yes"
    assert float(rows[1]["lost"]) == pytest.approx(
        float(rows[0]["novel mIoU"]) - float(rows[1]["novel mIoU"]), abs=0.011
    )


def test_memory_is_noted_on_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_pretrained(small_segmenter(), tmp_path / "model")
    script("memory").run_case("torch", str(folder), 10)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(word, int(count)) for word, count, _ in lines] == [("resident", 1), ("resident", 5), ("resident", 10)]


def test_the_gallery_takes_every_so_many_episodes() -> None:
    drawn = script("gallery").strips(small_segmenter(), 300, 60)
    assert len(drawn) == 2 and all(strip.shape[1] == 4 * 60 + 5 * 4 for strip in drawn)
