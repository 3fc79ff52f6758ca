"""Folders of YOLO's segmentation format: images, a text file of polygons for each, and `data.yaml` with the classes.

The format is described in the documentation of Ultralytics (Instance Segmentation Datasets): a line a polygon, of the
class's number and x, y, x, y, ... as shares of width and height. What `fsdino predict` writes in this format is read
back to the same masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np

from fsdino.base.texts import plain_yaml
from fsdino.data.catalog import TRAIN_VAL, DataSet
from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError, existing, read_names
from fsdino.data.images import IMAGE_SUFFIXES, image_size, read_image, read_reduced

DATA_FILE, CLASSES_FILE = "data.yaml", "classes.txt"
SPLITS = ("train", "val", "test")
SLACK = 1e-3  # how far outside of [0, 1] a share may be: writers round
Polygon = tuple[int, np.ndarray]  # class id and corners (N, 2) as shares


class YoloIndex(ClassIndex):
    """Polygons of a class in an image as one mask, their union; an image without a text file shows nothing.

    Args:
        files: image id -> image and text file, which need not exist.
        class_names: class id, from 0, -> name.
        num_folds: class i is novel in fold i mod `num_folds`.
    """

    def __init__(
        self, name: str, files: Mapping[str, tuple[Path, Path]], class_names: Mapping[int, str], num_folds: int = 4
    ) -> None:
        self.name, self.class_names = name, dict(sorted(class_names.items()))
        self._files = dict(sorted(files.items()))
        self._polygons = {image: self._read(labels) for image, (_, labels) in self._files.items()}
        class_ids = list(self.class_names)
        self.folds = [class_ids[fold::num_folds] for fold in range(num_folds)]
        if not any(self._polygons.values()):
            text = "has no polygon in any text file of its labels; expected <class> x y x y x y ..."
            raise DataSetError(f"'{name}' {text}")

    def images(self, class_id: int) -> list[str]:
        return [image for image in self._files if class_id in self.classes_in(image)]

    def candidates(self, class_id: int) -> list[str]:
        return list(self._files)

    def load_image(self, image_id: str) -> np.ndarray:
        return read_image(self._paths(image_id)[0])

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        return read_reduced(self._paths(image_id)[0], side)

    def classes_in(self, image_id: str) -> set[int]:
        return {class_id for class_id, _ in self._polygons[image_id]}

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        size = image_size(self._paths(image_id)[0])
        mask = np.zeros(size, np.uint8)
        for own_class, corners in self._polygons[image_id]:
            if own_class == class_id:
                # The pixel that a corner lies in, and the border filled as well: as those who train on the format do.
                pixels = np.floor(corners * (size[1], size[0])).astype(np.int32).clip(0, (size[1] - 1, size[0] - 1))
                # One by one, since where two polygons of a single call overlap there would be a hole.
                cv2.fillPoly(mask, [pixels], 1)
        return mask

    def _paths(self, image_id: str) -> tuple[Path, Path]:
        if image_id not in self._files:
            raise DataSetError(f"data set '{self.name}' has no image '{image_id}': check the root or the list.")
        return self._files[image_id]

    def _read(self, path: Path) -> list[Polygon]:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        return [self._line(line.split(), f"line {k} of '{path}'") for k, line in enumerate(lines, 1) if line.strip()]

    def _line(self, parts: list[str], where: str) -> Polygon:
        try:
            class_id, numbers = int(parts[0]), np.array(parts[1:], np.float64)
        except ValueError as error:
            raise DataSetError(f"{where} is not numbers ({error}): expected <class> x y x y x y ...") from error
        if class_id not in self.class_names:
            raise DataSetError(f"{where} is of class {class_id}, which the names do not list: add its name.")
        if len(numbers) == 4:
            raise DataSetError(f"{where} is a box and not a polygon: masks are needed; export for segmentation.")
        if len(numbers) < 6 or len(numbers) % 2:
            raise DataSetError(f"{where} has {len(numbers)} numbers after its class: expected x y of three corners.")
        # "not all inside" rather than "any outside" refuses NaN as well.
        if not ((numbers >= -SLACK) & (numbers <= 1 + SLACK)).all():
            raise DataSetError(f"{where} has positions outside of [0, 1]: they are shares of the width and the height.")
        return class_id, numbers.reshape(-1, 2)


def is_yolo(path: Path) -> bool:
    """Whether a path looks like a data set of this format: its folder or its `data.yaml`."""
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml")
    return (path / DATA_FILE).is_file() or ((path / "labels").is_dir() and (path / CLASSES_FILE).is_file())


def yolo_folder(
    root: str | Path, split: Literal["train", "val", "test"] | None = None, name: str = "yolo", num_folds: int = 4
) -> YoloIndex:
    """A folder of YOLO's segmentation format.

    Args:
        root: folder with `data.yaml`, or that file; without one `images/`, `labels/` and `classes.txt` (a name a line).
        split: whose images are read; None: of all splits.
    """
    base = existing(root, "the folder with data.yaml")
    file = base if base.is_file() else base / DATA_FILE
    if not file.is_file():
        class_names = dict(enumerate(read_names(base / CLASSES_FILE)))
        images = existing(base / "images", "the folder of images")
        return YoloIndex(name, _files(base, [images]), class_names, num_folds)
    said = _read_yaml(file)
    # `path` is where the data set lay when it was written; where it has moved since, the file's own folder is meant.
    home = file.parent / str(said.get("path") or ".")
    home = home if home.is_dir() else file.parent
    splits = [one for one in (SPLITS if split is None else (split,)) if said.get(one)]
    places = [_place(home, str(entry), file) for one in splits for entry in _listed(said[one])]
    if not places:
        raise DataSetError(f"'{file}' names no images for {split or ', '.join(SPLITS)}: add train: images/train.")
    return YoloIndex(name, _files(home, places), _names(said.get("names"), file), num_folds)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        said = plain_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataSetError(f"'{file}' is not YAML ({error}): repair it or export again.") from error
    if not isinstance(said, dict):
        raise DataSetError(f"'{file}' describes no data set: expected train, val and names.")
    return said


def _names(given: Any, file: Path) -> dict[int, str]:
    table = dict(enumerate(given)) if isinstance(given, list) else given
    try:
        return {int(number): str(name) for number, name in table.items()}
    except (AttributeError, ValueError, TypeError) as error:
        raise DataSetError(f"'{file}' has no names of classes: expected names: {{0: cat, 1: dog}}.") from error


def _listed(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else [entry]


def _place(home: Path, entry: str, file: Path) -> Path:
    """A folder of images, or a text file that lists them."""
    # Exports for other folders say "../train/images" of what lies beside the file.
    for place in (home / entry, home / entry.replace("../", ""), file.parent / entry):
        if place.exists():
            return place
    raise DataSetError(f"'{file}' names '{entry}', which does not exist in '{home}': check `path`, or fetch it.")


def _files(home: Path, places: list[Path]) -> dict[str, tuple[Path, Path]]:
    found: dict[str, tuple[Path, Path]] = {}
    for place in places:
        inside = sorted(place.rglob("*")) if place.is_dir() else [place.parent / name for name in read_names(place)]
        for image in inside:
            if image.suffix.lower() in IMAGE_SUFFIXES and not image.name.startswith("."):
                shown = image.relative_to(home) if image.is_relative_to(home) else image
                found[shown.as_posix()] = image, _labels(image)
    return found


def _labels(image: Path) -> Path:
    """The text file of an image: where the last folder called images is called labels, or beside it."""
    parts = list(PurePosixPath(image.as_posix()).parts)
    at = max((k for k, part in enumerate(parts[:-1]) if part == "images"), default=None)
    if at is not None:
        parts[at] = "labels"
    return Path(*parts).with_suffix(".txt")


DATA_SETS = (DataSet("yolo", "a folder of YOLO's segmentation format", yolo_folder, roles=TRAIN_VAL),)
