"""FiftyOne: samples with predictions, and references from samples.

Its samples and labels are the real ones. A data set of them needs MongoDB, whose program is fetched when fiftyone-db is
installed; that part is skipped where it is not there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

fo = pytest.importorskip("fiftyone", reason="fiftyone is not installed: pip install fiftyone")

from fsdino.annotate.fiftyone import (  # noqa: E402
    mask_targets,
    predict_into,
    references,
    to_detections,
    to_segmentation,
)
from fsdino.base.result import LabelMap  # noqa: E402
from tests.annotate.colour_engine import ColourEngine, HintedEngine, picture, square  # noqa: E402
from tests.small import refuses  # noqa: E402

RED, BLUE = (250, 10, 10), (10, 10, 250)
LABELS = (square() * 1 + square(14, 20) * 2).astype(np.uint8)
SCENE = LabelMap(LABELS, (LABELS > 0).astype(np.float32), {"cat": 0.9, "dog": 0.5}, {"cat": 0.9, "dog": 0.9})


def sample(folder: Path, name: str, image: np.ndarray | None = None, **labels: Any) -> Any:
    path = folder / f"{name}.png"
    Image.fromarray(picture(RED) if image is None else image).save(path)
    made = fo.Sample(filepath=str(path))
    for field, label in labels.items():
        made[field] = label
    return made


def masks(found: dict) -> dict[str, list[np.ndarray]]:
    return {name: [np.asarray(one.mask) > 0 for one in known] for name, known in found.items()}


def test_detections_there_and_back(tmp_path: Path) -> None:
    made = to_detections(SCENE)
    assert [one.label for one in made.detections] == ["cat", "dog"] and made.detections[0].mask.shape == (8, 8)
    assert abs(made.detections[1].confidence - 0.5) < 1e-6
    back = masks(references([sample(tmp_path, "a", x=made), sample(tmp_path, "b")], "x"))
    assert (back["cat"][0] == (LABELS == 1)).all() and (back["dog"][0] == (LABELS == 2)).all()


def test_label_maps_there_and_back(tmp_path: Path) -> None:
    back = masks(references([sample(tmp_path, "a", x=to_segmentation(SCENE))], "x", mask_targets(SCENE.scores)))
    assert (back["cat"][0] == (LABELS == 1)).all() and (back["dog"][0] == (LABELS == 2)).all()


def test_what_fiftyone_makes_of_the_detections() -> None:
    whole = to_detections(SCENE).to_segmentation(frame_size=(32, 24), mask_targets={1: "cat", 2: "dog"})
    assert (whole.mask == LABELS).all()


def test_polylines_and_boxes(tmp_path: Path) -> None:
    corners = [(6 / 32, 4 / 24), (14 / 32, 4 / 24), (14 / 32, 12 / 24), (6 / 32, 12 / 24)]
    line = fo.Polylines(polylines=[fo.Polyline(label="cat", points=[corners], closed=True, filled=True)])
    assert (masks(references([sample(tmp_path, "a", x=line)], "x"))["cat"][0] == square()).all()
    box = fo.Detections(detections=[fo.Detection(label="cat", bounding_box=[6 / 32, 4 / 24, 8 / 32, 8 / 24])])
    samples = [sample(tmp_path, "b", x=box)]
    assert (masks(references(samples, "x", draw=HintedEngine().draw_mask))["cat"][0] == square()).all()
    refuses("field 'x' shows no area", references, samples, "x")
    refuses("field 'y' shows no area", references, samples, "y")


def test_as_many_samples_as_asked_for(tmp_path: Path) -> None:
    samples = [sample(tmp_path, str(k), x=to_detections(SCENE)) for k in range(3)]
    assert [len(references(samples, "x", max_references=n)["cat"]) for n in (1, 0)] == [1, 3]


def test_predictions_are_written_once_and_broken_pictures_are_said(tmp_path: Path) -> None:
    shown = references([sample(tmp_path, "a", x=to_detections(SCENE))], "x")
    todo = [sample(tmp_path, "b", picture(RED, 14, 20)), sample(tmp_path, "c"), sample(tmp_path, "d", picture(BLUE))]
    Path(todo[1].filepath).write_bytes(b"no image")
    failed = predict_into(todo, ColourEngine(), {"cat": shown["cat"]}, "found")
    assert list(failed) == [todo[1].filepath] and "cannot be read" in failed[todo[1].filepath]
    [one] = todo[0]["found"].detections
    assert np.allclose(one.bounding_box, [20 / 32, 14 / 24, 8 / 32, 8 / 24]) and one.mask.all()
    assert todo[2]["found"].detections == []
    before = todo[0]["found"]
    predict_into(todo, ColourEngine(), {"cat": shown["cat"]}, "found", to_segmentation)
    assert todo[0]["found"] is before


def test_a_data_set(tmp_path: Path) -> None:
    try:
        data = fo.Dataset()
    except Exception as error:
        pytest.skip(f"FiftyOne's MongoDB does not run here: {str(error).splitlines()[0]}")
    data.add_samples([sample(tmp_path, "a", x=to_detections(SCENE)), sample(tmp_path, "b")])
    assert predict_into(data, ColourEngine(), references(data, "x"), "found") == {}
    assert data.count("found.detections") > 0
