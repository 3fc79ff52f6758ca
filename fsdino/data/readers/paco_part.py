"""PACO-Part: parts of the objects of PACO, which annotates LVIS's photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as rle_tools

from fsdino.data.catalog import TRAIN_TEST, DataSet, Published, Requirement, Source
from fsdino.data.files import DataSetError, existing, first_existing
from fsdino.data.images import check_mask_size, read_image
from fsdino.data.json_lists import read_json
from fsdino.data.readers.coco import COCO_PHOTOGRAPHS, LICENCE
from fsdino.data.readers.crops import Box, CropIndex, ObjectCrop
from fsdino.data.readers.lvis import coco2017_folder, coco2017_requirement, coco2017_sources, image_name

_ROOTS = tuple(f"{top}{inner}" for top in ("PACO-Part/", "PACO/", "./") for inner in (".", "annotations", "paco"))


class PacoPartIndex(CropIndex):
    """PACO-Part from PACO-LVIS's official JSON.

    Fold f tests those of the sorted part ids of the train split at positions f + 4 v that the test split has as well.

    Args:
        root: folder with `paco_lvis_v1_{train,test}.json` (also in `annotations/` or `paco/`) and COCO 2017's
            `train2017` and `val2017` (also in `coco/`), or the one holding it as `PACO-Part/` or `PACO/`.
        split: images to use: "train" for base classes, "test" (or "val") for episodes.

    Source: Ramanathan et al., 2023; Liu et al., 2024 (folds).
    """

    def __init__(self, root: str | Path, split: Literal["train", "val", "test"] = "test", min_pixels: int = 1) -> None:
        base = first_existing(root, _ROOTS, f"paco_lvis_v1_{split}.json")
        self._images = coco2017_folder(base)
        self._path = base / f"paco_lvis_v1_{split}.json"
        raw = read_json(self._path, ("images", "annotations", "categories"))
        names = _part_categories(raw)
        crops = self._crops_of(raw, names, min_pixels)
        own = {class_id for crop in crops.values() for class_id in crop.parts}
        annotated = {s: _annotated_parts(base / f"paco_lvis_v1_{s}.json") for s in ("train", "test") if s != split}
        annotated[split] = own
        ids = sorted(annotated["train"])
        # Positions count the train split's parts, and only then those that the test split lacks are dropped: the other
        # way round every fold would be another.
        folds = [[class_id for class_id in ids[fold::4] if class_id in annotated["test"]] for fold in range(4)]
        super().__init__("paco-part", crops, names, folds)

    def _crops_of(self, raw: dict[str, Any], names: dict[int, str], min_pixels: int) -> dict[str, ObjectCrop]:
        entries = {entry["id"]: entry for entry in raw["images"]}
        boxes = {a["id"]: a for a in raw["annotations"] if a["category_id"] not in names}
        parts: dict[int, dict[int, list[Any]]] = {}
        for annotation in raw["annotations"]:
            if annotation["category_id"] in names:
                where = f"annotation {annotation['id']} in '{self._path}'"
                if annotation.get("obj_ann_id") not in boxes:
                    raise DataSetError(
                        f"{where} is a part of object {annotation.get('obj_ann_id')}, which is not in "
                        "the file: download PACO's annotations again."
                    )
                if annotation["image_id"] not in entries:
                    raise DataSetError(
                        f"{where} is of image id {annotation['image_id']}, which 'images' does not "
                        "list: download PACO's annotations again."
                    )
                rle = _as_rle(annotation["segmentation"], entries[annotation["image_id"]])
                if int(rle_tools.area(rle)) >= min_pixels:
                    of_object = parts.setdefault(annotation["obj_ann_id"], {})
                    of_object.setdefault(int(annotation["category_id"]), []).append(rle)
        crops = {}
        for object_id, found in parts.items():
            entry = entries[boxes[object_id]["image_id"]]
            box = _clipped(boxes[object_id]["bbox"], (int(entry["height"]), int(entry["width"])))
            name = image_name(entry)
            crops[f"{name}@{object_id}"] = ObjectCrop(name, box, found)
        return crops

    def _image(self, crop: ObjectCrop) -> np.ndarray:
        image = read_image(self._images / crop.image)
        check_mask_size(image, tuple(next(iter(crop.parts.values()))[0]["size"]), crop.image)
        return image

    def _mask(self, crop: ObjectCrop, class_id: int) -> np.ndarray:
        return rle_tools.decode(rle_tools.merge(crop.parts[class_id]))


def _part_categories(raw: dict[str, Any]) -> dict[int, str]:
    """Class id -> name of PACO's part categories, which are named `object:part`."""
    return {int(c["id"]): str(c["name"]) for c in raw["categories"] if ":" in str(c["name"])}


def _annotated_parts(path: Path) -> set[int]:
    raw = read_json(existing(path, "PACO's annotations, which the folds are made of"), ("annotations", "categories"))
    names = _part_categories(raw)
    return {int(a["category_id"]) for a in raw["annotations"] if a["category_id"] in names}


def _as_rle(segmentation: Any, entry: dict[str, Any]) -> Any:
    height, width = int(entry["height"]), int(entry["width"])
    if isinstance(segmentation, list):
        return rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle_tools.frPyObjects(segmentation, height, width)
    return segmentation


def _clipped(bbox: list[float], size: tuple[int, int]) -> Box:
    left, top, width, height = bbox
    bottom, right = min(size[0], int(np.ceil(top + height))), min(size[1], int(np.ceil(left + width)))
    return max(0, int(top)), max(0, int(left)), max(bottom, int(top) + 1), max(right, int(left) + 1)


_FETCH = "paco_lvis_v1.zip from github.com/facebookresearch/paco"
_ANNOTATIONS = Source(
    "https://dl.fbaipublicfiles.com/paco/annotations/paco_lvis_v1.zip",
    "paco_lvis_v1_*.json",
    megabytes=100,
    grows=10.0,
    # The digest stands in the project's own README.
    checksum="sha256:a45df077f8930ac5a5061ed4950ce6b8c41394eb519bdbfa816c0b24b964ec77",
)

DATA_SETS = (
    DataSet(
        "paco-part",
        "PACO-Part",
        PacoPartIndex,
        roles=TRAIN_TEST,
        requirements=(
            Requirement("paco_lvis_v1_train.json", "train masks", _FETCH, _ROOTS),
            Requirement("paco_lvis_v1_test.json", "test masks", _FETCH, _ROOTS),
            coco2017_requirement("train"),
            coco2017_requirement("val"),
        ),
        published=Published(tested_classes=303),
        photographs=COCO_PHOTOGRAPHS,
        sources=(*coco2017_sources(), _ANNOTATIONS),
        licence=f"PACO: its own terms (github.com/facebookresearch/paco); COCO: {LICENCE}",
    ),
)
