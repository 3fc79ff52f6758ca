"""DAVIS: episodes from the first frame."""

import pytest

from fsdino.data.episodes.protocols import PROTOCOLS
from fsdino.data.files import DataSetError
from fsdino.data.readers.davis import DavisIndex
from tests.data.small import block, labels
from tests.data.trees import davis_tree


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
