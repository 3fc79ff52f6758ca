"""The output formats, on one label map of two parts."""

import json
from pathlib import Path

import numpy as np
import pytest

from fsdino.base.result import LabelMap
from fsdino.predict.writers import WRITERS, CocoWriter

IMAGE = np.zeros((4, 6, 3), np.uint8)


def label_map() -> LabelMap:
    labels, probs = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.float32)
    labels[1, 1:3] = labels[3, 3:] = 2
    probs[1, 1:3], probs[3, 3:] = 0.75, 1.0
    return LabelMap(labels, probs, {"cat": 0.0, "dog": 0.5}, {"cat": 0.1, "dog": None})


@pytest.mark.parametrize(("split", "scores"), [(False, [0.5]), (True, [0.5, 0.375])])
def test_each_instance_has_its_own_score(tmp_path: Path, split: bool, scores: list[float]) -> None:
    writer = CocoWriter(tmp_path, ["cat", "dog"], split)
    notes = writer.write(tmp_path / "unused", IMAGE, label_map())
    assert [one["score"] for one in notes] == scores  # the class's times the part's mean probability
    writer.finish([{"image": "a.jpg", "height": 4, "width": 6, "notes": {"coco": notes}}])
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert [one["category_id"] for one in content["annotations"]] == [2] * len(scores)
    assert content["images"] == [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}]
    assert [one["name"] for one in content["categories"]] == ["cat", "dog"]


def test_every_format_writes_something_and_says_where(tmp_path: Path) -> None:
    for name, kind in WRITERS.items():
        writer, folder = kind(tmp_path / name, ["cat", "dog"], False), tmp_path / name
        folder.mkdir()
        notes = writer.write(folder / f"a{kind.suffix}", IMAGE, label_map())
        writer.finish([{"image": "a.jpg", "height": 4, "width": 6, "notes": {name: notes}}])
        written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert written == {*kind.summaries, *([f"a{kind.suffix}"] if kind.suffix else [])}
