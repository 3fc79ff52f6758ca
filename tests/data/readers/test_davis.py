"""DAVIS: episodes from the first frame, and the measures J and F."""

import numpy as np
import pytest

from fsdino.data.episodes.protocols import PROTOCOLS
from fsdino.data.files import DataSetError
from fsdino.data.readers.davis import DavisIndex, boundary_f, davis_score, outline, region_similarity
from tests.data.trees import block, davis_tree, labels


def test_an_object_of_2017_is_a_class(tmp_path):
    index = DavisIndex(davis_tree(tmp_path), "val", 2017)
    assert list(index.class_names.values()) == ["bear/1", "dogs/1", "dogs/2"]
    assert index.images(1) == [f"dogs/{i:05d}" for i in range(4)]  # without the last frame
    assert (index.load_mask("dogs/00002", 2) == block(1, 40, 14, 20)).all()
    assert (index.load_mask("bear/00002", 2) == 0).all() and index.classes_in("dogs/00001") == {1, 2}
    episodes = PROTOCOLS["fsdino"].draw(index, 0)
    assert len(episodes) == 9 and {e.support[0] for e in episodes} == {"bear/00000", "dogs/00000"}


def test_all_objects_are_one_in_2016(tmp_path):
    index = DavisIndex(davis_tree(tmp_path), "val", 2016)
    assert list(index.class_names.values()) == ["dogs/1"]  # the list names frames, not sequences
    assert index.object_pixels("dogs/00000", 0) == 800
    labels(tmp_path / "DAVIS/Annotations/480p/dogs/00001.png", 255 * block(1))
    assert index.object_pixels("dogs/00001", 0) == 2500


def test_what_is_missing(tmp_path):
    root = davis_tree(tmp_path)
    labels(root / "DAVIS/Annotations/480p/bear/00000.png", block(0))
    with pytest.raises(DataSetError, match=r"mask '.*bear/00000\.png' has no foreground pixel; the first frame is the"):
        DavisIndex(root)
    for frame in range(2, 5):
        (root / f"DAVIS/JPEGImages/480p/bear/{frame:05d}.jpg").unlink()
    with pytest.raises(DataSetError, match=r"sequence '.*bear' has 2 frame\(s\), expected 3 or more: unpack DAVIS"):
        DavisIndex(root)
    with pytest.raises(DataSetError, match=r"Full-Resolution' \(the frames\) does not exist"):
        DavisIndex(root, resolution="Full-Resolution")


def test_region_similarity():
    truth = block(1, 10, 10, 20)
    assert region_similarity(truth == 1, truth) == 1 and region_similarity(truth == 2, truth) == 0
    assert region_similarity(block(1, 10, 20, 20), truth) == 200 / 600
    assert region_similarity(np.zeros((5, 5)), np.zeros((5, 5))) == 1
    assert region_similarity(np.ones((5, 5)), np.full((5, 5), 255)) == 1


def test_outline_of_a_square():
    found = outline(block(1, 2, 2, 3, size=(8, 8)) == 1)
    expected = np.zeros((8, 8), np.uint8)
    expected[1:5, 1:5] = 1
    expected[2:4, 2:4] = 0
    assert (found == expected).all()
    assert not outline(np.ones((8, 8))).any()  # the image's rim is no outline


def _slow_f(pred: np.ndarray, truth: np.ndarray, radius: int) -> float:
    a, b = np.argwhere(outline(pred)), np.argwhere(outline(truth == 1))
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    near = ((a[:, None] - b[None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_boundary_f_matches_a_slow_reference():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = block(1, *rng.integers(0, 40, 2), int(rng.integers(0, 30)))
        pred = block(1, *rng.integers(0, 40, 2), int(rng.integers(0, 30)))
        assert boundary_f(pred, truth) == pytest.approx(_slow_f(pred == 1, truth, 2))  # ceil(0.008 * 128)
    assert boundary_f(block(1, 11, 11, 20), block(1, 10, 10, 20)) == 1


def test_scores_average_frames_then_objects():
    assert davis_score(np.array([0, 0, 1]), np.array([1.0, 0.0, 0.2])) == pytest.approx(0.35)
