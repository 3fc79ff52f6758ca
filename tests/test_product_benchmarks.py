"""The scripts that measure exports and memory and draw the gallery, on a small model."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from fsdino.weights import save_pretrained
from tests.small_segmenter import small_segmenter

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The scripts import each other by name, as they do when they are run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def opened(name: str) -> ModuleType:
        return importlib.import_module(name)

    return opened


def test_forms_are_compared_with_float32_on_the_same_episodes(script) -> None:  # type: ignore[no-untyped-def]
    rows = script("export").measure({"torch float32": small_segmenter(), "other": small_segmenter(seed=1)}, 3)
    assert [row["form"] for row in rows] == ["torch float32", "other"] and rows[0]["lost"] == "+0.00"
    assert all(row["episodes"] == 3 for row in rows) and rows[0]["met"] == "yes"
    assert float(rows[1]["lost"]) == pytest.approx(
        float(rows[0]["novel mIoU"]) - float(rows[1]["novel mIoU"]), abs=0.011
    )


def test_memory_is_noted_on_the_way(script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    folder = save_pretrained(small_segmenter(), tmp_path / "model")
    script("memory").run_case("torch", str(folder), 10)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(word, int(count)) for word, count, _ in lines] == [("resident", 1), ("resident", 5), ("resident", 10)]


def test_the_gallery_takes_every_so_many_episodes(script) -> None:  # type: ignore[no-untyped-def]
    drawn = script("gallery").strips(small_segmenter(), 300, 60)
    assert len(drawn) == 2 and all(strip.shape[1] == 4 * 60 + 5 * 4 for strip in drawn)
