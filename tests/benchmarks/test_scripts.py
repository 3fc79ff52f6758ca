"""Every script from its command line's function on, with numbers so small that each takes seconds."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.accuracy import unchanged
from benchmarks.common import COLUMNS, ROOT, load
from benchmarks.report.table import render
from fsdino.base.storage import save
from tests.data.small import shared_data
from tests.data.trees import label_folder_tree
from tests.small import small_segmenter, write_image

FEW = "{name: synthetic, options: {images_per_class: 4}}"
SHORT = ["--trainer.enable_progress_bar=false", f"--data.train=[{FEW}]", f"--data.test={FEW}", "--data.test_list=null",
         "--data.test_episodes=4", "--data.val_episodes=4", "--train.epochs=1", "--train.epoch_length=4",
         "--train.batch_size=2"]  # fmt: skip
DISTILL = [f"--data.images=[{FEW}]", "--distill.epochs=1", "--distill.epoch_length=4", "--distill.batch_size=4",
           "--distill.sizes=[56]", "--distill.val_count=4",
           "--cache.teacher=false", "--cache.hflip=false"]  # fmt: skip
PROTOTYPE = "prototype:encoder_weights=random,tap=0,score_threshold=0.1,kind=fg_bg"
Options = Callable[[Path], dict[str, Any]]


def overrides(folder: Path, *more: str) -> list[str]:
    return [*SHORT, f"--cache.dir={folder / 'cache'}", *more]


def small_model(folder: Path) -> str:
    return str(save(small_segmenter(), folder / "model"))


def weights(data: Path) -> Path:
    return data.parents[1] / "weights" / "vit_tiny_patch16_224.safetensors"


# module -> name of the CSV, and the arguments of `main` beside `csv`
SCRIPTS: dict[str, tuple[str, Options]] = {
    "accuracy.experiments": ("tiny_seeds", lambda folder: {
        "grid": "tiny_seeds", "only": "full-seed0", "runs": folder / "runs",
        "overrides": overrides(folder, *DISTILL),
    }),
    "accuracy.methods": ("methods", lambda folder: {
        "only": "sansa-seed1", "runs": folder / "runs", "overrides": overrides(folder),
    }),
    "accuracy.few_shot": ("few_shot", lambda folder: {
        "data": [f"folder={label_folder_tree(folder / 'data')}"], "folds": "0,1", "episodes": 2, "device": "cpu",
        "methods": ["all_foreground:img_size=28", PROTOTYPE],
    }),
    "accuracy.presence": ("presence", lambda folder: {
        "number": 4, "runs": folder / "runs", "overrides": [f"--cache.dir={folder / 'cache'}"],
    }),
    "accuracy.references": ("references", lambda _: {"worlds": ["embedded"], "most": 2}),
    "accuracy.own_cut": ("own_cut", lambda folder: {
        "root": shared_data("coco386"), "weights": weights(shared_data("coco386")), "folds": [0], "shots": 3,
        "number": 2, "runs": folder / "runs", "photographs": shared_data("regions") / "images",
    }),
    "accuracy.adapted": ("adapted", lambda folder: {
        "root": shared_data("coco386"), "weights": weights(shared_data("coco386")), "number": 1,
        "runs": folder / "runs", "photographs": shared_data("regions") / "images",
    }),
    "accuracy.drawn": ("drawn", lambda folder: {
        "photos": {name: write_image(write_image(folder / name / "a.jpg").with_name("b.jpg")).parent for name in "xy"},
        "per_class": 2,
    }),
    "accuracy.prompts": ("prompts", lambda folder: {"episodes": 3}),
    "accuracy.teachers": ("mini_sam2", lambda folder: {"scenes": 3}),
    "accuracy.runtimes": ("runtimes", lambda folder: {"model": small_model(folder), "number": 2}),
    "accuracy.chain": ("chain", lambda folder: {
        "root": shared_data("coco386"), "weights": weights(shared_data("coco386")), "seed": 1, "folds": [0],
        "episodes": 2, "most": 2, "processes": 1, "runs": folder / "runs",
    }),
    "accuracy.compared": ("compared", lambda _: {
        "root": shared_data("coco386"), "weights": weights(shared_data("coco386")), "number": 1, "most": 1,
    }),
    "accuracy.edges": ("edges", lambda _: {
        "shared": shared_data("coco386").parents[1], "folds": (0,), "number": 1, "only": ("guided filter, one cell",),
    }),
    "accuracy.decoding": ("decoding", lambda folder: {
        "root": shared_data("coco386"), "weights": weights(shared_data("coco386")), "sides": [112], "folds": [0],
        "episodes": 2, "enough": [1.44], "runs": folder / "runs",
    }),
    "cost.input": ("input", lambda _: {
        "count": 2, "size": (120, 180), "sides": [14], "rounds": 1, "source": None,
    }),
    "cost.params": ("params", lambda folder: {"only": "mini + tiny"}),
    "cost.methods": ("methods_times", lambda folder: {"repetitions": 1}),
    "cost.memory": ("memory", lambda folder: {"model": small_model(folder), "number": 10, "runtimes": ("torch",)}),
    "cost.tiles": ("tiles", lambda folder: {
        "model": small_model(folder), "sizes": ((90, 120),), "classes": (1,), "tiles": (0, 64),
    }),
    "cost.server": ("server", lambda folder: {"model": small_model(folder), "clients": 3, "requests": (20,)}),
    "cost.speed": ("speed", lambda folder: {"what": ["classes", "distill"], "small": True, "repetitions": 1}),
}  # fmt: skip


SLOW = {
    "cost.tiles", "cost.server", "cost.memory", "accuracy.experiments", "accuracy.chain", "accuracy.edges",
    "accuracy.compared", "accuracy.decoding", "accuracy.own_cut", "accuracy.adapted",
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SCRIPTS])
def test_a_script_writes_rows_that_its_table_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.cost.methods.CALLS", 1)
    monkeypatch.setattr("benchmarks.accuracy.runtimes.forms", lambda *_: {"torch float32": small_segmenter()})
    table, options = SCRIPTS[name]
    results, main = tmp_path / "results", import_module(f"benchmarks.{name}").main
    where = {"results": results} if name in ("accuracy.experiments", "accuracy.teachers") else {
        "csv": results / f"{table}.csv"}  # fmt: skip
    main(**options(tmp_path), **where)
    assert torch.is_grad_enabled()
    rows = load(results, table)
    assert len(rows) and {"machine", "torch", "commit", "command"} <= set(rows) & set(COLUMNS)
    if table == "methods_times":
        assert set(rows["method"]) >= {"SANSA", "FSSAM", "prototype"}
    elif table != "methods":  # joined with times and seeds: tested by itself
        assert render(table, results).count("\n| ") >= 3


def test_digests_are_recorded_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(unchanged, "RECORD", tmp_path / "record.json")
    for arguments, words, code in (
        (["--record", "--what", "api"], "0 changed", 0),
        (["--what", "api"], "0 changed", 0),
        (["--what", "api"], "CHANGED, was other", 1),
    ):
        if code:
            (tmp_path / "record.json").write_text('{"api: segment": "other"}')
        monkeypatch.setattr("sys.argv", ["unchanged", *arguments])
        with pytest.raises(SystemExit) as ended:
            unchanged.main()
        assert words in capsys.readouterr().out and int(ended.value.code or 0) == code
