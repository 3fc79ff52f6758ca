"""Ablation and photographs: pairs of runs, tables and images from small made results."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fsdino.evaluation.measure import COLUMNS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
VARIANTS = ("compact-undistilled", "compact-no-sparse", "compact", "compact-frozen", "full-no-contrast", "full")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other by name, as they do when they are run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> ModuleType:
    """A script as a module."""
    return importlib.import_module(name)


def write_run(folder: Path, hits: float, seed: int, count: int = 40) -> None:
    """Rows of one run: 40 episodes of four classes with objects of 100 pixels, `hits` of them found on average."""
    rng = np.random.default_rng(seed)
    noise = np.random.default_rng(0).normal(0, 12, count)  # episodes are hard or easy for every run alike
    folder.mkdir(parents=True)
    with (folder / "rows.0.csv").open("w", newline="") as file:
        for i in range(count):
            found = int(np.clip(hits + noise[i] + rng.normal(0, 2), 0, 100))
            values = (i, i % 4, f"q{i}", f"s{i}", 1000, found, 1100, 100, 0.5, 1.0, "")
            csv.writer(file).writerow(dict(zip(COLUMNS, values, strict=True)).values())


def row(run: str, seed: int, fold: int, shots: int, method: str, miou: float) -> dict[str, object]:
    return {"run": run, "seed": seed, "fold": fold, "shots": shots, "method": method, "val_miou": miou + 4,
            "novel_miou": miou, "low": miou - 2.5, "high": miou + 2.5, "novel_fb_iou": 60, "trained": 200000,
            "total": 3300000, "machine": "M"}  # fmt: skip


@pytest.fixture
def ablation(tmp_path: Path) -> tuple[Path, Path]:
    """Results and runs of an ablation of three seeds, one shot and five."""
    results, runs, rows = tmp_path / "results", tmp_path / "runs", []
    for seed in range(3):
        for shots, bonus in ((1, 0), (5, 9)):
            for i, name in enumerate(VARIANTS):
                hits = 38 + 2 * i + bonus + 0.5 * seed
                run = f"{name}-seed{seed}"
                write_run(runs / "ablation" / run / "evaluate" / f"{run}-{shots}shot", hits, seed + 10 * i)
                rows.append(row(run, seed, 0, shots, f"FS-DINO {name.split('-')[0]}", hits))
    script("provenance").write_rows(results / "ablation.csv", rows)
    return results, runs


def run_script(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    script(name).main()


class TestAblation:
    def test_pairs_table_and_figure(self, ablation, monkeypatch) -> None:
        results, runs = ablation
        run_script("pairs", monkeypatch, "ablation", "--results", results, "--runs", runs)
        found = script("provenance").read_rows(results / "paired_ablation.csv")
        rows = {(r["part"], r["a"], r["shots"]): r for r in found}
        reader = rows["4D reader", "full-no-contrast", "1"]
        assert reader["b"] == "compact" and reader["seeds"] == "3" and reader["episodes"] == "40"
        assert 2 < float(reader["low"]) < float(reader["difference"]) < float(reader["high"]) < 6
        assert abs(float(reader["difference"]) - 4) < 1  # paired: hard episodes are hard for both
        assert rows["mIoU", "full", "5"]["b"] == ""
        text = script("table").render("ablation", results)
        assert "novel mIoU, 1 shot" in text and "novel mIoU, 5 shot" in text
        assert "| distillation | compact − compact-undistilled | 1 | 3 | 40 | +3.9 | +3.5 to +4.4 |" in text
        assert "| distillation | compact − compact-undistilled | +4.0 ± 0.0 | +4.0 ± 0.0 | +4.0 ± 0.0 |" in text
        assert "Paired by seed" in text
        run_script("figures", monkeypatch, "ablation", "--results", results)
        assert Image.open(results / "ablation.png").width > 800
        first = (results / "ablation.svg").read_bytes()
        assert b"</svg>" in first
        run_script("figures", monkeypatch, "--results", results)
        assert (results / "ablation.svg").read_bytes() == first

    def test_one_seed_without_episodes_still_makes_a_table_and_a_figure(self, tmp_path) -> None:
        script("provenance").write_rows(tmp_path / "ablation.csv", [row("full-seed0", 0, 0, 1, "FS-DINO full", 40)])
        text = script("table").render("ablation", tmp_path)
        assert "| full | 1 | 44.0 | 40.0 | 37.5–42.5 | 0.20 |" in text and "Paired" not in text
        assert all(path.stat().st_size for path in script("figures").draw("ablation", tmp_path))

    def test_a_run_whose_episodes_are_gone(self, ablation, monkeypatch) -> None:
        results, runs = ablation
        (runs / "ablation/full-seed1/evaluate/full-seed1-1shot/rows.0.csv").unlink()
        with pytest.raises(FileNotFoundError, match=r"no rows in '.*full-seed1'; run `python benchmarks/experi"):
            run_script("pairs", monkeypatch, "ablation", "--results", results, "--runs", runs)

    def test_no_results(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match=r"there is no '.*ablation.csv'; run `python benchmarks/exp"):
            script("figures").draw("ablation", tmp_path)


class TestPhotos:
    def test_folds_baseline_and_differences(self, tmp_path, monkeypatch) -> None:
        results, runs, rows = tmp_path / "results", tmp_path / "runs", []
        for fold in range(4):
            for variant, seed, hits in (("full", 0, 40), ("full", 1, 41), ("compact", 0, 36)):
                run = f"{variant}-fold{fold}-seed{seed}"
                write_run(runs / "photos" / run / "evaluate" / run, hits + fold, seed)
                rows.append(row(run, seed, fold, 1, f"FS-DINO {variant}", hits + fold))
            run = f"baselines-fold{fold}"
            write_run(runs / "photos" / run / "evaluate" / "prototype", 30 + fold, 7)
            rows.append(row(run, 0, fold, 1, "prototype", 30 + fold))
        script("provenance").write_rows(results / "photos.csv", rows[:-1])
        run_script("pairs", monkeypatch, "photos", "--results", results, "--runs", runs)
        found = script("provenance").read_rows(results / "paired_photos.csv")
        assert "prototype" not in {r["b"] for r in found}  # a fold of it is not measured yet
        script("provenance").write_rows(results / "photos.csv", rows)
        run_script("pairs", monkeypatch, "photos", "--results", results, "--runs", runs)
        found = {(r["a"], r["b"]): r for r in script("provenance").read_rows(results / "paired_photos.csv")}
        against = found["FS-DINO full", "prototype"]  # the baseline's one seed stands beside both
        assert against["seeds"] == "2" and against["episodes"] == "160" and 8 < float(against["low"]) < 12
        assert found["FS-DINO full", "FS-DINO compact"]["seeds"] == "1"
        kept = [r for r in rows if (r["run"], r["fold"]) != ("full-fold3-seed1", 3)]  # seed 1 is not done yet
        found = script("pairs").paired_rows("photos", [{k: str(v) for k, v in r.items()} for r in kept], runs)
        assert [r["seeds"] for r in found if r["a"] == "FS-DINO full"] == [1, 1, 1]
        text = script("table").render("photos", results)
        assert "| fold 0 | fold 1 | fold 2 | fold 3 | mean of folds |" in text
        assert "| FS-DINO full | 2 | 40.5 (38.0–43.0) |" in text and "| training | FS-DINO full − prototype |" in text


class TestCurve:
    def test_curves_and_differences(self, tmp_path) -> None:
        rows = [row(f"{kind}-{count}-seed{seed}", seed, 0, 1, "FS-DINO full", 20 + count / 50 + bonus + seed)
                | {"train_images": count}
                for seed in range(3) for count in (10, 100, 1200)
                for kind, bonus in (("distilled", 2), ("undistilled", 0))]  # fmt: skip
        script("provenance").write_rows(tmp_path / "distillation_curve.csv", rows)
        kinds = script("cells").groups(script("cells").load(tmp_path, "distillation_curve"),
                                       lambda r: r["run"].split("-", 1)[0])  # fmt: skip
        assert script("figures").seed_differences(kinds, 100) == pytest.approx([2.0] * 3)
        assert all(path.stat().st_size for path in script("figures").draw("distillation_curve", tmp_path))

    def test_intervals_need_two_seeds(self) -> None:
        assert script("figures").student_ends([1.0]) is None
        low, high = script("figures").student_ends([1.0, 3.0])
        assert low == pytest.approx(2 - 12.71) and high == pytest.approx(2 + 12.71)
