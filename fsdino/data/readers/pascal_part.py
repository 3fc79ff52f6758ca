"""PASCAL-Part: parts of the objects of VOC 2010."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from fsdino.data.catalog import TRAIN_VAL, DataSet, Published, Requirement, Source
from fsdino.data.files import DataSetError, existing, first_existing, read_names
from fsdino.data.images import read_image
from fsdino.data.readers.crops import Box, CropIndex, ObjectCrop
from fsdino.data.readers.part_names import PART_FOLDS, merged_part
from fsdino.data.readers.voc import VOC_HOME, VOC_LICENCE, read_mat

_ROOTS = ("VOCdevkit/VOC2010", "VOC2010", "Pascal-Part/VOCdevkit/VOC2010", ".")


class PascalPartIndex(CropIndex):
    """PASCAL-Part from its official MATLAB files.

    Left and right, front and back, and numbered parts are merged (`merged_part`); classes are named such as
    `dog:ear`. Folds: animals, indoor, person, vehicles. The benchmark's 56 parts are a selection that no official file
    holds: lists in `splits/pascal-part/fold<f>.txt` (a name a line) are read first, otherwise all parts are tested.

    Args:
        root: folder with `Annotations_Part/*.mat` and VOC 2010's `JPEGImages` and `ImageSets` (also in
            `VOCdevkit/VOC2010`).

    Source: Chen et al., 2014; Liu et al., 2024 (folds).
    """

    def __init__(self, root: str | Path, split: Literal["train", "val"] = "val", min_pixels: int = 1) -> None:
        base = first_existing(root, _ROOTS, "JPEGImages")
        places = [p / "Annotations_Part" for p in (Path(root), base, base.parent, base.parent.parent)]
        found = [place for place in places if place.is_dir()] or [existing(places[0], "PASCAL-Part's trainval.tar.gz")]
        self._annotations, self._images = found[0], base / "JPEGImages"
        # The last image's objects are kept, since its crops are asked for together.
        self._recent: tuple[str, list[Any]] | None = None
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
                members = {class_id: (number, found) for class_id, found in parts.items()}
                crops[f"{image}@{number}"] = ObjectCrop(image, _box(np.asarray(thing["mask"])), members)
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
            # scipy gives a single object as a struct, several as an array of them; parts below likewise.
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


def _pascal_folds(root: Path, class_ids: dict[str, int]) -> list[list[int]]:
    """Classes per fold: the user's `splits/pascal-part/fold<f>.txt` (`dog:ear` a line) where they are, else all."""
    lists = [root / f"splits/pascal-part/fold{fold}.txt" for fold in range(4)]
    folds = [read_names(path) for path in lists] if lists[0].is_file() else list(PART_FOLDS.values())
    unknown = [name for fold in folds for name in fold if name not in class_ids]
    if unknown:
        raise DataSetError(
            f"'{lists[0].parent}' names part '{unknown[0]}', which is none; names are such as "
            "'dog:ear': correct the list or remove the folder."
        )
    return [sorted(class_ids[name] for name in fold) for fold in folds]


def _box(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, mask.shape[0], mask.shape[1]
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


_VOC2010 = "VOCtrainval_03-May-2010.tar from host.robots.ox.ac.uk/pascal/VOC/voc2010"
_MD5 = "md5:da459979d0c395079b5c75ee67908abb"  # as torchvision checks it
_PARTS = "trainval.tar.gz from the PASCAL-Part page (roozbehm.info/pascal-parts)"
_PART_ROOTS = ("Pascal-Part", "VOCdevkit", *_ROOTS)

DATA_SETS = (
    DataSet(
        "pascal-part",
        "PASCAL-Part (VOC 2010)",
        PascalPartIndex,
        roles=TRAIN_VAL,
        requirements=(
            Requirement("JPEGImages", "images of VOC 2010", _VOC2010, _ROOTS),
            Requirement("ImageSets/Main/val.txt", "list of val images", _VOC2010, _ROOTS),
            Requirement("Annotations_Part", "part masks (.mat)", _PARTS, _PART_ROOTS),
        ),
        published=Published(tested_classes=56),
        sources=(
            Source(f"{VOC_HOME}/voc2010/{_VOC2010.split()[0]}", "VOCdevkit/VOC2010/JPEGImages", 1_300, checksum=_MD5),
            Source("http://roozbehm.info/pascal-parts/trainval.tar.gz", "Annotations_Part", 78, 10.0),
        ),
        licence=f"parts: none stated (roozbehm.info/pascal-parts); VOC: {VOC_LICENCE}",
    ),
)
