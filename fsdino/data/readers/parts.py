"""PASCAL-Part and PACO-Part: a class is one part of one kind of object, an image is the crop of one object."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as rle_tools

from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError, existing, first_existing, read_names
from fsdino.data.images import check_mask_size, read_image
from fsdino.data.readers.coco import read_json
from fsdino.data.readers.lvis import coco2017_folder, image_name
from fsdino.data.readers.part_names import PART_FOLDS, merged_part
from fsdino.data.readers.voc import read_mat

PUBLISHED_PARTS = {"pascal-part": 56, "paco-part": 303}
PASCAL_ROOTS = ("VOCdevkit/VOC2010", "VOC2010", "Pascal-Part/VOCdevkit/VOC2010", ".")
PACO_ROOTS = tuple(f"{top}{inner}" for top in ("PACO-Part/", "PACO/", "./") for inner in (".", "annotations", "paco"))
Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two are outside


@dataclass(frozen=True)
class ObjectCrop:
    """One object of an image: where it is, and what the reader needs to find each of its parts."""

    image: str
    box: Box
    parts: dict[int, Any] = field(default_factory=dict)


class CropIndex(ClassIndex):
    """Data set of crops; an image id is `<image>@<object>`.

    Args:
        name: name of the data set.
        crops: image id -> crop.
        class_names: class id -> name.
        folds: novel class ids per fold.

    Raises:
        DataSetError: there is no crop.
    """

    def __init__(
        self, name: str, crops: dict[str, ObjectCrop], class_names: dict[int, str], folds: list[list[int]]
    ) -> None:
        if not crops:
            raise DataSetError(f"data set '{name}' has no object with a part: check --root and the split.")
        self.name, self.class_names, self.folds, self._crops = name, class_names, folds, crops
        self._of_class: dict[int, list[str]] = {class_id: [] for class_id in class_names}
        for image_id in sorted(crops):
            for class_id in crops[image_id].parts:
                self._of_class[class_id].append(image_id)

    def images(self, class_id: int) -> list[str]:
        return list(self._of_class.get(class_id, []))

    def load_image(self, image_id: str) -> np.ndarray:
        crop = self._crop(image_id)
        return _cut(self._image(crop), crop.box)

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        crop = self._crop(image_id)
        if class_id not in crop.parts:
            top, left, bottom, right = crop.box
            return np.zeros((bottom - top, right - left), np.uint8)
        return _cut(self._mask(crop, class_id), crop.box)

    def classes_in(self, image_id: str) -> set[int]:
        return set(self._crop(image_id).parts)

    def _crop(self, image_id: str) -> ObjectCrop:
        if image_id not in self._crops:
            raise DataSetError(f"data set '{self.name}' has no crop '{image_id}': check the root or the list.")
        return self._crops[image_id]

    @abstractmethod
    def _image(self, crop: ObjectCrop) -> np.ndarray:
        """The whole image, (H, W, 3) uint8."""

    @abstractmethod
    def _mask(self, crop: ObjectCrop, class_id: int) -> np.ndarray:
        """The part in the whole image, (H, W) uint8 {0, 1}."""


class PascalPartIndex(CropIndex):
    """PASCAL-Part from its official MATLAB files.

    Left and right, front and back, and numbered parts are merged (`merged_part`); classes are named such as
    `dog:ear`. Folds: animals, indoor, person, vehicles. The benchmark's 56 parts are a selection that no official file
    holds: lists in `splits/pascal-part/fold<f>.txt` (a name a line) are read first, otherwise all parts are tested.

    Args:
        root: folder with `Annotations_Part/*.mat` and VOC 2010's `JPEGImages` and `ImageSets` (also in
            `VOCdevkit/VOC2010`).
        split: "train" or "val" of VOC 2010's main list.
        min_pixels: smallest part in pixels.

    Raises:
        DataSetError: a file or folder is missing or damaged.
        ImportError: scipy is missing.

    Source: Chen et al., 2014; Liu et al., 2024 (folds).
    """

    def __init__(self, root: str | Path, split: Literal["train", "val"] = "val", min_pixels: int = 1) -> None:
        base = first_existing(root, PASCAL_ROOTS, "JPEGImages")
        places = [p / "Annotations_Part" for p in (Path(root), base, base.parent, base.parent.parent)]
        found = [place for place in places if place.is_dir()] or [existing(places[0], "PASCAL-Part's trainval.tar.gz")]
        self._annotations, self._images = found[0], base / "JPEGImages"
        self._recent: tuple[str, list[Any]] | None = None  # crops of one image are asked for together
        class_ids = {name: i for i, name in enumerate(sorted(n for names in PART_FOLDS.values() for n in names))}
        crops: dict[str, ObjectCrop] = {}
        for image in read_names(base / f"ImageSets/Main/{split}.txt"):
            if (self._annotations / f"{image}.mat").is_file():
                crops |= self._read(image, class_ids, min_pixels)
        names = {class_id: name for name, class_id in class_ids.items()}
        super().__init__("pascal-part", crops, names, _pascal_folds(Path(root), class_ids))

    def _read(self, image: str, class_ids: dict[str, int], min_pixels: int) -> dict[str, ObjectCrop]:
        crops = {}
        for number, thing in enumerate(self._objects(image)):
            parts: dict[int, list[int]] = {}
            for i, part in enumerate(np.atleast_1d(thing["parts"])):
                class_id = class_ids.get(f"{thing['class']}:{merged_part(str(part['part_name']))}")
                if class_id is not None and int(np.asarray(part["mask"]).sum()) >= min_pixels:
                    parts.setdefault(class_id, []).append(i)
            if parts:
                crops[f"{image}@{number}"] = ObjectCrop(image, _box(np.asarray(thing["mask"])), {
                    class_id: (number, members) for class_id, members in parts.items()
                })
        return crops

    def _objects(self, image: str) -> list[Any]:
        """The objects of an image, each with class, mask and parts."""
        if self._recent is None or self._recent[0] != image:
            path = self._annotations / f"{image}.mat"
            content = read_mat(path, simplify_cells=True)
            try:
                things = content["anno"]["objects"]
            except (KeyError, TypeError) as error:
                raise DataSetError(f"'{path}' has no anno.objects: it is no file of PASCAL-Part.") from error
            self._recent = (image, list(np.atleast_1d(things)))
        return self._recent[1]

    def _image(self, crop: ObjectCrop) -> np.ndarray:
        return read_image(self._images / f"{crop.image}.jpg")

    def _mask(self, crop: ObjectCrop, class_id: int) -> np.ndarray:
        number, members = crop.parts[class_id]
        parts = np.atleast_1d(self._objects(crop.image)[number]["parts"])
        mask = np.zeros_like(np.asarray(parts[members[0]]["mask"]), dtype=np.uint8)
        for i in members:
            mask |= (np.asarray(parts[i]["mask"]) != 0).astype(np.uint8)
        return mask


class PacoPartIndex(CropIndex):
    """PACO-Part from PACO-LVIS's official JSON.

    Fold f tests those of the sorted part ids of the train split at positions f + 4 v that the test split has as well.

    Args:
        root: folder with `paco_lvis_v1_{train,test}.json` (also in `annotations/` or `paco/`) and COCO 2017's
            `train2017` and `val2017` (also in `coco/`), or the one holding it as `PACO-Part/` or `PACO/`.
        split: images to use: "train" for base classes, "test" (or "val") for episodes.
        min_pixels: smallest part in pixels.

    Raises:
        DataSetError: a file or folder is missing or damaged.

    Source: Ramanathan et al., 2023; Liu et al., 2024 (folds).
    """

    def __init__(
        self, root: str | Path, split: Literal["train", "val", "test"] = "test", min_pixels: int = 1
    ) -> None:
        base = first_existing(root, PACO_ROOTS, f"paco_lvis_v1_{split}.json")
        self._images = coco2017_folder(base)
        self._path = base / f"paco_lvis_v1_{split}.json"
        raw = read_json(self._path, ("images", "annotations", "categories"))
        names = part_categories(raw)
        crops = self._crops_of(raw, names, min_pixels)
        own = {class_id for crop in crops.values() for class_id in crop.parts}
        annotated = {s: _annotated_parts(base / f"paco_lvis_v1_{s}.json") for s in ("train", "test") if s != split}
        annotated[split] = own
        ids = sorted(annotated["train"])
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
                    raise DataSetError(f"{where} is a part of object {annotation.get('obj_ann_id')}, which is not in "
                                       "the file: download PACO's annotations again.")
                if annotation["image_id"] not in entries:
                    raise DataSetError(f"{where} is of image id {annotation['image_id']}, which 'images' does not "
                                       "list: download PACO's annotations again.")
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


def _pascal_folds(root: Path, class_ids: dict[str, int]) -> list[list[int]]:
    """Classes per fold: the user's `splits/pascal-part/fold<f>.txt` (`dog:ear` a line) where they are, else all."""
    lists = [root / f"splits/pascal-part/fold{fold}.txt" for fold in range(4)]
    folds = [read_names(path) for path in lists] if lists[0].is_file() else list(PART_FOLDS.values())
    unknown = [name for fold in folds for name in fold if name not in class_ids]
    if unknown:
        raise DataSetError(f"'{lists[0].parent}' names part '{unknown[0]}', which is none; names are such as "
                           "'dog:ear': correct the list or remove the folder.")
    return [sorted(class_ids[name] for name in fold) for fold in folds]


def part_categories(raw: dict[str, Any]) -> dict[int, str]:
    """Class id -> name of PACO's part categories, which are named `object:part`."""
    return {int(c["id"]): str(c["name"]) for c in raw["categories"] if ":" in str(c["name"])}


def _annotated_parts(path: Path) -> set[int]:
    raw = read_json(existing(path, "PACO's annotations, which the folds are made of"), ("annotations", "categories"))
    names = part_categories(raw)
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


def _box(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, mask.shape[0], mask.shape[1]
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _cut(array: np.ndarray, box: Box) -> np.ndarray:
    top, left, bottom, right = box
    return np.ascontiguousarray(array[top:bottom, left:right])
