"""COCO-format JSON files, and COCO-20i made of them."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as rle_tools

from fsdino.base.image import IGNORE
from fsdino.data.catalog import TRAIN_VAL, DataSet, Published, Requirement, Source
from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError, existing, first_existing
from fsdino.data.images import read_image, read_reduced
from fsdino.data.json_lists import json_at, json_lists

Overlap = Literal["union", "painted"]
COCO_PHOTOGRAPHS = "coco"  # COCO 2014, COCO 2017, LVIS and PACO share photographs and their 12-digit numbers
FETCH = "from cocodataset.org/#download"
MAX_PIXELS = 1_000_000_000  # of an image: its masks are drawn at its size
HOME = "http://images.cocodataset.org"
LICENCE = (
    "annotations CC BY 4.0; the photographs belong to Flickr users and stand under Flickr's terms of use "
    "(cocodataset.org/#termsofuse)"
)
_ROOTS = ("COCO2014", "coco2014", "coco", "COCO", ".")


class CocoIndex(ClassIndex):
    """Instances of a COCO-format JSON as one binary mask per image and class.

    A class's mask is 1 on its instances; a region marked `iscrowd` is 255 (ignore) where no instance of the class lies.
    Image ids are the JSON's file names, class ids its category ids. With `overlap="union"` each class's mask is the
    union of its instances, so masks of two classes may overlap. With `overlap="painted"` they come from one label map,
    as COCO-20i's do: crowds are painted first (as ignore), then the instances in the order of the file, later ones over
    earlier ones.

    Of an annotation no more is held than class, crowd and its place in the file, in arrays that worker processes share;
    its outline is read again from there. The file must not change meanwhile.

    Args:
        annotations: JSON with `images`, `annotations` and `categories`; polygons (several parts allowed), RLE and
            compressed RLE.
        min_cover: smallest share of the image, in [0, 1], that a class has to exceed to count for the image.
        min_pixels: smallest number of pixels that a class needs to count for the image.
        overlap: see above.
        num_folds: the class with position i among the sorted ids is novel in fold i mod `num_folds`.
        file_name: image's JSON entry -> file name, for files that do not name it in `file_name`.
    """

    def __init__(
        self,
        annotations: str | Path,
        image_dir: str | Path,
        name: str = "coco",
        min_cover: float = 0.0,
        min_pixels: int = 0,
        overlap: Overlap = "union",
        num_folds: int = 4,
        file_name: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        self.name, self.overlap = name, overlap
        self.annotations = existing(annotations, "the JSON file with the masks")
        self.image_dir = existing(image_dir, "the folder of images")
        self.class_names = {}
        try:
            self._read_instances(file_name or (lambda entry: str(entry["file_name"])))
        except DataSetError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._malformed(error) from error
        class_ids = sorted(self.class_names)
        self.folds = [class_ids[fold::num_folds] for fold in range(num_folds)]
        # The last image's map is kept, since masks of one image are asked for one after the other.
        self._painted: tuple[str, np.ndarray] | None = None
        self._images = self._count(min_cover, min_pixels)
        if not any(len(rows) for rows in self._images.values()):
            raise DataSetError(f"'{self.annotations}' has no class with an image: it holds no usable mask.")

    def images(self, class_id: int) -> list[str]:
        return [self._names[row] for row in self._images.get(class_id, ())]

    def load_image(self, image_id: str) -> np.ndarray:
        return read_image(self.image_dir / image_id)

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        return read_reduced(self.image_dir / image_id, side)

    def classes_in(self, image_id: str) -> set[int]:
        row = self._row(image_id)
        return set() if row is None else set(self._class[self._first[row] : self._first[row + 1]].tolist())

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        size = self._size(image_id)
        if self.overlap == "painted":
            labels = self.label_map(image_id)
            mask = (labels == class_id).astype(np.uint8)
            mask[labels == -1] = IGNORE
            return mask
        crowd, mask = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        for _, is_crowd, drawn in self._drawn(image_id, class_id):
            plane = crowd if is_crowd else mask
            np.maximum(plane, drawn, out=plane)
        # A crowd is outlined as a whole, so what lies in it can be neither right nor wrong; single instances in it can.
        mask[(crowd == 1) & (mask == 0)] = IGNORE
        return mask

    def label_map(self, image_id: str) -> np.ndarray:
        """(H, W) int64 in the painting order: category id, 0 where there is none (ids start at 1), -1 on crowds."""
        if self._painted is None or self._painted[0] != image_id:
            labels = np.zeros(self._size(image_id), np.int64)
            # The published label maps of COCO-20i were painted so: a crowd never hides an instance, and where two
            # instances overlap the later one of the file wins. Another order changes scores.
            for class_id, crowd, drawn in self._drawn(image_id):
                labels[drawn == 1] = -1 if crowd else class_id
            self._painted = (image_id, labels)
        return self._painted[1]

    def _size(self, image_id: str) -> tuple[int, int]:
        row = self._row(image_id)
        if row is None:
            raise DataSetError(f"image '{image_id}' is not in '{self.annotations}': check the episode list.")
        height, width = self._sizes[row].tolist()
        return height, width

    def _row(self, image_id: str) -> int | None:
        """The image's place among the sorted names."""
        row = bisect_left(self._names, image_id)
        return row if row < len(self._names) and self._names[row] == image_id else None

    def _drawn(self, image_id: str, class_id: int | None = None) -> Iterator[tuple[int, bool, np.ndarray]]:
        """Class, crowd and mask of an image's instances, crowds first, else in the order of the file."""
        size, row = self._size(image_id), self._row(image_id)
        assert row is not None  # `_size` refused otherwise
        own = np.arange(self._first[row], self._first[row + 1])
        if class_id is not None:
            own = own[self._class[own] == class_id]
        with self.annotations.open("rb") as file:
            for i in own[np.argsort(~self._crowd[own], kind="stable")]:
                try:
                    start = int(self._start[i])
                    segmentation = json_at(file, start, start + int(self._length[i]))["segmentation"]
                except (ValueError, KeyError, TypeError) as error:
                    raise self._malformed("it has changed since it was opened") from error
                yield int(self._class[i]), bool(self._crowd[i]), self._decode(image_id, size, segmentation)

    def _decode(self, image_id: str, size: tuple[int, int], segmentation: Any) -> np.ndarray:
        height, width = size
        if isinstance(segmentation, list):
            try:
                parts = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
            except (ValueError, TypeError, OverflowError) as error:
                raise self._malformed(error) from error
            # pycocotools takes a first polygon of four numbers for a box; less than three corners have no area
            polygons = [p.tolist() for p in parts if p.ndim == 1 and len(p) >= 6]
            # It fills memory with every pixel of a line, wherever that ends.
            reach = 2 * max(height, width)
            if not all(-reach <= corner <= 2 * reach for polygon in polygons for corner in polygon):
                raise self._malformed(f"a polygon of image '{image_id}' lies far outside of it")
            if not polygons:
                return np.zeros((height, width), np.uint8)
            return rle_tools.decode(rle_tools.merge(rle_tools.frPyObjects(polygons, height, width)))
        if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
            raise self._malformed(f"a mask of image '{image_id}' is neither polygons nor RLE")
        if segmentation["size"] != [height, width]:
            raise DataSetError(
                f"a mask of image '{image_id}' in '{self.annotations}' has size {segmentation['size']}, the "
                f"image is [{height}, {width}] (height, width): export the masks at the image's size."
            )
        counts = segmentation["counts"]
        try:
            if isinstance(counts, list):
                # It would write past the end of the mask.
                if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
                    raise ValueError(f"the counts do not add up to its {height * width} pixels")
                segmentation = rle_tools.frPyObjects(segmentation, height, width)
            return rle_tools.decode(segmentation)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._malformed(f"a mask of image '{image_id}' is no RLE: {error}") from error

    def _malformed(self, reason: Exception | str) -> DataSetError:
        shown = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason
        return DataSetError(f"'{self.annotations}' is not of COCO's form ({shown}): export it again.")

    def _read_instances(self, file_name: Callable[[dict[str, Any]], str]) -> None:
        images: dict[int, tuple[str, int, int]] = {}
        # Image id -> number: annotations may stand before their images, and ids may be any text.
        numbers: dict[Any, int] = {}
        image, classes, crowd = array("i"), array("i"), array("b")
        starts, lengths = array("q"), array("i")
        for key, entry, start, end in json_lists(self.annotations, ("images", "annotations", "categories")):
            if key == "categories":
                self.class_names[int(entry["id"])] = str(entry["name"])
            elif key == "images":
                name, height, width = file_name(entry), int(entry["height"]), int(entry["width"])
                if min(height, width) < 1 or height * width > MAX_PIXELS:
                    raise self._malformed(f"image '{name}' is of {width}x{height} pixels")
                images[numbers.setdefault(entry["id"], len(numbers))] = name, height, width
            else:
                if not entry.get("segmentation"):
                    where = f"annotation {entry.get('id')} in '{self.annotations}'"
                    raise DataSetError(f"{where} has no 'segmentation' (boxes only?): masks are needed.")
                image.append(numbers.setdefault(entry["image_id"], len(numbers)))
                classes.append(int(entry["category_id"]))
                crowd.append(bool(entry.get("iscrowd", 0)))
                starts.append(start)
                lengths.append(end - start)
        by_name = np.array(sorted(images, key=lambda number: images[number][0]), np.int64)
        self._names = tuple(images[number][0] for number in by_name.tolist())
        for one, other in zip(self._names, self._names[1:]):
            if one == other:
                raise DataSetError(f"'{self.annotations}' lists image '{one}' twice: remove one entry.")
        self._sizes = np.array([images[number][1:] for number in by_name.tolist()], np.int32).reshape(-1, 2)
        place = np.full(len(numbers), -1, np.int32)
        place[by_name] = np.arange(len(by_name))
        rows, found = place[np.asarray(image)], np.asarray(classes)
        self._check_named(rows >= 0, np.isin(found, list(self.class_names)), starts, lengths)
        # By image, in the order of the file within it: an image's instances are then neighbours.
        order = np.argsort(rows, kind="stable")
        self._first = np.searchsorted(rows[order], np.arange(len(by_name) + 1))
        self._class, self._crowd = found[order], np.asarray(crowd, bool)[order]
        self._start, self._length = np.asarray(starts)[order], np.asarray(lengths)[order]

    def _check_named(self, images: np.ndarray, classes: np.ndarray, starts: array[int], lengths: array[int]) -> None:
        """Refuse the first annotation whose image or class the file does not list."""
        if (images & classes).all():
            return
        bad = int(np.argmin(images & classes))
        with self.annotations.open("rb") as file:
            entry = json_at(file, starts[bad], starts[bad] + lengths[bad])
        where = f"annotation {entry.get('id')} in '{self.annotations}'"
        if not images[bad]:
            raise DataSetError(
                f"{where} is of image id {entry['image_id']}, which 'images' does not list: "
                "remove the annotation or add the image's entry."
            )
        raise DataSetError(
            f"{where} is of category {entry['category_id']}, which 'categories' does not list: add the category."
        )

    def _count(self, min_cover: float, min_pixels: int) -> dict[int, np.ndarray]:
        """Class id -> rows of images that count for it. Masks are drawn only where a smallest size is asked for."""
        rows = np.repeat(np.arange(len(self._names)), np.diff(self._first))
        count = max(1, len(self._names))
        pairs = np.unique(self._class[~self._crowd].astype(np.int64) * count + rows[~self._crowd])
        ends = {c: np.searchsorted(pairs, (c * count, (c + 1) * count)) for c in self.class_names}
        found = {class_id: (pairs[low:high] % count).astype(np.int32) for class_id, (low, high) in ends.items()}
        if min_cover > 0 or min_pixels > 0:
            keep: dict[int, list[int]] = {class_id: [] for class_id in found}
            # Image by image, since the map of one is kept.
            for row, class_id in sorted((int(row), class_id) for class_id, own in found.items() for row in own):
                pixels = self.object_pixels(self._names[row], class_id)
                if pixels >= min_pixels and pixels > min_cover * int(self._sizes[row].prod()):
                    keep[class_id].append(row)
            found = {class_id: np.array(own, np.int32) for class_id, own in keep.items()}
        return found


def coco20i(root: str | Path, split: Literal["train", "val"] = "val", overlap: Overlap = "painted") -> CocoIndex:
    """COCO-20i: 80 classes, fold f tests those at positions f, f + 4, ... f + 76.

    Args:
        root: folder with `train2014/`, `val2014/` and `annotations/instances_{train,val}2014.json`, or the one
            holding it as `COCO2014/`.
        overlap: "painted" = one label per pixel, as in the field; "union" = each class's own instances.

    Source: Nguyen and Todorovic, 2019 (folds as in the later literature).
    """
    annotations = f"annotations/instances_{split}2014.json"
    base = first_existing(root, _ROOTS, annotations)
    return CocoIndex(base / annotations, base / f"{split}2014", "coco20i", overlap=overlap)


def coco_folder(
    root: str | Path, annotations: str = "instances.json", images: str = "images", **options: Any
) -> CocoIndex:
    """Any COCO-format file with its images.

    Args:
        root: folder that holds both, or the JSON file itself (the images are looked for beside it then).
        annotations, images: the JSON file and the folder of images, relative to the root.
    """
    base = existing(root, "the folder with the COCO-format file")
    path = base if base.is_file() else base / annotations
    folder = path.parent if base.is_file() else base
    image_dir = folder / images if (folder / images).is_dir() or not base.is_file() else folder
    return CocoIndex(path, image_dir, **options)


def _requirements(split: str) -> tuple[Requirement, Requirement]:
    masks = f"annotations/instances_{split}2014.json"
    return (
        Requirement(f"{split}2014", f"{split} images", f"{split}2014.zip {FETCH}", _ROOTS),
        Requirement(masks, f"{split} masks", f"annotations_trainval2014.zip {FETCH}", _ROOTS),
    )


DATA_SETS = (
    DataSet(
        "coco20i",
        "COCO-20i (COCO 2014)",
        coco20i,
        roles=TRAIN_VAL,
        requirements=(*_requirements("train"), *_requirements("val")),
        published=Published(classes=80, fold_classes=20),
        photographs=COCO_PHOTOGRAPHS,
        sources=(
            Source(f"{HOME}/zips/train2014.zip", "train2014", 13_000),
            Source(f"{HOME}/zips/val2014.zip", "val2014", 6_200),
            Source(f"{HOME}/annotations/annotations_trainval2014.zip", "annotations/instances_*2014.json", 241, 4.0),
        ),
        licence=LICENCE,
    ),
    DataSet("coco", "a COCO-format JSON file with its images", coco_folder),
    DataSet("coco386", "386 COCO photographs", coco_folder, options={"name": "coco386", "min_cover": 0.02}),
)
