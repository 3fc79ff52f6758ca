"""The scripts that compare SANSA and FSSAM with FS-DINO: runs, times, the mini SAM2's measurement, both tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsdino.assets.pretrain_sam2 import Sam2PretrainModule
from fsdino.base.registry import build_method
from tests.benchmarks.scripts import BENCHMARKS, script


def test_three_seeds_of_each_system_and_the_frozen_one() -> None:
    names = [name for name, _, _ in script("methods").runs()]
    assert sorted(names) == sorted(["frozen", *(f"{m}-seed{s}" for m in ("sansa", "fssam") for s in range(3))])


def test_every_system_learns_from_as_many_episodes() -> None:
    from fsdino.pipeline.recipe import read_recipe

    counts = set()
    for name in ("tiny", "sansa_tiny", "fssam_tiny"):
        recipe, _ = read_recipe(["--config", str(BENCHMARKS.parent / "recipes" / f"{name}.yaml")])
        counts.add((recipe.train.epochs * recipe.train.epoch_length, recipe.data.test_list, recipe.data.val_episodes))
    assert len(counts) == 1


def test_a_row_of_times_and_sizes() -> None:
    rows = script("methods").times({"all": build_method("all_foreground", img_size=28)}, 1)
    assert rows[0]["method"] == "all" and rows[0]["trained"] == rows[0]["total"] == 0
    assert rows[0]["remember_ms"] >= 0 and rows[0]["segment_ms"] > 0


def test_rows_that_are_there_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, ran = script("methods"), []

    def run_once(name: str, *_: Any) -> dict[str, Any]:
        ran.append(name)
        return {"run": name, "novel_miou": 1.0}

    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "run_once", run_once)
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["methods.py", "--only", "fssam"])
        module.main()
    assert ran == ["fssam-seed0", "fssam-seed1", "fssam-seed2"]
    assert len((tmp_path / "methods.csv").read_text().splitlines()) == 4


def test_the_table_joins_seeds_times_and_fs_dino(tmp_path: Path) -> None:
    seeds = "run,seed,method,val_miou,novel_miou,low,high,novel_fb_iou,total,trained\n"
    (tmp_path / "tiny_seeds.csv").write_text(
        seeds + "a,0,FS-DINO full,50,48,46,50,70,3300000,290000\nb,0,all foreground,,7,6,8,3,,\n"
    )
    (tmp_path / "methods.csv").write_text(
        seeds + "c,0,SANSA,20,18,17,19,60,1250000,20000\nd,1,SANSA,22,20,19,21,61,1250000,20000\n"
    )
    (tmp_path / "methods_times.csv").write_text(
        "method,remember_ms,segment_ms,trained,total\nFS-DINO full,10.04,12,290000,3300000\nSANSA,5,6,20000,1250000\n"
    )
    rows = script("cells").load(tmp_path, "methods")
    table = script("renderers").TABLES["methods"](rows, tmp_path).splitlines()
    assert table[2] == "| FS-DINO full | 1 | 50.0 | 48.0 | 46.0–50.0 | 70.0 | 3.30 | 0.29 | 10.0 | 12.0 |"
    assert table[3].startswith("| SANSA | 2 | 21.0 (20.0–22.0) | 19.0 (18.0–20.0) | 18.0–20.0 |") and len(table) == 4


def test_the_mini_sam2_is_measured_by_prompt(tmp_path: Path) -> None:
    row = script("mini_sam2").measure(Sam2PretrainModule("mini", 64).eval(), "novel", scenes=3)
    assert row["objects"] >= 1
    for name in ("click_iou", "box_iou", "track_iou"):
        assert 0 <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= 100
    texts = {key: str(value) for key, value in row.items()} | {"split": "novel"}
    table = script("renderers").TABLES["mini_sam2"]([texts], tmp_path)
    assert "IoU, tracked into another view" in table and f"| novel | {row['objects']:.0f} |" in table
