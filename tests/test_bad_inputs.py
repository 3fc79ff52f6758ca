"""Damaged and incomplete data sets, met by `fsdino evaluate`: one sentence each, naming file and remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fsdino.base.storage import save
from fsdino.cli import main
from fsdino.evaluation.work import plain_error
from tests.data.small import block, labels, photo
from tests.data.trees import TREES, coco_tree, mask_folder_tree
from tests.small import small_segmenter


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save(small_segmenter(seed=1), tmp_path_factory.mktemp("model")))


def _dangling(root: Path) -> None:
    content = coco_tree(root)
    content["annotations"][0]["image_id"] = 99
    (root / "instances.json").write_text(json.dumps(content))


def _truncated(root: Path) -> None:
    mask_folder_tree(root)
    for path in root.glob("*/*.jpg"):
        path.write_bytes(path.read_bytes()[:300])


def _other_size(root: Path) -> None:
    mask_folder_tree(root)
    labels(root / "cup/shot1.png", 255 * block(1, size=(90, 70)))


def _empty_masks(root: Path) -> None:
    mask_folder_tree(root)
    for k in range(3):
        labels(root / f"pen/shot{k}.png", block(0))


def _one_image(root: Path) -> None:
    mask_folder_tree(root)
    for k in (1, 2):
        (root / f"pen/shot{k}.jpg").unlink()
        (root / f"pen/shot{k}.png").unlink()


def _coloured(root: Path) -> None:
    for k in range(2):
        photo(root / f"images/{k}.jpg")
        photo(root / f"labels/{k}.png", value=90 + k)
        path = root / f"labels/{k}.png"
        colours = np.asarray(Image.open(path)).copy()
        colours[..., 0] = 200
        Image.fromarray(colours).save(path)
    (root / "classes.json").write_text('{"1": "dog"}')


CASES: dict[str, tuple[str, Callable[[Path], object] | None, str]] = {
    "missing": ("folder", None, r"does not exist, '.*' does: check --root, or --data.root of a recipe, or fetch"),
    "wrong root": ("fss1000", mask_folder_tree, r"has no class folder of FSS-1000 such as .*give --root as the folder"),
    "dangling": ("coco", _dangling, r"annotation 1 in '.*instances.json' is of image id 99, .*remove"),
    "truncated": ("folder", _truncated, r"shot\d.jpg' cannot be read .*(again|replace|copy)"),
    "other size": ("folder", _other_size, r"mask '.*cup/shot1.png' is 70x90 pixels .*: export the mask at the imag"),
    "empty": ("folder", _empty_masks, r"class 'pen' of 'folder' fold 1 has 0 image\(s\) with a mask, .*: add imag"),
    "too few": ("folder", _one_image, r"class 'pen' of 'folder' fold 1 has 1 image\(s\) with a mask, .*: add im"),
    "coloured labels": ("folder", _coloured, r"label image '.*labels/0.png' has colours .*: save it as a grey or"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_with_file_and_remedy(case, model, tmp_path, capsys) -> None:
    name, make, words = CASES[case]
    root = tmp_path / "data"
    if make is not None:
        make(root)
    command = ["evaluate", model, "--data", name, "--root", str(root), "--out", str(tmp_path / "out"), "--strips", "0"]
    assert main([*command, "--episodes", "4"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    said = [line for line in error if line.startswith("fsdino evaluate: ")]
    assert len(said) == 1 and "Traceback" not in said[0]
    with pytest.raises(ValueError, match=words):
        raise ValueError(said[0])


@pytest.mark.parametrize("options", [("--num-workers", "1"), ("--devices", "2")])
def test_also_from_other_processes(options, model, tmp_path, capsys) -> None:
    _truncated(tmp_path / "data")
    command = ["evaluate", model, "--data", "folder", "--root", str(tmp_path / "data"), "--device", "cpu"]
    assert main([*command, "--episodes", "2", "--folds", "0", "--out", str(tmp_path / "out"), *options]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fsdino evaluate: ")]
    assert len(said) == 1 and "cannot be read" in said[0] and "Traceback" not in said[0]


def test_other_errors_keep_their_traceback() -> None:
    error = RuntimeError("Caught it.\nOriginal Traceback\nRuntimeError: out of memory")
    assert plain_error(error) is error
    same = ValueError("a sentence")
    assert plain_error(same) is same


def test_label_255_counts_nowhere(model, tmp_path) -> None:
    root = TREES["pascal5i"](tmp_path / "data")
    command = ["evaluate", model, "--data", "pascal5i", "--root", str(root), "--folds", "0", "--episodes", "2"]
    assert main([*command, "--out", str(tmp_path / "out"), "--strips", "0"]) == 0
    rows = pd.read_csv(tmp_path / "out" / "episodes.csv")
    assert ((rows["inter_bg"] + rows["union_fg"]) == 80 * 100 - 2 * 50).all()  # the tree's two rows of 255
