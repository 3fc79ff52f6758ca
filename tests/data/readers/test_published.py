"""The readers of the published benchmarks, on small trees in the official layouts."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from fsdino.base.resize import Resize
from fsdino.data.catalog import data_set, open_data_set
from fsdino.data.episodes.episode import EpisodeData
from fsdino.data.episodes.protocols import PROTOCOLS
from fsdino.data.files import DataSetError
from fsdino.data.readers.fss import class_split, fss1000
from fsdino.data.readers.lvis import LvisIndex, image_name, lvis_folds
from fsdino.data.readers.paco_part import PacoPartIndex
from fsdino.data.readers.part_names import PART_FOLDS, merged_part
from fsdino.data.readers.pascal_part import PascalPartIndex
from fsdino.data.readers.perseg import PersegIndex
from fsdino.data.readers.voc import VocIndex, read_mat
from tests.data import trees
from tests.data.small import block, labels, rle, shared_data, square, text, write_json
from tests.small import refuses


@pytest.mark.parametrize("name", trees.TREES)
def test_every_benchmark_gives_episodes(tmp_path, name):
    root = trees.TREES[name](tmp_path)
    for role in data_set(name).roles:
        index = open_data_set(name, root, role)
        assert index.name == name
        for image_id in index.all_images()[:4]:
            image = index.load_image(image_id)
            assert image.dtype == np.uint8 and image.ndim == 3
            for class_id in index.classes_in(image_id):
                mask = index.load_mask(image_id, class_id)
                assert mask.shape == image.shape[:2] and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, 255}
    index = open_data_set(name, root, "test")
    episodes = PROTOCOLS["fsdino"].draw(index, 0, num_episodes=6, skip_rare=True)
    episodes.verify(index)
    items = EpisodeData(index, episodes, Resize(28))
    for i in range(min(6, len(items))):
        assert (items[i]["query_mask_original"] == 1).any() and items[i]["support_masks"].max() > 0


class TestPascal:
    def test_folds_splits_ignore_label_and_smallest_size(self, tmp_path):
        index = VocIndex(trees.voc_tree(tmp_path), "val")
        assert index.folds == [list(range(5 * f + 1, 5 * f + 6)) for f in range(4)]
        assert index.class_names[15] == "person"
        assert index.images(1) == ["2007_001002", "2007_001003"]  # those of class 2 show it too small
        assert index.classes_in("2007_002002") == {1, 2}
        mask = index.load_mask("2007_001002", 1)
        assert (mask[8:10, 10:60] == 255).all() and (mask == 1).sum() == 2500
        small = VocIndex(tmp_path, "val", min_pixels=1)
        assert len(small.images(1)) == 4
        root = tmp_path
        train, val = VocIndex(root / "VOCdevkit", "train"), VocIndex(root / "VOCdevkit/VOC2012", "val")
        assert len(train.all_images()) == len(val.all_images()) == 40
        assert not set(train.all_images()) & set(val.all_images())

    def test_published_lists_are_read_first(self, tmp_path):
        root = trees.voc_tree(tmp_path)
        for fold in range(4):
            lines = [f"2007_{c:03d}002__{c:02d}" for c in range(5 * fold + 1, 5 * fold + 6)]
            lines += ["2007_002002__01"] if fold == 0 else []
            text(root / f"splits/pascal/val/fold{fold}.txt", "\n".join(lines))
        index = VocIndex(root, "val")
        assert index.images(1) == ["2007_001002", "2007_002002"] and index.images(20) == ["2007_020002"]
        assert index.object_pixels("2007_002002", 1) == 160
        text(root / "splits/pascal/val/fold3.txt", "2007_001002__21")
        with pytest.raises(DataSetError, match=r"line '2007_001002__21' of '.*fold3\.txt' is not '<image>__<class"):
            VocIndex(root, "val")

    def test_official_sources_when_the_merged_folder_is_missing(self, tmp_path):
        savemat = pytest.importorskip("scipy.io").savemat
        root = trees.voc_tree(tmp_path)
        base = root / "VOCdevkit/VOC2012"
        (base / "SegmentationClassAug").rename(base / "SegmentationClass")
        moved = base / "SegmentationClass/2007_003000.png"
        sbd = root / "benchmark_RELEASE/dataset/cls"
        sbd.mkdir(parents=True)
        savemat(sbd / "2007_003000.mat", {"GTcls": {"Segmentation": np.asarray(Image.open(moved))}})
        moved.unlink()
        index = VocIndex(root, "train")
        assert "2007_003000" in index.images(3) and index.object_pixels("2007_003000", 3) == 2500
        savemat(sbd / "2007_003000.mat", {"other": 1})
        refuses(r"2007_003000\.mat' has no GTcls", VocIndex, root, "train", kind=DataSetError)
        (sbd / "2007_003000.mat").write_bytes(b"MATLAB?")
        with pytest.raises(DataSetError, match=r"2007_003000\.mat' cannot be read \(.*\): download it again"):
            VocIndex(root, "train")

    def test_matlab_files_need_scipy(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy.io", None)
        refuses(r"reading '.*a\.mat' needs scipy: pip install scipy", read_mat, tmp_path / "a.mat", kind=ImportError)

    def test_what_is_missing(self, tmp_path):
        root = trees.voc_tree(tmp_path)
        base = root / "VOCdevkit/VOC2012"
        (base / "SegmentationClassAug/2007_001002.png").unlink()
        with pytest.raises(DataSetError, match=r"image '2007_001002' of '.*val\.txt' has no label map \(1 such\)"):
            VocIndex(root, "val")
        for path in (base / "SegmentationClassAug").iterdir():
            if path.stem in (base / "ImageSets/Segmentation/train.txt").read_text():
                path.unlink()
        with pytest.raises(DataSetError, match="has label maps for val images only: fetch SegmentationClassAug or"):
            VocIndex(root, "train")
        (base / "SegmentationClassAug").rename(base / "gone")
        with pytest.raises(DataSetError, match="has neither SegmentationClassAug nor SegmentationClass: unpack"):
            VocIndex(root, "val")
        text(base / "ImageSets/Segmentation/val.txt", "\n")
        (base / "gone").rename(base / "SegmentationClass")
        refuses(r"list '.*val\.txt' is empty: copy or download it again", VocIndex, root, "val", kind=DataSetError)


class TestFss:
    def test_the_published_split_comes_with_the_package(self):
        split = class_split()
        assert {name: len(classes) for name, classes in split.items()} == {"train": 520, "val": 240, "test": 240}
        assert len({name for classes in split.values() for name in classes}) == 1000

    def test_the_package_s_table_is_the_given_one(self):
        folder = shared_data("splits/fss")
        for split, name in {"train": "trn", "val": "val", "test": "test"}.items():
            assert class_split()[split] == sorted((folder / f"{name}.txt").read_text().split())

    def test_grey_above_the_middle_is_the_object(self, tmp_path):
        index = fss1000(trees.fss_tree(tmp_path))
        assert index.folds == [list(index.class_names)]
        mask = index.load_mask("cat/1", index.folds[0][0])
        assert mask[0, 0] == 1 and mask.sum() == 2501  # 128 counts, 90 does not

    def test_class_ids_are_the_same_in_all_splits(self, tmp_path):
        root = trees.fss_tree(tmp_path)
        ids = [set(fss1000(root, split).class_names) for split in ("train", "val", "test")]
        assert sum(map(len, ids)) == len(set.union(*ids)) == 5
        assert fss1000(root, "train").base_classes(0) == sorted(ids[0])

    def test_what_is_missing(self, tmp_path):
        root = trees.fss_tree(tmp_path)
        (root / "FSS-1000/cat/3.png").unlink()
        refuses(r"cat/3\.png' \(the mask of an image of FSS-1000\) does not exist", fss1000, root, kind=DataSetError)
        for path in (root / "FSS-1000/cat").iterdir():
            path.unlink()
        refuses(r"class folder '.*cat' has no \.jpg image: unpack FSS-1000 again", fss1000, root, kind=DataSetError)
        (root / "FSS-1000/cat").rmdir()
        refuses(r"cat' \(a class folder of FSS-1000\) does not exist", fss1000, root, kind=DataSetError)
        with pytest.raises(DataSetError, match=r"has no class folder of FSS-1000 such as .* give --root as the folder"):
            fss1000(tmp_path / "splits")


class TestLvis:
    def test_folds_are_positions_among_the_frequent_classes(self, tmp_path):
        index = LvisIndex(trees.lvis_tree(tmp_path), "val")
        frequent = [c for c in range(1, 26) if c % 4 > 1]  # class c has c % 4 images
        assert index.folds == [[frequent[f]] for f in range(10)]
        assert index.images(2) == ["val2017/000000000001.jpg", "val2017/000000000002.jpg"]
        assert LvisIndex(tmp_path, "train").folds == index.folds

    def test_published_numbers(self):
        folds = lvis_folds({c: 2 + c % 3 for c in range(1, 924)} | {2000: 1}, shots=1)
        assert [len(fold) for fold in folds] == [92] * 10 and folds[3][:2] == [4, 14]

    def test_absence_is_only_claimed_where_it_was_looked_for(self, tmp_path):
        index = LvisIndex(trees.lvis_tree(tmp_path), "val")
        raw = json.loads((tmp_path / "LVIS/lvis_v1_val.json").read_text())
        known = {entry["id"] for entry in raw["images"] if 1 in entry["neg_category_ids"]}
        absent = [p for p in index.candidates(1) if 1 not in index.classes_in(p)]
        assert len(absent) == len(known) and len(index.candidates(25)) < 4

    def test_images_are_missing(self, tmp_path):
        root = trees.lvis_tree(tmp_path)
        for folder in ("train2017", "val2017"):
            (root / f"LVIS/{folder}").rename(root / f"LVIS/gone_{folder}")
        refuses(r"LVIS/val2017' \(COCO's val2017 images\) does not exist", LvisIndex, root, kind=DataSetError)

    def test_bare_file_names_take_their_folder_from_the_url(self):
        entry = {"file_name": "1.jpg", "coco_url": "http://images.cocodataset.org/val2017/1.jpg"}
        assert image_name(entry) == "val2017/1.jpg"


class TestParts:
    def test_pascal_parts_are_merged_and_cropped(self, tmp_path):
        index = PascalPartIndex(trees.pascal_part_tree(tmp_path), "val")
        ids = {name: class_id for class_id, name in index.class_names.items()}
        assert index.images(ids["dog:ear"]) == [f"2008_val{i}@0" for i in range(3)]
        assert index.images(ids["car:wheel"]) == ["2008_val1@1", "2008_val2@1"]  # image 0 has one object only
        assert index.load_image("2008_val0@0").shape == (50, 50, 3)
        ears = index.load_mask("2008_val0@0", ids["dog:ear"])
        assert ears.sum() == 72 and ears[2:8, 2:8].all() and ears[2:8, 30:36].all()
        assert (index.load_mask("2008_val0@0", ids["car:wheel"]) == 0).all()
        assert index.classes_in("2008_val1@1") == {ids["car:wheel"]} and len(index.folds) == 4
        assert PascalPartIndex(tmp_path, "val", min_pixels=100).images(ids["dog:ear"]) == []
        assert sorted(ids) == sorted(name for fold in PART_FOLDS.values() for name in fold)

    @pytest.mark.parametrize(
        ("raw", "merged"), [("lfpa", "paw"), ("wheel_12", "wheel"), ("rear", "ear"), ("torso", "torso")]
    )
    def test_part_names(self, raw, merged):
        assert merged_part(raw) == merged

    def test_a_user_s_selection_of_parts(self, tmp_path):
        root = trees.pascal_part_tree(tmp_path)
        names = ["dog:ear", "bottle:cap", "person:hair", "car:wheel"]
        for fold, name in enumerate(names):
            text(root / f"splits/pascal-part/fold{fold}.txt", name)
        index = PascalPartIndex(root, "val")
        assert [index.class_names[fold[0]] for fold in index.folds] == names
        text(root / "splits/pascal-part/fold3.txt", "car:ear")
        with pytest.raises(DataSetError, match="names part 'car:ear', which is none; names are such as 'dog:ear'"):
            PascalPartIndex(root, "val")

    def test_pascal_files_of_something_else(self, tmp_path):
        root = trees.pascal_part_tree(tmp_path)
        pytest.importorskip("scipy.io").savemat(root / "Annotations_Part/2008_val1.mat", {"x": 1})
        with pytest.raises(DataSetError, match=r"2008_val1\.mat' has no anno\.objects: it is no file of PASCAL-Part"):
            PascalPartIndex(root, "val")
        for path in (root / "Annotations_Part").iterdir():
            path.unlink()
        refuses("data set 'pascal-part' has no object with a part", PascalPartIndex, root, "val", kind=DataSetError)
        (root / "Annotations_Part").rmdir()
        with pytest.raises(DataSetError, match=r"Annotations_Part' \(PASCAL-Part's trainval\.tar\.gz\) does not exist"):
            PascalPartIndex(root, "val")

    def test_paco_parts_are_cropped_and_folded(self, tmp_path):
        index = PacoPartIndex(trees.paco_tree(tmp_path), "test")
        assert index.folds == [[101, 105], [102, 106], [103, 107], [104]]  # 108 is not in the test split
        assert PacoPartIndex(tmp_path, "train").folds == index.folds
        image = index.images(102)[0]
        assert image == "val2017/000000000001.jpg@10" and index.load_image(image).shape == (50, 50, 3)
        assert (index.load_mask(image, 102) == block(1, 16, 20, 6)[10:60, 10:60]).all()
        assert (index.load_mask(image, 108) == 0).all()
        refuses(r"has no crop 'val2017/1\.jpg@3'", index.load_image, "val2017/1.jpg@3", kind=DataSetError)

    def test_paco_parts_as_polygons_and_plain_rle(self, tmp_path):
        path = trees.paco_tree(tmp_path) / "PACO-Part/annotations/paco_lvis_v1_test.json"
        raw = json.loads(path.read_text())
        raw["annotations"][1]["segmentation"] = [square(20, 16, 6)]
        raw["annotations"][2]["segmentation"] = rle(block(1, 16, 20, 6), compressed=False)
        write_json(path, raw)
        index = PacoPartIndex(tmp_path, "test")
        image = index.images(101)[0]
        assert (index.load_mask(image, 101) == index.load_mask(image, 102)).all()
        assert index.load_mask(image, 101).sum() == 36

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            ("obj_ann_id", "is a part of object 77, which is not in the file"),
            ("image_id", "is of image id 77, which 'images' does not list"),
        ],
    )
    def test_dangling_paco_ids(self, tmp_path, key, words):
        path = trees.paco_tree(tmp_path) / "PACO-Part/annotations/paco_lvis_v1_test.json"
        raw = json.loads(path.read_text())
        raw["annotations"][1][key] = 77
        write_json(path, raw)
        with pytest.raises(DataSetError, match=f"annotation 100 in '.*test.json' {words}: download PACO's annotations"):
            PacoPartIndex(tmp_path, "test")


class TestPerseg:
    def test_first_image_is_the_reference(self, tmp_path):
        index = PersegIndex(trees.perseg_tree(tmp_path))
        assert index.class_names == {0: "backpack", 1: "toy"} and index.folds == [[0, 1]]
        assert (index.load_mask("toy/01", 1) == block(1)).all()
        episodes = PROTOCOLS["fsdino"].draw(index, 0)
        assert {e.support for e in episodes} == {("backpack/00",), ("toy/00",)} and len(episodes) == 4

    def test_grey_and_palette_masks_too(self, tmp_path):
        root = trees.perseg_tree(tmp_path)
        labels(root / "PerSeg/Annotations/toy/01.png", 255 * block(1))
        labels(root / "PerSeg/Annotations/toy/02.png", block(1))
        index = PersegIndex(root)
        assert index.object_pixels("toy/01", 1) == index.object_pixels("toy/02", 1) == 2500
        (root / "PerSeg/Annotations/toy/01.png").unlink()
        with pytest.raises(DataSetError, match=r"toy/01\.jpg' has no mask '.*toy/01\.png' .*: unpack PerSeg again"):
            PersegIndex(root)
