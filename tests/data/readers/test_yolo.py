"""YOLO's segmentation format: what is read, that what predict writes comes back, and what is damaged."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdino.base.result import LabelMap
from fsdino.data.files import DataSetError
from fsdino.data.readers.yolo import is_yolo, yolo_folder
from fsdino.predict.support import read_support
from fsdino.predict.writers import YoloWriter
from tests.data.small import HEIGHT, WIDTH, photo, text
from tests.data.trees import yolo_tree
from tests.small import refuses

LINE = "0 0.1 0.1 0.4 0.1 0.4 0.6"


def shapes() -> dict[str, np.ndarray]:
    """A disc, one with a hole, one with two holes beside a second part, a line of one pixel, and all."""
    rows, columns = np.mgrid[:90, :120]
    disc = np.hypot(rows - 40, columns - 50) < 33.5
    ring = disc & ~(np.hypot(rows - 42, columns - 55) < 11.2)
    parts = ring & ~(np.hypot(rows - 30, columns - 30) < 5) | (np.hypot(rows - 70, columns - 105) < 12)
    line = np.zeros((90, 120), bool)
    line[20, 5:100] = line[5:70, 40] = True
    return {"disc": disc, "ring": ring, "parts": parts, "line": line, "all": np.ones((90, 120), bool)}


@pytest.mark.parametrize("shape", shapes())
def test_what_predict_writes_comes_back_as_references(tmp_path: Path, shape: str) -> None:
    mask = shapes()[shape]
    labels = np.where(mask, 2, 0).astype(np.uint8)
    found = LabelMap(labels, labels.astype(np.float32), {"cat": 0.0, "dog": 0.9}, {"cat": 0.1, "dog": 0.9})
    image = photo(tmp_path / "refs/images/a.png", mask.shape)
    (tmp_path / "refs/labels").mkdir()
    YoloWriter(tmp_path, ["cat", "dog"], False).write(tmp_path / "refs/labels/a.txt", np.zeros(1), found)
    text(tmp_path / "refs/data.yaml", "train: images\nnames: [cat, dog]\n")
    support = read_support(tmp_path / "refs")
    assert support.class_names() == ["dog"]
    [reference] = support.references["dog"]
    back = np.asarray(reference.mask) == 1
    assert (np.asarray(reference.image) == np.asarray(Image.open(image))).all()
    assert (back & mask).sum() / (back | mask).sum() > 0.98
    assert (back == mask).all()


def test_splits_and_classes(tmp_path: Path) -> None:
    index = yolo_folder(yolo_tree(tmp_path))
    assert index.class_names == {0: "cup", 1: "pen"} and index.folds == [[0], [1], [], []]
    assert index.images(1) == [f"images/{split}/{split}{k}.jpg" for split in ("train", "val") for k in (1, 3)]
    train = yolo_folder(tmp_path, split="train")
    assert train.images(0) == ["images/train/train0.jpg", "images/train/train2.jpg"]
    assert len(train.candidates(0)) == 5 and train.classes_in("images/train/train4.jpg") == set()
    mask = train.load_mask("images/train/train0.jpg", 0)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[8:49, 10:41] = 1
    assert mask.shape == (HEIGHT, WIDTH) and (mask[:49, :50] == expected[:49, :50]).all() and mask[60, 88] == 1
    assert not train.load_mask("images/train/train0.jpg", 1).any()


@pytest.mark.parametrize(
    ("entry", "names"),
    [("../images/train", "[cup, pen]"), ("[images/train]", "{0: cup, 1: pen}"), ("list.txt", "{0: cup, 1: pen}")],
)
def test_ways_to_say_where_the_images_are(tmp_path: Path, entry: str, names: str) -> None:
    yolo_tree(tmp_path)
    text(tmp_path / "list.txt", "./images/train/train1.jpg\n./images/train/train3.jpg\n")
    text(tmp_path / "data.yaml", f"path: /moved/since\ntrain: {entry}\nnames: {names}\n")
    assert [Path(image).name for image in yolo_folder(tmp_path / "data.yaml").images(1)] == ["train1.jpg", "train3.jpg"]


def test_without_data_yaml(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    text(tmp_path / "labels/a.txt", LINE)
    assert not is_yolo(tmp_path)
    text(tmp_path / "classes.txt", "cup\n")
    assert is_yolo(tmp_path) and list(read_support(tmp_path).references) == ["cup"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 2 of .* is a box and not a polygon"),
        ("0 0.1 0.1 0.4 0.1 0.4", "has 5 numbers after its class"),
        ("0 0.1 0.1 0.4 0.1 0.4 x", "is not numbers"),
        ("0 0.1 0.1 0.4 0.1 0.4 nan", "outside of .0, 1."),
        ("0 10 10 40 10 40 60", "shares of the width and the height"),
        ("7 0.1 0.1 0.4 0.1 0.4 0.6", "is of class 7, which the names do not list"),
    ],
)
def test_damaged_lines_are_one_sentence(tmp_path: Path, line: str, words: str) -> None:
    photo(tmp_path / "images/a.jpg")
    text(tmp_path / "labels/a.txt", f"{LINE}\n{line}\n")
    text(tmp_path / "data.yaml", "train: images\nnames: [cup]\n")
    refuses(words, yolo_folder, tmp_path, kind=DataSetError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train: [", "is not YAML"),
        ("- a", "describes no data set"),
        ("train: images", "has no names of classes"),
        ("names: [cup]", "names no images for train, val, test"),
        ("train: none\nnames: [cup]", "names 'none', which does not exist"),
        ("train: images\nnames: [cup]", "has no polygon in any text file"),
    ],
)
def test_a_damaged_description_is_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    photo(tmp_path / "images/a.jpg")
    text(tmp_path / "data.yaml", content)
    refuses(words, read_support, tmp_path, kind=DataSetError)
