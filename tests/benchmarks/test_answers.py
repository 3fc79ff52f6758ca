"""The scripts that measure prompts and 'absent', on a small model and hand-made rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec
from fsdino.data.world.index import SyntheticWorld

Opened = Callable[[str], ModuleType]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """The scripts import each other by name, as they do when they are run."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module


def test_absent_queries_lack_the_class(script: Opened) -> None:
    world = SyntheticWorld("novel", 2)
    specs = tuple(EpisodeSpec(c, f"{c:03d}/0000", (f"{c:03d}/0001",)) for c in range(6))
    whole = script("presence").with_absent(world, EpisodeList(world.name, 0, 1, 0, specs))
    assert len(whole) == 12 and whole.episodes[:6] == specs
    for before, after in zip(specs, whole.episodes[6:]):
        assert before.support == after.support and before.class_id not in world.classes_in(after.query)


def test_gate_and_answers_are_counted(script: Opened) -> None:
    module = script("presence")
    present = torch.tensor([1.0, 1.0, 0.0, 0.0])
    right, wrong, nothing = [[9, 5], [10, 5]], [[5, 0], [10, 5]], [[10, 0], [10, 0]]
    counts = torch.tensor([right, right, wrong, wrong])
    gated = torch.tensor([right, [[5, 0], [10, 5]], nothing, wrong])
    signals = {"presence head": torch.tensor([2.0, -1.0, -2.0, 1.0]), "predicted IoU": torch.full((4,), 0.5)}
    head, other = module.report(module.Answers(present, signals, counts, gated, [3, 3, 3, 3]))
    assert (head["auroc"], head["error"], head["missed"], head["false_alarms"]) == (75.0, 50.0, 50.0, 50.0)
    assert other["auroc"] == 50.0 and "error" not in other
    assert (head["miou_there"], head["miou_there_gated"]) == (100.0, 50.0)
    assert (head["miou_all"], head["miou_all_gated"]) == (50.0, round(100 * 5 / 15, 2))


def test_simulated_users_point_at_the_object(script: Opened) -> None:
    module = script("prompts")
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10:20, 5:50] = True
    given = dict(module.prompts(mask, torch.Generator().manual_seed(0)))
    assert tuple(given) == module.KINDS
    for x, y in np.concatenate([given["one click"]["points"], given["three clicks"]["points"]]):
        assert bool(mask[int(y), int(x)])
    assert np.allclose(given["box"]["box"], (5, 10, 49, 19), atol=0.01)
    stroke = given["scribble"]["scribble"]
    rows, cols = np.nonzero(stroke)
    assert bool(mask[rows, cols].all()) and cols.max() - cols.min() > 30 and len(np.unique(rows)) <= 2
    two = mask.clone()
    two[30:33, 50:53] = True
    assert torch.equal(module.largest_part(two), mask)


def test_tables_of_prompts_and_presence(script: Opened) -> None:
    tables = script("answers")
    parts = [("found", "mask"), *((part, "box") for part in tables.DRAWN), ("corrected", "1 click"),
             ("not this", "with"), ("mistaken", "with")]  # fmt: skip
    rows = [{"part": part, "prompt": kind, "iou": "50.0", "low": "40.0", "high": "60.0", "number": "9"}
            for part, kind in parts]  # fmt: skip
    text = tables.prompts(rows, Path())
    assert "| box | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 (40.0–60.0) |" in text
    assert "| corrections | 1 click | 50.0 (40.0–60.0) | 9 |" in text and "with a negative reference" in text
    row = {"signal": "presence head", "auroc": "77.4", "error": "30.6", "ece": "3.8"}
    assert "| presence head | 77.4 | 30.6 |" in tables.presence([row], Path())
