"""Views on data sets."""

import numpy as np

from fsdino.data.class_index import CombinedIndex, SubsetIndex
from tests.data.small import MemoryIndex
from tests.small import refuses


def test_novel_and_base_classes_share_nothing():
    index = MemoryIndex()
    for fold in range(4):
        assert not set(index.novel_classes(fold)) & set(index.base_classes(fold))
        assert len(index.novel_classes(fold)) + len(index.base_classes(fold)) == 8
    refuses("data set 'memory' has folds 0 to 3, got fold 4", index.novel_classes, 4)


def test_a_subset_hides_images_and_nothing_else():
    index = MemoryIndex()
    few = SubsetIndex.of_images(index, ["0_0", "0_3", "5_1"])
    assert few.images(0) == ["0_0", "0_3"] and few.images(1) == [] and few.all_images() == ["0_0", "0_3", "5_1"]
    assert few.candidates(0) == few.all_images() and few.classes_in("0_3") == {0, 1}
    rest = SubsetIndex.without_images(index, few.all_images())
    assert len(rest.all_images()) == 40 - 3 and not set(rest.all_images()) & set(few.all_images())
    assert (few.load_image("0_3") == index.load_image("0_3")).all()
    assert (few.load_mask("0_3", 1) == index.load_mask("0_3", 1)).all()


def test_combined_data_sets_keep_their_classes_and_images_apart():
    a, b, c = MemoryIndex(3, name="a"), MemoryIndex(2, name="b"), MemoryIndex(2, name="b")
    both = CombinedIndex([a, b, c])
    assert list(both.class_names.values()) == [
        "a:square0", "a:square1", "a:square2", "b1:square0", "b1:square1", "b2:square0", "b2:square1",
    ]  # fmt: skip
    assert both.images(both.class_ids[1][1]) == [f"b1:1_{k}" for k in range(5)]
    assert both.classes_in("b1:0_1") == {both.class_ids[1][0], both.class_ids[1][1]}
    assert np.array_equal(both.load_mask("b1:0_1", 3), b.load_mask("0_1", 0))
    assert np.array_equal(both.load_image("a:2_1"), a.load_image("2_1"))
    assert all(image.startswith("b1:") for image in both.candidates(3))


def test_combined_data_sets_refuse_what_cannot_be_known():
    both = CombinedIndex([MemoryIndex(2, name="a"), MemoryIndex(2, name="b")])
    refuses("has no mask of class 'a:square0': it belongs to another data set", both.load_mask, "b:0_0", 0)
    refuses("image 'c:0_0' is of no data set here; known: a, b", both.load_image, "c:0_0")
    refuses("needs at least one", CombinedIndex, [])
