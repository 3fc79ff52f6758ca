"""Small data sets on disk, in exactly the official layouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.small import HEIGHT, WIDTH, block, instance, labels, photo, rle, square, text, write_json


def coco_tree(root: Path, num_images: int = 6, num_classes: int = 4) -> dict[str, Any]:
    """`instances.json` and `images/`; every class in every other image, and a big class 1 in all."""
    names = [f"{i:012d}.jpg" for i in range(1, num_images + 1)]
    for i, name in enumerate(names):
        photo(root / "images" / name, value=40 + 20 * i)
    annotations = []
    for i in range(1, num_images + 1):
        annotations.append(instance(len(annotations) + 1, i, 1, [square(5, 5, 30)]))
        for c in range(2, num_classes + 1):
            if (i + c) % 2:
                polygons = [square(40, 10 * c, 20), square(70, 10 * c, 8)]
                annotations.append(instance(len(annotations) + 1, i, c, polygons))
    content = {
        "images": [{"id": i + 1, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names)],
        "categories": [{"id": c, "name": f"class{c}"} for c in range(1, num_classes + 1)],
        "annotations": annotations,
    }
    write_json(root / "instances.json", content)
    return content


def coco2014_tree(root: Path) -> Path:
    base = root / "COCO2014"
    for split in ("train", "val"):
        content = coco_tree(base / split, num_classes=8)
        (base / split / "images").rename(base / f"{split}2014")
        (base / split / "instances.json").unlink()
        (base / split).rmdir()
        write_json(base / f"annotations/instances_{split}2014.json", content)
    return root


def voc_tree(root: Path) -> Path:
    """Twenty classes, two images each in train and in val; class 1 is also seen small in class 2's images."""
    base = root / "VOCdevkit/VOC2012"
    listed: dict[str, list[str]] = {"train": [], "val": []}
    for c in range(1, 21):
        for k in range(4):
            stem = f"2007_{c:03d}{k:03d}"
            photo(base / f"JPEGImages/{stem}.jpg", value=5 * c + k)
            array = block(c)
            array[8:10, 10:60] = 255
            if c == 2:
                array[70:78, 70:90] = 1
            labels(base / f"SegmentationClassAug/{stem}.png", array, palette=True)
            listed["train" if k < 2 else "val"].append(stem)
    for split, stems in listed.items():
        text(base / f"ImageSets/Segmentation/{split}.txt", "\n".join(stems) + "\n")
    return root


def fss_tree(root: Path, per_class: int = 10) -> Path:
    for split, names in {"trn": ["zebra", "ant"], "val": ["bear"], "test": ["cat", "dog"]}.items():
        text(root / f"splits/fss/{split}.txt", "\n".join(names))
        for name in names:
            for k in range(1, per_class + 1):
                photo(root / f"FSS-1000/{name}/{k}.jpg", value=10 * k)
                grey = np.where(block(1) == 1, 255, 90).astype(np.uint8)  # darker than 128 is background
                grey[0, 0] = 128
                labels(root / f"FSS-1000/{name}/{k}.png", np.repeat(grey[..., None], 3, -1))
    return root


def lvis_tree(root: Path, num_classes: int = 25) -> Path:
    """LVIS v1: images named by `coco_url` only; class c is in c % 4 val images."""
    base = root / "LVIS"
    for split, count in (("train", 4), ("val", 4)):
        images, annotations = [], []
        for i in range(1, count + 1):
            name = f"{split}2017/{i:012d}.jpg"
            photo(base / name, value=30 * i)
            present = [c for c in range(1, num_classes + 1) if c % 4 >= i]
            absent = [c for c in range(1, num_classes + 1) if c % 4 < i][:5]
            images.append({
                "id": i, "coco_url": f"http://images.cocodataset.org/{name}", "height": HEIGHT, "width": WIDTH,
                "neg_category_ids": absent, "not_exhaustive_category_ids": [],
            })  # fmt: skip
            annotations += [instance(1000 * i + c, i, c, [square(c, 5, 30)]) for c in present]
        categories = [{"id": c, "name": f"thing{c}", "frequency": "f"} for c in range(1, num_classes + 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(base / f"lvis_v1_{split}.json", content)
    return root


def paco_tree(root: Path) -> Path:
    """PACO-LVIS: objects 1 and 2, parts 101 to 108; part 108 is missing from the test split."""
    base = root / "PACO-Part"
    for split, folder in (("train", "train2017"), ("val", "train2017"), ("test", "val2017")):
        images, annotations = [], []
        for i in range(1, 4):
            name = f"{folder}/{i:012d}.jpg"
            photo(base / "coco" / name, value=40 * i)
            images.append({"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH})
            thing = instance(10 * i, i, 1 + i % 2, rle(block(1)))
            thing |= {"obj_ann_id": 10 * i, "bbox": [10.0, 10.0, 50.0, 50.0]}
            annotations.append(thing)
            for k, part in enumerate(range(101, 109)):
                if part == 108 and split == "test":
                    continue
                mask = rle(block(1, top=12 + 4 * k, left=20, side=6))
                annotations.append(instance(100 * i + k, i, part, mask) | {"obj_ann_id": 10 * i})
        categories = [{"id": c, "name": f"thing{c}", "supercategory": "OBJECT"} for c in (1, 2)]
        categories += [{"id": p, "name": f"thing1:part{p}", "supercategory": "PART"} for p in range(101, 109)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(base / f"annotations/paco_lvis_v1_{split}.json", content)
    return root


def pascal_part_tree(root: Path) -> Path:
    """PASCAL-Part: a dog with left and right ear and a numbered-part car in each image."""
    savemat = pytest.importorskip("scipy.io").savemat
    base = root / "VOCdevkit/VOC2010"
    for split in ("train", "val"):
        stems = [f"2008_{split}{i}" for i in range(3)]
        text(base / f"ImageSets/Main/{split}.txt", "\n".join(stems))
        for i, stem in enumerate(stems):
            photo(base / f"JPEGImages/{stem}.jpg", value=50 * i + 30)
            ears = {"lear": block(1, 12, 12, 6), "rear": block(1, 12, 40, 6)}
            wheels = {"wheel_1": block(1, 25, 66, 6), "wheel_2": block(1, 25, 80, 6)}
            dog = _part_object("dog", block(1), ears | {"torso": block(1, 30, 20, 20)})
            car = _part_object("car", block(1, 5, 65, 30), wheels if i < 2 else {"wheel_1": wheels["wheel_1"]})
            boat = _part_object("boat", block(1, 60, 5, 10), {})
            anno = {"anno": {"imname": stem, "objects": _struct([dog, car, boat] if i else [dog])}}
            (root / "Annotations_Part").mkdir(parents=True, exist_ok=True)
            savemat(root / f"Annotations_Part/{stem}.mat", anno)
    return root


def _part_object(name: str, mask: np.ndarray, parts: dict[str, np.ndarray]) -> dict[str, Any]:
    members = [{"part_name": part, "mask": part_mask.astype(np.uint8)} for part, part_mask in parts.items()]
    return {"class": name, "class_ind": 1, "mask": mask.astype(np.uint8), "parts": _struct(members)}


def _struct(rows: list[dict[str, Any]]) -> np.ndarray:
    """A MATLAB struct array, 1 x n; without rows the empty matrix that the official files hold there."""
    if not rows:
        return np.zeros((0, 0))
    array = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row.values())
    return array


def davis_tree(root: Path) -> Path:
    """DAVIS 2017 files: bear has one object, dogs two; the objects move right by two pixels a frame."""
    base = root / "DAVIS"
    for name, objects in {"bear": (1,), "dogs": (1, 2)}.items():
        for frame in range(5):
            photo(base / f"JPEGImages/480p/{name}/{frame:05d}.jpg", value=30 * frame)
            array = np.zeros((HEIGHT, WIDTH), np.int64)
            for number in objects:
                array += block(number, top=10 + 30 * (number - 1), left=10 + 2 * frame, side=20)
            labels(base / f"Annotations/480p/{name}/{frame:05d}.png", array, palette=True)
    text(base / "ImageSets/2017/val.txt", "bear\ndogs\n")
    text(base / "ImageSets/2017/train.txt", "bear\n")
    frame_line = "/JPEGImages/480p/{0}/{1:05d}.jpg /Annotations/480p/{0}/{1:05d}.png"
    for split in ("train", "val"):  # as in the files of 2016: a frame a line
        text(base / f"ImageSets/2016/{split}.txt", "\n".join(frame_line.format("dogs", i) for i in range(5)))
    return root


def perseg_tree(root: Path) -> Path:
    for name in ("backpack", "toy"):
        for k in range(3):
            photo(root / f"PerSeg/Images/{name}/{k:02d}.jpg", value=40 * k + 20)
            colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            colours[block(1) == 1] = (128, 0, 0)
            labels(root / f"PerSeg/Annotations/{name}/{k:02d}.png", colours)
    return root


def mask_folder_tree(root: Path) -> Path:
    for name in ("cup", "pen"):
        for k in range(3):
            photo(root / f"{name}/shot{k}.jpg", value=50 * k + 20)
            labels(root / f"{name}/shot{k}.png", 255 * block(1))
    return root


def label_folder_tree(root: Path, num_classes: int = 4) -> Path:
    for k in range(num_classes * 2):
        photo(root / f"images/{k:04d}.jpg", value=20 * k + 10)
        array = block(1 + k % num_classes)
        array[0, :] = 255
        labels(root / f"labels/{k:04d}.png", array)
    names = {str(c): f"class{c}" for c in range(1, num_classes + 1)}
    write_json(root / "classes.json", {"0": "null", **names})
    return root


def chest_xray_tree(root: Path) -> Path:
    """Three X-rays with masks, one of Montgomery's, whose mask has another name, and one without a mask."""
    for k in range(5):
        photo(root / f"LungSegmentation/CXR_png/CXR_{k}.png", value=30 * k)
    for k, ending in enumerate(("_mask", "_mask", "_mask", "")):
        labels(root / f"LungSegmentation/masks/CXR_{k}{ending}.png", 255 * block(1))
    return root


def isic_tree(root: Path) -> Path:
    for k in range(9):
        photo(root / f"ISIC/ISIC2018_Task1-2_Training_Input/{1 + k % 3}/ISIC_{k:07d}.jpg", value=20 * k)
        labels(root / f"ISIC/ISIC2018_Task1_Training_GroundTruth/ISIC_{k:07d}_segmentation.png", 255 * block(1))
    text(root / "ISIC/ISIC2018_Task1-2_Training_Input/1/LICENSE.txt", "CC-0")
    return root


def deepglobe_tree(root: Path) -> Path:
    """Two tiles of each class alone, and one that shows classes 1 and 2."""
    for c in range(1, 7):
        for k in range(3 if c < 3 else 2):
            tile = "10_sat_55" if k == 2 else f"{c}_sat_0{k}"
            photo(root / f"Deepglobe/{c}/test/origin/{tile}.jpg", value=20 * c)
            labels(root / f"Deepglobe/{c}/test/groundtruth/{tile}.png", 255 * block(1, left=8 * c))
    return root


def suim_tree(root: Path) -> Path:
    """A diver, a fish, the sea-floor: blue, yellow and white, two images each, with colours that are not quite pure."""
    for folder in ("train_val", "TEST"):
        for k in range(6):
            photo(root / f"SUIM/{folder}/images/d_r_{k}_.jpg", value=30 * k)
            colours = np.full((HEIGHT, WIDTH, 3), 9, np.uint8)
            colours[block(1) == 1] = ((3, 0, 250), (255, 246, 0), (255, 255, 255))[k % 3]
            labels(root / f"SUIM/{folder}/masks/d_r_{k}_.bmp", colours)
    return root


def yolo_tree(root: Path) -> Path:
    """Two classes, two images each in train and val; class 0 of two polygons, and one image that shows nothing."""
    polygon = "{} 0.1 0.1 0.4 0.1 0.4 0.6 0.1 0.6"
    for split in ("train", "val"):
        for k in range(5):
            photo(root / f"images/{split}/{split}{k}.jpg", value=30 * k + 9)
            lines = [polygon.format(k % 2), *(["0 0.6 0.6 0.9 0.6 0.9 0.9"] if k % 2 == 0 else [])]
            text(root / f"labels/{split}/{split}{k}.txt", "\n".join(lines if k < 4 else []))
    text(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: {0: cup, 1: pen}\n")
    return root


TREES = {
    "pascal5i": voc_tree, "coco20i": coco2014_tree, "fss1000": fss_tree, "lvis92i": lvis_tree, "perseg": perseg_tree,
    "pascal-part": pascal_part_tree, "paco-part": paco_tree, "davis2016": davis_tree, "davis2017": davis_tree,
    "folder": mask_folder_tree, "chest-xray": chest_xray_tree, "fss1000-cd": fss_tree, "isic": isic_tree,
    "deepglobe": deepglobe_tree, "suim": suim_tree, "yolo": yolo_tree,
}  # fmt: skip
