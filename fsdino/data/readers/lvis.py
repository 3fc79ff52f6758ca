"""LVIS-92i: 920 classes of LVIS v1 in ten folds of 92."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from fsdino.data.catalog import TRAIN_VAL, DataSet, Published, Requirement, Source
from fsdino.data.files import existing, first_existing
from fsdino.data.json_lists import json_lists
from fsdino.data.readers import coco
from fsdino.data.readers.coco import CocoIndex

NUM_FOLDS = 10
_ROOTS = ("LVIS", "lvis", ".", "annotations", "LVIS/annotations")
_IMAGE_ROOTS = ("LVIS", "LVIS/coco", "PACO-Part", "PACO-Part/coco", "PACO", "PACO/coco", "coco", ".")


class LvisIndex(CocoIndex):
    """LVIS v1 for few-shot segmentation.

    The validation categories with more images than shots are sorted by id; with n of them fold f tests those at the
    positions f + 10 v for v < n // 10 (920 and 92 for one shot). LVIS is annotated federatedly: that a class is absent
    is only known for the images that list it so, and `candidates` keeps to these.

    Args:
        root: folder with `train2017/`, `val2017/` (also inside `coco/`) and `lvis_v1_{train,val}.json`, or the one
            holding it as `LVIS/`. Image ids are such as `val2017/000000000139.jpg`.
        split: images to use: "train" for base classes, "val" for test episodes. The folds come from the validation
            file either way.
        shots: references per episode (K), which decides the classes.

    Source: Gupta et al., 2019; Liu et al., 2024 (folds).
    """

    def __init__(self, root: str | Path, split: Literal["train", "val"] = "val", shots: int = 1) -> None:
        # Before the base class reads the file: that calls `_note_image` for every image, which fills it.
        self._known_absent: dict[int, set[str]] = {}
        base = first_existing(root, _ROOTS, f"lvis_v1_{split}.json")
        super().__init__(base / f"lvis_v1_{split}.json", coco2017_folder(base), "lvis92i", file_name=self._note_image)
        # The folds are made from validation counts; a base class of the train split must not be novel in the val split.
        if split == "val":
            images = {class_id: len(self.images(class_id)) for class_id in self.class_names}
        else:
            images = images_per_class(existing(base / "lvis_v1_val.json", "the folds' source"))
        self.folds = lvis_folds(images, shots)

    def candidates(self, class_id: int) -> list[str]:
        return sorted(self._known_absent.get(class_id, set()) | set(self.images(class_id)))

    def _note_image(self, entry: dict[str, Any]) -> str:
        name = image_name(entry)
        for class_id in entry.get("neg_category_ids", ()):
            self._known_absent.setdefault(int(class_id), set()).add(name)
        return name


def lvis_folds(images: dict[int, int], shots: int) -> list[list[int]]:
    """Class ids of the ten folds, equally many each, from the number of validation images of every class."""
    ids = sorted(class_id for class_id, count in images.items() if count > shots)
    return [[ids[fold + NUM_FOLDS * v] for v in range(len(ids) // NUM_FOLDS)] for fold in range(NUM_FOLDS)]


def images_per_class(annotations: Path) -> dict[int, int]:
    """Class id -> number of images with an instance of it in a COCO-format file."""
    pairs, counts = set(), {}
    for key, entry, *_ in json_lists(annotations, ("annotations", "categories")):
        if key == "categories":
            counts[int(entry["id"])] = 0
        else:
            pairs.add((int(entry["category_id"]), entry["image_id"]))
    return counts | dict(Counter(class_id for class_id, _ in pairs))


def image_name(entry: dict[str, Any]) -> str:
    """`val2017/000000000139.jpg` from an image's JSON entry: LVIS gives `coco_url` only, PACO `file_name`."""
    source = str(entry.get("file_name") or entry["coco_url"])
    if "/" not in source and "coco_url" in entry:
        source = str(entry["coco_url"])
    return "/".join(source.split("/")[-2:])


def coco2017_folder(base: Path) -> Path:
    """The folder with COCO 2017's images, at `base`, in `coco/` inside it, or one above."""
    for place in (base, base / "coco", base.parent, base.parent / "coco"):
        if (place / "val2017").is_dir() or (place / "train2017").is_dir():
            return place
    return existing(base / "val2017", "COCO's val2017 images").parent


def coco2017_requirement(split: str) -> Requirement:
    """COCO 2017's images of a split, which LVIS and PACO annotate."""
    return Requirement(f"{split}2017", f"COCO {split} images", f"{split}2017.zip {coco.FETCH}", _IMAGE_ROOTS)


def coco2017_sources() -> tuple[Source, Source]:
    """The archives of both."""
    train, val = f"{coco.HOME}/zips/train2017.zip", f"{coco.HOME}/zips/val2017.zip"
    return Source(train, "train2017", 18_000), Source(val, "val2017", 1_000)


_FETCH = "from lvisdataset.org/dataset"
_HOME = "https://dl.fbaipublicfiles.com/LVIS"

DATA_SETS = (
    DataSet(
        "lvis92i",
        "LVIS-92i (LVIS v1)",
        LvisIndex,
        roles=TRAIN_VAL,
        requirements=(
            Requirement("lvis_v1_val.json", "val masks", f"lvis_v1_val.json.zip {_FETCH}", _ROOTS),
            Requirement("lvis_v1_train.json", "train masks", f"lvis_v1_train.json.zip {_FETCH}", _ROOTS),
            coco2017_requirement("train"),
            coco2017_requirement("val"),
        ),
        published=Published(classes=1203, fold_classes=92, tested_classes=920),  # the last two for one shot
        photographs=coco.COCO_PHOTOGRAPHS,
        sources=(
            *coco2017_sources(),
            Source(f"{_HOME}/lvis_v1_train.json.zip", "lvis_v1_train.json", 350, 5.0),
            Source(f"{_HOME}/lvis_v1_val.json.zip", "lvis_v1_val.json", 64, 5.0),
        ),
        licence=f"LVIS: CC BY 4.0 (lvisdataset.org); COCO: {coco.LICENCE}",
    ),
)
