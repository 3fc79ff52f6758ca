"""COCO-format files."""

import hashlib

import numpy as np
import pytest

from fsdino.data.files import DataSetError
from fsdino.data.readers.coco import CocoIndex, coco20i, coco_folder
from tests.data.small import HEIGHT, WIDTH, block, instance, photo, rle, square, write_json
from tests.data.trees import coco2014_tree, coco_tree


def _one(root, *annotations, **kwargs) -> CocoIndex:
    """A data set of one image and classes 1 to 3."""
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": c, "name": f"class{c}"} for c in (1, 2, 3)],
        "annotations": list(annotations),
    }
    photo(root / "images/a.jpg")
    return CocoIndex(write_json(root / "instances.json", content), root / "images", **kwargs)


def test_polygons_of_several_parts_and_both_kinds_of_rle(tmp_path):
    index = _one(
        tmp_path,
        instance(1, 7, 1, [square(5, 5, 30), square(60, 40, 20)]),
        instance(2, 7, 2, rle(block(1))),
        instance(3, 7, 3, rle(block(1, 40, 30, 20), compressed=False)),
    )
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:35, 5:35] = expected[40:60, 60:80] = True
    assert ((index.load_mask("a.jpg", 1) == 1) == expected).all()
    assert (index.load_mask("a.jpg", 2) == block(1)).all()
    assert (index.load_mask("a.jpg", 3) == block(1, 40, 30, 20)).all()
    assert index.classes_in("a.jpg") == {1, 2, 3} and index.load_image("a.jpg").shape == (HEIGHT, WIDTH, 3)


def test_crowds_are_ignored_outside_instances(tmp_path):
    index = _one(
        tmp_path,
        instance(1, 7, 1, rle(block(1, 10, 10, 40), compressed=False), crowd=1),
        instance(2, 7, 1, rle(block(1, 30, 30, 40))),
        instance(3, 7, 2, rle(block(1)), crowd=1),
    )
    mask = index.load_mask("a.jpg", 1)
    assert ((mask == 1) == (block(1, 30, 30, 40) == 1)).all()
    assert ((mask == 255) == ((block(1, 10, 10, 40) == 1) & (mask != 1))).all()
    assert index.images(1) == ["a.jpg"] and index.images(2) == []  # a crowd alone does not count
    assert 2 in index.classes_in("a.jpg")  # but it is there: no image without class 2


def test_a_first_polygon_of_two_points_does_not_become_a_box(tmp_path):
    index = _one(tmp_path, instance(1, 7, 1, [[5, 5, 40, 40], square(60, 40, 20)]), instance(2, 7, 2, [[1, 1, 9, 9]]))
    assert index.object_pixels("a.jpg", 1) == 400 and index.object_pixels("a.jpg", 2) == 0


def test_painted_label_maps_follow_the_documented_order(tmp_path):
    """Crowds first, then the instances in the order of the file: later ones lie on top."""
    annotations = [
        instance(9, 7, 3, [square(10, 10, 40)]),
        instance(1, 7, 2, [square(30, 30, 40)]),
        instance(5, 7, 1, rle(block(1, 0, 0, 60)), crowd=1),
        instance(2, 7, 3, [square(45, 45, 5)]),
    ]
    index = _one(tmp_path, *annotations, overlap="painted")
    labels = index.label_map("a.jpg")
    assert labels[20, 20] == 3 and labels[40, 40] == 2 and labels[47, 47] == 3 and labels[5, 5] == -1
    assert hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:16] == "887e0c815b966788"
    assert (index.load_mask("a.jpg", 3) == np.where(labels == -1, 255, labels == 3)).all()
    union = _one(tmp_path, *annotations, overlap="union")
    assert union.object_pixels("a.jpg", 3) == 1600 and index.object_pixels("a.jpg", 3) < 1600


@pytest.mark.parametrize(
    ("kwargs", "counts"),
    [({}, 1), ({"min_cover": 0.02}, 0), ({"min_pixels": 101}, 0), ({"min_cover": 0.0124}, 1), ({"min_pixels": 100}, 1)],
)
def test_a_smallest_size_decides_which_images_count(tmp_path, kwargs, counts):
    annotations = [instance(1, 7, 1, [square(5, 5, 10)]), instance(2, 7, 2, [square(20, 20, 50)])]
    index = _one(tmp_path, *annotations, **kwargs)
    assert len(index.images(1)) == counts and index.images(2) == ["a.jpg"]
    assert index.classes_in("a.jpg") == {1, 2}


def test_folds_are_every_fourth_class(tmp_path):
    index = coco20i(coco2014_tree(tmp_path), "val")
    assert index.name == "coco20i" and index.folds == [[1, 5], [2, 6], [3, 7], [4, 8]]
    assert index.overlap == "painted" and len(index.all_images()) == 6
    assert coco20i(tmp_path / "COCO2014", "train").folds == index.folds
    coco_tree(tmp_path / "plain")
    a, b = coco_folder(tmp_path / "plain"), coco_folder(tmp_path / "plain/instances.json")
    assert a.all_images() == b.all_images() == [f"{i:012d}.jpg" for i in range(1, 7)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["annotations"][2].update(image_id=99), "annotation 3 in .* is of image id 99, which"),
        (lambda c: c["annotations"][0].update(category_id=77), "is of category 77, which 'categories' does not"),
        (lambda c: c["annotations"][1].pop("segmentation"), "annotation 2 in .* has no 'segmentation'"),
        (lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]), "lists image '0{11}1.jpg' twice"),
        (lambda c: c.pop("categories"), "has no 'categories': it is no COCO-format file"),
        (lambda c: c["annotations"].clear(), "has no class with an image"),
    ],
)
def test_a_damaged_json_is_named_with_the_damage(tmp_path, change, words):
    content = coco_tree(tmp_path)
    change(content)
    write_json(tmp_path / "instances.json", content)
    with pytest.raises(DataSetError, match=words) as caught:
        coco_folder(tmp_path)
    assert "instances.json" in str(caught.value)


def test_missing_files_and_other_sizes_are_named(tmp_path):
    with pytest.raises(
        DataSetError,
        match=r"'.*nowhere' \(the folder with the COCO-format file\) does not exist, "
        r"'.*' does: check --root",
    ):
        coco_folder(tmp_path / "nowhere")
    coco_tree(tmp_path)
    (tmp_path / "images" / "000000000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000001\.jpg' does not exist: check the data set's root"):
        coco_folder(tmp_path).load_image("000000000001.jpg")
    with pytest.raises(DataSetError, match=r"image 'b\.jpg' is not in"):
        coco_folder(tmp_path).load_mask("b.jpg", 1)
    index = _one(tmp_path / "rle", instance(1, 7, 1, rle(np.ones((10, 12)))))
    with pytest.raises(DataSetError, match=r"'a\.jpg' in '.*' has size \[10, 12\], the image is \[80, 100\]"):
        index.load_mask("a.jpg", 1)
    with pytest.raises(DataSetError, match=r"found neither '.*COCO2014/annotations/instances_val2014\.json' nor"):
        coco20i(tmp_path, "val")


def test_real_photographs(coco386):
    index = coco386
    assert len(index.class_names) == 80 and len(index.all_images()) == 354
    assert [len(fold) for fold in index.folds] == [20] * 4 and index.folds[0][:3] == [1, 5, 9]
    crowds = 0
    for image_id in index.all_images()[::20]:
        image = index.load_image(image_id)
        for class_id in index.classes_in(image_id):
            mask = index.load_mask(image_id, class_id)
            assert mask.shape == image.shape[:2] and set(np.unique(mask)) <= {0, 1, 255}
            assert (image_id in index.images(class_id)) == ((mask == 1).mean() > 0.02)
            crowds += (mask == 255).any()
    assert crowds
