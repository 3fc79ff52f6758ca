"""Folders in which points, boxes and scribbles stand for masks, through `fsdino predict` and `fsdino remember`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.base.reference import Reference
from fsdino.base.storage import save
from fsdino.predict.command import predict, remember
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.engines.onnx import OnnxEngine
from fsdino.predict.memory_file import load_memory
from fsdino.predict.support import read_support
from tests.small import refuses, scene, small_segmenter


def write(folder: Path, name: str, said: dict[str, Any] | None = None, masked: bool = False) -> None:
    """An image with a JSON, a mask, both or neither beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    image, mask = scene(seed=len(list(folder.iterdir())))
    Image.fromarray(image).save(folder / f"{name}.jpg")
    if masked:
        Image.fromarray(mask * np.uint8(255)).save(folder / f"{name}.png")
    if said is not None:
        (folder / f"{name}.json").write_text(json.dumps(said))


@pytest.fixture
def refs(tmp_path: Path) -> Path:
    """Two classes: one by hints of every kind, one by masks."""
    write(tmp_path / "refs" / "cat", "a", {"points": [[30, 20], [2, 2]], "labels": [1, 0]})
    write(tmp_path / "refs" / "cat", "b", {"box": [10, 10, 50, 40]})
    write(tmp_path / "refs" / "cat", "c", {"scribble": [[20, 20], [40, 30]]})
    write(tmp_path / "refs" / "cat", "d", {"negative": True}, masked=True)
    write(tmp_path / "refs" / "dog", "e", masked=True)
    return tmp_path / "refs"


def test_hints_and_masks_are_read_side_by_side(refs: Path) -> None:
    support = read_support(refs)
    assert support.class_names() == ["cat", "dog"]
    cat, dog = support.references["cat"], support.references["dog"]
    assert [one.name for one in cat] == ["cat/a", "cat/b", "cat/c", "cat/d"]
    assert cat[0].points == [[30, 20], [2, 2]] and cat[0].labels == [1, 0] and cat[0].mask is None
    assert cat[1].box == [10, 10, 50, 40] and cat[2].scribble == [[20, 20], [40, 30]]
    assert cat[3].negative and cat[3].mask is not None and cat[3].points is None
    assert dog[0].mask is not None and set(np.unique(dog[0].mask)) == {0, 1}
    assert list(read_support(refs / "cat").references) == ["cat"]  # the folder of one class
    before = support.digest()
    write(refs / "cat", "b", {"box": [10, 10, 50, 41]})
    assert read_support(refs).digest() != before


def test_predict_and_remember_take_hints(refs: Path, tmp_path: Path) -> None:
    model = str(save(small_segmenter(variant="full", promptable=True), tmp_path / "model"))
    write(tmp_path / "photos", "x")
    assert predict(str(refs), str(tmp_path / "photos"), str(tmp_path / "out"), EngineChoice(model)) == 0
    assert (tmp_path / "out" / "labels" / "x.png").is_file()
    (kept,) = remember(str(refs / "cat"), str(tmp_path / "cat.fsmem"), EngineChoice(model))
    assert load_memory(kept).class_name == "cat"
    assert predict(str(kept), str(tmp_path / "photos"), str(tmp_path / "again"), EngineChoice(model)) == 0


def test_exported_graphs_know_masks_alone() -> None:
    image, mask = scene()
    engine, fine = OnnxEngine.__new__(OnnxEngine), Reference(image, mask=mask)
    pointed, negative = Reference(image, points=[[1, 1]], name="cat/b"), Reference(image, mask=mask, negative=True)
    for bad, name in ((pointed, "cat/b"), (negative, "reference")):
        refuses(f"{name}: an exported graph takes masks of the object alone; use --runt", engine.remember, [fine, bad])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON .* repair it or give a mask"),
        ('{"dots": 1}', "holds something else than hints: expected an object with points, labels, box"),
        ("[1]", "holds something else than hints"),
        ("{}", "has neither a mask nor hints: add"),
    ],
)
def test_damaged_hints_are_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path / "cat", "a", {})
    (tmp_path / "cat" / "a.json").write_text(content)
    refuses(message, read_support, tmp_path)


def test_a_hint_needs_its_image_and_a_mask_its_size(tmp_path: Path) -> None:
    write(tmp_path / "cat", "a", {"points": [[1, 1]]})
    (tmp_path / "cat" / "b.json").write_text("{}")
    refuses(r"b\.json' has no image of the same name", read_support, tmp_path)
    (tmp_path / "cat" / "b.json").unlink()
    write(tmp_path / "cat", "c", masked=True)
    Image.fromarray(np.ones((9, 9), np.uint8) * 255).save(tmp_path / "cat" / "c.png")
    refuses("cat/c: the mask is 9x9 pixels and the image 80x60", read_support, tmp_path)
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(tmp_path / "cat" / "c.png")
    refuses("mask of 'cat/c' has no foreground pixel", read_support, tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"points": [["a", 250]]}, r"cat/a.json': points: expected numbers, got"),
        ({"box": "1,2,3,4"}, r"cat/a.json': box: expected numbers, got '1,2"),
        ({"box": [1, 2, 9000, 9000]}, r"cat/a.json': position \(9000, 9000\) is outside the image"),
        ({"points": [[1, 1]], "labels": ["1"]}, r"cat/a.json': labels: expected numbers, .*give a 1 or 0 for every"),
    ],
)
def test_shapes_are_checked_before_a_model_is_there(said: dict[str, Any], words: str, tmp_path: Path) -> None:
    write(tmp_path / "cat", "a", said)
    refuses(words, read_support, tmp_path)
