"""SUIM: underwater images, with masks whose colours say the class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fsdino.data.catalog import TRAIN_TEST, DataSet, Published, needed
from fsdino.data.files import existing, files_by_stem, first_existing, with_masks
from fsdino.data.images import IMAGE_SUFFIXES, read_image
from fsdino.data.readers.label_maps import LabelMapIndex

# The colour of class c spells c in binary, a bit each for red, green and blue: 1 is blue, 6 is yellow, 7 is white.
CLASSES = ("human diver", "plant", "wreck or ruin", "robot", "reef", "fish", "sea-floor")
_FOLDERS = {"train": "train_val", "test": "TEST"}
_ROOTS = ("SUIM", "suim", ".")
_FETCH = "the SUIM archive from irvlab.cs.umn.edu/resources/suim-dataset"


class SuimIndex(LabelMapIndex):
    """SUIM with its seven object classes; black, the water, is background.

    All classes are novel in fold 0. Works that test on SUIM may take fewer of them; this list is the official one.

    Args:
        root: folder with `train_val/images`, `train_val/masks`, `TEST/images` and `TEST/masks` (`.bmp`), or one holding
            it as `SUIM/`. The masks of single classes in folders inside `TEST/masks` are not read.
        split: "train" (1,525 images) or "test" (110).

    Source: Islam et al., 2020.
    """

    def __init__(self, root: str | Path, split: Literal["train", "test"] = "test", min_pixels: int = 1) -> None:
        if split not in _FOLDERS:
            raise ValueError(f"unknown split {split!r} of SUIM; use 'train' or 'test'.")
        base = first_existing(root, _ROOTS, f"{_FOLDERS[split]}/images") / _FOLDERS[split]
        images = files_by_stem(base / "images", IMAGE_SUFFIXES)
        masks = files_by_stem(existing(base / "masks", "SUIM's masks"), (".bmp",))
        files = with_masks(images, masks, base / "masks/*.bmp", "unpack SUIM again")
        names = dict(enumerate(CLASSES, start=1))
        super().__init__("suim", files, names, [list(names)], min_pixels=min_pixels)

    def _read_map(self, path: Path) -> np.ndarray:
        # Painted by hand and saved more than once: at outlines the colours are not pure.
        red, green, blue = np.moveaxis(read_image(path).astype(np.int64) >= 128, -1, 0)
        return 4 * red + 2 * green + 1 * blue


_TRAIN = {"train_val/images": "train images", "train_val/masks/*.bmp": "train masks"}
_FILES = _TRAIN | {"TEST/images": "test images", "TEST/masks/*.bmp": "test masks"}
DATA_SETS = (
    DataSet(
        "suim",
        "SUIM (underwater)",
        SuimIndex,
        roles=TRAIN_TEST,
        requirements=needed(_FILES, _FETCH, _ROOTS),
        published=Published(classes=7, images={"train": 1525, "test": 110}),
    ),
)
