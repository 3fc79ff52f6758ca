"""FSS-1000: a thousand classes of ten images, split 520/240/240."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Literal

from fsdino.data.catalog import TRAIN_TEST, DataSet, Published, Requirement
from fsdino.data.files import DataSetError, existing, read_names
from fsdino.data.readers.folder import MaskFolderIndex

SPLIT_FILES = {"train": "trn", "val": "val", "test": "test"}
ROOTS = ("FSS-1000", "FSS-1000/data", "fewshot_data/fewshot_data", "fewshot_data", "data", ".")


def class_split(root: str | Path | None = None) -> dict[str, list[str]]:
    """The published split of the classes: "train", "val", "test" -> class names, sorted.

    A user's own lists `trn.txt`, `val.txt`, `test.txt` below the root are read in place of the package's table.
    """
    for folder in ("splits/fss", "FSS-1000/splits", "splits"):
        place = Path(root) / folder if root is not None else None
        if place is not None and (place / "test.txt").is_file():
            return {split: sorted(read_names(place / f"{name}.txt")) for split, name in SPLIT_FILES.items()}
    table = json.loads(files("fsdino.data").joinpath("tables/fss1000.json").read_text(encoding="utf-8"))
    return {split: sorted(table[name]) for split, name in SPLIT_FILES.items()}


def fss1000(root: str | Path, split: Literal["train", "val", "test"] = "test") -> MaskFolderIndex:
    """FSS-1000 as `<class>/{1..10}.{jpg,png}`, a mask being what is 128 or brighter.

    Args:
        root: folder of the class folders, or one holding it as `FSS-1000` or `fewshot_data/fewshot_data`.
        split: which classes; ids are positions among the sorted names of all three splits. In "val" and "test" all
            of them are novel in fold 0; in "train" none is.

    Source: Li et al., 2020; ten test images a class, each once as query (Min et al., 2021).
    """
    names = class_split(root)
    # Numbered over all three splits, so that a class has the same id in each.
    class_ids = {name: i for i, name in enumerate(sorted(n for part in names.values() for n in part))}
    base = fss_folder(root, names[split])
    pairs = {name: _images(base / name) for name in names[split]}
    own = {name: class_ids[name] for name in names[split]}
    folds = [[]] if split == "train" else [sorted(own.values())]
    return MaskFolderIndex("fss1000", pairs, own, folds)


def fss_folder(root: str | Path, names: list[str]) -> Path:
    """The folder that holds the class folders."""
    base = existing(root, "the data set's root")
    for folder in ROOTS:
        if any((base / folder / name).is_dir() for name in names):
            return base / folder
    raise DataSetError(
        f"'{base}' has no class folder of FSS-1000 such as '{base / names[0]}': give --root as the "
        "folder that holds them, or fetch fewshot_data.zip from the FSS-1000 page."
    )


def _images(folder: Path) -> dict[str, tuple[Path, Path]]:
    existing(folder, "a class folder of FSS-1000")
    pairs = {path.stem: (path, path.with_suffix(".png")) for path in sorted(folder.glob("*.jpg"))}
    if not pairs:
        raise DataSetError(f"class folder '{folder}' has no .jpg image: unpack FSS-1000 again.")
    for _, mask in pairs.values():
        existing(mask, "the mask of an image of FSS-1000")
    return pairs


_FETCH = "fewshot_data.zip from the FSS-1000 page (github.com/HKUSTCV/FSS-1000)"

REQUIREMENTS = (
    Requirement("*/1.jpg", "class folders", _FETCH, ROOTS),
    Requirement("*/1.png", "masks", _FETCH, ROOTS),
    Requirement("splits/fss/test.txt", "your own class split", "the package's table is used", optional=True),
)
DATA_SETS = (
    DataSet(
        "fss1000",
        "FSS-1000",
        fss1000,
        roles=TRAIN_TEST,
        requirements=REQUIREMENTS,
        published=Published({"train": 520, "val": 240, "test": 240}, fold_pairs={"test": (2400,)}),
        order="each",
    ),
)
