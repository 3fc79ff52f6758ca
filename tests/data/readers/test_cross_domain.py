"""The readers of other domains: X-rays, skin, satellite and underwater images."""

import pytest

from fsdino.data.catalog import open_data_set
from fsdino.data.episodes.protocols import PROTOCOLS
from fsdino.data.files import DataSetError
from tests.data import trees
from tests.data.small import block
from tests.small import refuses


def test_only_masks_of_the_benchmarks_name_count(tmp_path):
    root = trees.chest_xray_tree(tmp_path)
    index = open_data_set("chest-xray", root / "LungSegmentation")
    assert index.class_names == {0: "lung"} and index.folds == [[0]]
    assert index.images(0) == ["lung/CXR_0", "lung/CXR_1", "lung/CXR_2"]
    assert index.load_mask("lung/CXR_1", 0).sum() == 2500
    (root / "LungSegmentation/CXR_png/CXR_2.png").unlink()
    refuses(r"CXR_2\.png' \(the X-ray of a mask\) does not exist", open_data_set, "chest-xray", root, kind=DataSetError)
    for mask in (root / "LungSegmentation/masks").glob("*_mask.png"):
        mask.unlink()
    with pytest.raises(DataSetError, match=r"masks' has no file called '<image>_mask\.png': unpack the archive again"):
        open_data_set("chest-xray", root)


def test_each_test_image_of_fss_is_a_query_once_and_none_is_trained_on(tmp_path):
    index = open_data_set("fss1000-cd", trees.fss_tree(tmp_path))
    assert list(index.class_names.values()) == ["cat", "dog"] and index.base_classes(0) == []
    episodes = PROTOCOLS["hsnet"].draw(index, 0)
    assert len(episodes) == len({episode.query for episode in episodes}) == 20
    with pytest.raises(ValueError, match="data set 'fss1000-cd' is there to test on, not to train on"):
        open_data_set("fss1000-cd", tmp_path, "train")


def test_lesions_by_kind(tmp_path):
    root = trees.isic_tree(tmp_path)
    index = open_data_set("isic", root)
    assert index.class_names == {0: "1", 1: "2", 2: "3"} and index.folds == [[0, 1, 2]]
    assert index.images(1) == ["2/ISIC_0000001", "2/ISIC_0000004", "2/ISIC_0000007"]
    assert index.classes_in("2/ISIC_0000004") == {1} and index.load_mask("2/ISIC_0000004", 1).sum() == 2500
    (root / "ISIC/ISIC2018_Task1_Training_GroundTruth/ISIC_0000004_segmentation.png").unlink()
    with pytest.raises(DataSetError, match=r"ISIC_0000004_segmentation\.png' \(the mask of an image\) does not exist"):
        open_data_set("isic", root)
    images = root / "ISIC/ISIC2018_Task1-2_Training_Input"
    for image in images.rglob("*.jpg"):
        image.rename(images / image.name)
    with pytest.raises(DataSetError, match=r"Training_Input' has no class folder with \.jpg images: they are to be"):
        open_data_set("isic", root)


def test_a_tile_of_two_classes_is_one_image(tmp_path):
    root = trees.deepglobe_tree(tmp_path)
    index = open_data_set("deepglobe", root)
    assert index.folds == [[1, 2, 3, 4, 5, 6]] and index.class_names[5] == "water" and len(index.all_images()) == 13
    assert index.classes_in("10_sat_55") == {1, 2} and index.images(1)[0] == index.images(2)[0] == "10_sat_55"
    assert (index.load_mask("10_sat_55", 2) == block(1, left=16)).all() and not index.load_mask("10_sat_55", 3).any()
    refuses("data set 'deepglobe' has no image '10_sat_56'", index.load_image, "10_sat_56", kind=DataSetError)
    (root / "Deepglobe/6/test/groundtruth/6_sat_01.png").unlink()
    with pytest.raises(DataSetError, match=r"6_sat_01\.jpg' has no mask '.*6_sat_01\.png' .*: unpack the"):
        open_data_set("deepglobe", root)
    for image in root.rglob("*.jpg"):
        image.unlink()
    with pytest.raises(DataSetError, match=r"Deepglobe' has no \.jpg tile in '<class>/test/origin': unpack"):
        open_data_set("deepglobe", root)


def test_colours_of_underwater_masks_are_classes(tmp_path):
    root = trees.suim_tree(tmp_path)
    index = open_data_set("suim", root, "train")
    shown = {index.class_names[c]: index.images(c) for c in index.class_names if index.images(c)}
    assert {name: [image[4] for image in images] for name, images in shown.items()} == {
        "human diver": ["0", "3"],
        "fish": ["1", "4"],
        "sea-floor": ["2", "5"],
    }
    assert (index.load_mask("d_r_1_", 6) == block(1)).all() and not index.load_mask("d_r_1_", 7).any()
    assert open_data_set("suim", root, min_pixels=2500).images(1) == ["d_r_0_", "d_r_3_"]
    refuses("unknown split 'val' of SUIM; use 'train' or 'test'", open_data_set, "suim", root, split="val")
    (root / "SUIM/TEST/masks/d_r_1_.bmp").unlink()
    with pytest.raises(DataSetError, match=r"d_r_1_\.jpg' has no mask '.*d_r_1_\.bmp' \(1 such image\(s\)\): unpack"):
        open_data_set("suim", root)
