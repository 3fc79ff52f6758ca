"""The script for a GPU on a CPU: it always ends, a section that fails is a row, and its rows go where they should."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.common import Row, read_rows
from benchmarks.cost import gpu
from benchmarks.cost.gpu_timing import Bench, Case
from benchmarks.report.table import render
from tests.small import refuses


def bench() -> Bench:
    return Bench(torch.device("cpu"), small=True, rounds=1)


@pytest.mark.slow
def test_a_section_that_fails_or_takes_too_long_is_a_row_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(bench: Bench) -> Iterator[Row]:
        yield {"step": "first"}
        raise RuntimeError("no kernel image\nis available")

    def hangs(bench: Bench) -> Iterator[Row]:
        yield {"step": "begins"}
        time.sleep(60)

    monkeypatch.setattr(gpu, "SECTIONS", {"a": (10, breaks), "b": (0.03, hangs), "peak": gpu.SECTIONS["peak"]})
    gpu.main("cpu", seconds=600, small=True, csv=tmp_path / "gpu.csv")
    rows = read_rows(tmp_path / "gpu.csv")
    told = dict(zip(rows["section"] + " " + rows["step"], rows["error"]))
    assert told["a first"] == told["b begins"] == "" and told["a stopped"] == "RuntimeError: no kernel image"
    assert told["b stopped"].startswith("OutOfTime: not done after")
    products = rows[rows["section"] == "peak"]
    assert products["precision"].tolist() == ["float32", "bf16"] and (products["tflops"].astype(float) > 0).all()
    assert set(rows["device"]) == {"cpu"} and rows["machine"].all()
    assert render("gpu", tmp_path).count("\n| ") >= 6


def test_the_result_file_is_a_gpu_s_alone() -> None:
    refuses("no GPU is used, and its result file .*; give --csv FILE", gpu.main, "cpu")


def test_a_case_that_cannot_run_is_a_row_and_ratios_are_by_image() -> None:
    a = torch.ones(64, 64)

    def broken() -> None:
        raise RuntimeError("no bf16")

    def four() -> None:
        for _ in range(4):
            a @ a

    measured = bench()
    measured.peak = {"float32": 1.0}
    cases = [Case({"step": "one"}, lambda: a @ a), Case({"step": "four"}, four, 4), Case({"step": "wrong"}, broken)]
    rows = {row["step"]: row for row in measured.rows({"method": "product"}, cases)}
    assert rows["wrong"] == {"method": "product", "step": "wrong", "error": "RuntimeError: no bf16"}
    assert rows["one"]["ratio"] == 1.0 and rows["four"]["base"] == "one"
    # Both are one product an image: 2 * 64^3 operations.
    assert rows["one"]["gflop"] == rows["four"]["gflop"] == round(2 * 64**3 / 1e9, 1)
    assert "mfu" in rows["one"] and measured.hidden_syncs(broken) == ""


@pytest.mark.slow
def test_sections_run_small(tmp_path: Path) -> None:
    gpu.main("cpu", 100_000, ["agree", "segment", "distill", "episodes", "predict"], True, tmp_path / "gpu.csv")
    rows = read_rows(tmp_path / "gpu.csv")
    assert "stopped" not in set(rows["step"]), rows[rows["step"] == "stopped"]["error"].tolist()
    agreed = rows[(rows["section"] == "agree") & (rows["precision"] == "float32")]
    assert len(agreed) == 9 and set(agreed["equal"]) == {"1.0"}  # the same device, so the same masks
    assert {"fsdino", "sansa", "fssam", "persam", "prototype", "chain", "refined"} < set(agreed["method"])
    steps = set(rows["step"])
    assert {"bare encoder", "segment", "ten classes", "cached step", "live step", "episode step, cached maps"} < steps
    assert any(step.startswith("JPEG to PNG") for step in steps)
