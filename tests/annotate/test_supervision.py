"""Results as supervision's detections, and back as references."""

import numpy as np
import pytest

sv = pytest.importorskip("supervision", reason="supervision is not installed: pip install fsdino[annotate]")

from fsdino.annotate.supervision import to_detections, to_references  # noqa: E402
from fsdino.base.result import LabelMap, Segmentation  # noqa: E402
from tests.annotate.colour_engine import picture, square  # noqa: E402
from tests.small import refuses  # noqa: E402

LABELS = (square() * 1 + square(14, 20) * 1 + square(0, 24) * 3).astype(np.uint8)
SCENE = LabelMap(
    LABELS,
    (LABELS > 0).astype(np.float32),
    {"cat": 0.9, "dog": 0.0, "fox": 0.5},
    {"cat": 0.9, "dog": 0.1, "fox": None},
)
IMAGE = picture((9, 9, 9))


def test_a_scene_becomes_detections() -> None:
    found = to_detections(SCENE.classes)
    assert len(found) == 3 and found.mask.shape == (3, 24, 32) and found.class_id.tolist() == [0, 0, 2]
    assert found.data["class_name"].tolist() == ["cat", "cat", "fox"]
    assert np.allclose(found.confidence, [0.9, 0.9, 0.5])
    assert sorted(found.xyxy.tolist()) == [[6, 4, 14, 12], [20, 14, 28, 22], [24, 0, 32, 8]]
    # supervision's own idea of the boxes of these masks, which end with the last pixel
    assert np.allclose(sv.mask_to_xyxy(found.mask), found.xyxy - [0, 0, 1, 1])


def test_one_detection_a_class() -> None:
    found = to_detections(SCENE.classes, split_instances=False)
    assert found.data["class_name"].tolist() == ["cat", "fox"]
    assert (found.mask[0] == (LABELS == 1)).all() and found.xyxy[0].tolist() == [6, 4, 28, 22]


def test_a_single_result_and_nothing_found() -> None:
    mask = square()
    result = Segmentation(mask, mask.astype(np.float32), 0.7, True)
    assert len(to_detections({"cat": result})) == 1
    nothing = to_detections({"cat": Segmentation(mask & False, mask * 0.0, 0.0, False)})
    assert len(nothing) == 0 and nothing.mask.shape == (0, 24, 32)
    merged = sv.Detections.merge([nothing, to_detections({"cat": result})])
    assert len(merged) == 1 and merged.data["class_name"].tolist() == ["cat"]


def test_supervision_draws_them() -> None:
    drawn = sv.MaskAnnotator(opacity=1.0).annotate(IMAGE.copy(), to_detections(SCENE.classes))
    assert ((drawn != IMAGE).any(-1) == (LABELS > 0)).all()


def test_detections_become_references() -> None:
    again = to_references(IMAGE, to_detections(SCENE.classes))
    assert sorted(again) == ["cat", "fox"] and (again["cat"].mask == (LABELS == 1)).all()
    whole = sv.Detections(xyxy=np.array([[6, 4, 14, 12]]), mask=square()[None], class_id=np.array([5]))
    assert list(to_references(IMAGE, whole)) == ["5"] and list(to_references(IMAGE, whole, {5: "cat"})) == ["cat"]


def test_a_box_alone_is_a_hint() -> None:
    box = sv.Detections(xyxy=np.array([[6, 4, 14, 12]]), class_id=np.array([0]))
    assert to_references(IMAGE, box, {0: "cat"})["cat"].box == (6, 4, 13, 11)
    two = sv.Detections(xyxy=np.array([[6, 4, 14, 12], [1, 1, 3, 3]]), class_id=np.array([0, 0]))
    refuses("2 boxes of 'cat' without masks", to_references, IMAGE, two, {0: "cat"})


def test_what_has_no_class_or_another_size_is_one_sentence() -> None:
    plain = sv.Detections(xyxy=np.array([[6, 4, 14, 12]]), mask=square()[None])
    refuses("have no classes", to_references, IMAGE, plain)
    found = to_detections(SCENE.classes)
    refuses("the masks are .24, 32., the image is .10, 10.", to_references, IMAGE[:10, :10], found)
