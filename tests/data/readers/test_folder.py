"""Folders of images and masks."""

import pytest

from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError
from fsdino.data.readers.folder import folder, read_classes
from tests.data.small import block, labels, photo, shared_data, write_json
from tests.data.trees import label_folder_tree, mask_folder_tree
from tests.small import refuses


def _check(index: ClassIndex, classes: list[str], per_class: int) -> None:
    assert sorted(index.class_names.values()) == classes
    assert sorted(c for fold in index.folds for c in fold) == sorted(index.class_names)
    for class_id in index.class_names:
        assert len(index.images(class_id)) == per_class
        for image in index.images(class_id):
            assert index.classes_in(image) == {class_id} and index.load_image(image).shape == (80, 100, 3)
            assert ((index.load_mask(image, class_id) == 1) == (block(1) == 1)).all()


def test_masks_beside_the_images(tmp_path):
    index = folder(mask_folder_tree(tmp_path))
    _check(index, ["cup", "pen"], 3)
    assert index.images(0) == ["cup/shot0", "cup/shot1", "cup/shot2"]
    assert (index.load_mask("pen/shot0", 0) == 0).all()


def test_png_images_with_mask_in_the_name(tmp_path):
    for k in range(2):
        photo(tmp_path / f"cup/{k}.png")
        labels(tmp_path / f"cup/{k}_mask.png", block(1))
    _check(folder(tmp_path), ["cup"], 2)


def test_twin_trees_with_and_without_classes(tmp_path):
    for name in ("cup", "pen"):
        for k in range(2):
            photo(tmp_path / f"a/images/{name}/{k}.jpg")
            labels(tmp_path / f"a/masks/{name}/{k}{'_mask' if k else ''}.png", 255 * block(1))
    _check(folder(tmp_path / "a"), ["cup", "pen"], 2)
    photo(tmp_path / "b/images/a.JPG")
    labels(tmp_path / "b/masks/a.png", 255 * block(1))
    _check(folder(tmp_path / "b"), ["object"], 1)


def test_label_maps_with_names(tmp_path):
    index = folder(label_folder_tree(tmp_path))
    assert index.class_names == {c: f"class{c}" for c in range(1, 5)} and index.folds == [[1], [2], [3], [4]]
    assert index.images(2) == ["0001", "0005"] and index.classes_in("0001") == {2}
    mask = index.load_mask("0001", 2)
    assert (mask[0] == 255).all() and ((mask == 1) == (block(1) == 1)).all()
    assert (index.load_mask("0001", 3)[1:] == 0).all() and index.object_pixels("0001", 2) == 2500


def test_smallest_sizes_of_label_maps(tmp_path):
    label_folder_tree(tmp_path)
    array = block(1, 1, 1, 5)
    array[40:50, 40:50] = 2
    photo(tmp_path / "images/small.jpg")
    labels(tmp_path / "labels/small.png", array)
    assert "small" in folder(tmp_path).images(1)
    assert "small" not in folder(tmp_path, min_pixels=26).images(1)
    assert "small" in folder(tmp_path, min_pixels=26).images(2)
    assert "small" not in folder(tmp_path, min_cover=0.02).images(2)
    few = folder(tmp_path, min_images=3)
    assert few.images(1) and not few.images(3)


def test_classes_as_a_list(tmp_path):
    path = write_json(tmp_path / "classes.json", ["background", "cup", "pen"])
    assert read_classes(path) == {1: "cup", 2: "pen"}
    write_json(path, {"one": "cup"})
    refuses(r"classes\.json' is no table of classes .* expected", read_classes, path, kind=DataSetError)
    write_json(path, 3)
    refuses("is no table of classes", read_classes, path, kind=DataSetError)


def _all_white(root) -> None:
    for path in (root / "labels").iterdir():
        labels(path, 255 * block(1))


DAMAGE = {
    "label without a class": (
        label_folder_tree, lambda root: labels(root / "labels/0003.png", block(9)),
        r"label map '.*0003\.png' holds 9, which is no class \(known: 1 to 4, 0 = background, 255 = ignore\): add the "
        r"class or repair the map",
    ),
    "black and white label maps": (
        label_folder_tree, _all_white,
        r"label maps such as '.*0000\.png' hold too few object pixels, or 0 and 255 alone: 255 means ignore, so write "
        r"class numbers, or use masks/",
    ),
    "no classes.json": (label_folder_tree, lambda root: (root / "classes.json").unlink(),
                        r"classes\.json' \(the names of the classes, .*\) does not exist"),
    "an image without label map": (label_folder_tree, lambda root: (root / "labels/0000.png").unlink(),
                                   r"image '.*0000\.jpg' has no mask '.*labels/0000\.png'"),
    "an image without mask": (mask_folder_tree, lambda root: (root / "cup/shot1.png").unlink(),
                              r"image '.*cup/shot1\.jpg' has no mask '.*cup/shot1\.png' .* add the"),
    "a mask without image": (mask_folder_tree, lambda root: (root / "cup/shot1.jpg").unlink(),
                             r"mask '.*cup/shot1\.png' has no image of the same name: add 'shot1"),
    "two images of one name": (label_folder_tree, lambda root: photo(root / "images/0000.png"),
                               r"'.*0000\.jpg' and '0000\.png' have the same name: remove one"),
    "something else": (lambda root: root, lambda root: (root / "readme.txt").write_text("nothing here"),
                       r"holds no images with masks; expected one of: <class>/<name>.jpg with"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_with_the_remedy(tmp_path, case):
    make, damage, words = DAMAGE[case]
    damage(make(tmp_path))
    refuses(words, folder, tmp_path, kind=DataSetError)


@pytest.mark.parametrize(("make", "image"), [(mask_folder_tree, "cup/shot9"), (label_folder_tree, "0099")])
def test_an_unknown_image(tmp_path, make, image):
    with pytest.raises(DataSetError, match=f"has no image '{image}'"):
        folder(make(tmp_path)).load_image(image)


def test_real_photographs():
    root = shared_data("clothing")
    index = folder(root, "clothing", min_images=10)
    assert len(index.class_names) == 58 and sum(bool(index.images(c)) for c in index.class_names) == 47
    for image_id in index.all_images()[::200]:
        image = index.load_image(image_id)
        for class_id in index.classes_in(image_id):
            mask = index.load_mask(image_id, class_id)
            assert mask.shape == image.shape[:2] and (mask == 1).any()
