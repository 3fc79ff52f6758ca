"""A user's own folder of images and masks, in the three ways that people lay them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.data.catalog import DataSet
from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError, existing, files_by_stem, shown, with_masks
from fsdino.data.images import IMAGE_SUFFIXES, check_mask_size, image_size, read_image, read_mask, read_reduced
from fsdino.data.json_lists import read_json
from fsdino.data.readers.label_maps import LabelMapIndex

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
LAYOUTS = (
    "<class>/<name>.jpg with <class>/<name>.png (or <name>_mask.png)",
    "images/<class>/<name>.jpg with masks/<class>/<name>.png (the class folder may be left out)",
    "images/<name>.jpg with labels/<name>.png (class numbers) and classes.json",
)


class MaskFolderIndex(ClassIndex):
    """Images with one black and white mask each: an image shows the class of its folder and no other.

    Args:
        files: class name -> image name -> (image, mask). Image ids are `<class>/<name>`.
        class_ids: class name -> id; None counts the sorted names.
        folds: novel class ids per fold; None puts class i into fold i mod 4 (fewer folds when there are fewer classes).
        threshold: smallest mask value in [1, 255] that counts as object.
    """

    def __init__(
        self,
        name: str,
        files: dict[str, dict[str, tuple[Path, Path]]],
        class_ids: Mapping[str, int] | None = None,
        folds: Sequence[Sequence[int]] | None = None,
        threshold: int = 128,
    ) -> None:
        self.name, self._files, self._threshold = name, files, threshold
        self._class_ids = dict(class_ids or {class_name: i for i, class_name in enumerate(sorted(files))})
        self.class_names = {class_id: class_name for class_name, class_id in self._class_ids.items()}
        count = min(4, len(self.class_names))
        spread = [sorted(self.class_names)[fold::count] for fold in range(count)]
        self.folds = spread if folds is None else [list(fold) for fold in folds]

    def images(self, class_id: int) -> list[str]:
        class_name = self.class_names[class_id]
        return [f"{class_name}/{stem}" for stem in self._files[class_name]]

    def load_image(self, image_id: str) -> np.ndarray:
        return read_image(self._paths(image_id)[0])

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        return read_reduced(self._paths(image_id)[0], side)

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        image_path, mask_path = self._paths(image_id)
        if self.classes_in(image_id) != {class_id}:
            return np.zeros(image_size(image_path), np.uint8)
        mask = self._read_mask(mask_path)
        check_mask_size(mask, image_size(image_path), mask_path)
        return mask

    def classes_in(self, image_id: str) -> set[int]:
        return {self._class_ids[image_id.rpartition("/")[0]]}

    def _read_mask(self, path: Path) -> np.ndarray:
        return read_mask(path, self._threshold)

    def _paths(self, image_id: str) -> tuple[Path, Path]:
        class_name, _, stem = image_id.rpartition("/")
        if stem not in self._files.get(class_name, {}):
            raise DataSetError(f"data set '{self.name}' has no image '{image_id}': check the root or the list.")
        return self._files[class_name][stem]


def folder(
    root: str | Path,
    name: str = "folder",
    num_folds: int = 4,
    min_pixels: int = 1,
    min_cover: float = 0.0,
    min_images: int = 1,
) -> ClassIndex:
    """A folder of images and masks in one of these layouts, recognised by itself.

    - `<class>/<name>.jpg` with `<class>/<name>.png` (or `<name>_mask.png`); the folder of one class will do
    - `images/<class>/<name>.jpg` with `masks/<class>/<name>.png`; without class folders all is one class, "object"
    - `images/<name>.jpg` with `labels/<name>.png` (one class number a pixel, 0 background, 255 ignore) and
      `classes.json` (`{"1": "dog"}`, or a list with the background first); the last four arguments are for these, see
      `LabelMapIndex`, and class i is novel in fold i mod `num_folds`
    """
    base = existing(root, "the folder of images and masks")
    if (base / "labels").is_dir():
        limits = {"min_pixels": min_pixels, "min_cover": min_cover, "min_images": min_images}
        return _label_folder(base, name, num_folds, limits)
    if (base / "images").is_dir() and (base / "masks").is_dir():
        files = _twin_trees(base / "images", base / "masks")
    else:
        files = {path.name: _class_folder(path) for path in shown(base) if path.is_dir()}
        # No folder inside: all images are of one class, called as the folder.
        files = files or {base.resolve().name: _class_folder(base)}
    files = {class_name: pairs for class_name, pairs in files.items() if pairs}
    if not files:
        raise DataSetError(f"'{base}' holds no images with masks; expected one of: " + "; ".join(LAYOUTS) + ".")
    return MaskFolderIndex(name, files)


def read_classes(path: Path) -> dict[int, str]:
    """Class number -> name from `classes.json`, without background (0) and ignore (255)."""
    existing(path, 'the names of the classes, {"1": "dog", ...}')
    raw: Any = read_json(path, ())
    table = dict(enumerate(raw)) if isinstance(raw, list) else raw
    try:
        names = {int(number): str(name) for number, name in table.items()}
    except (AttributeError, ValueError) as error:
        raise DataSetError(f'\'{path}\' is no table of classes ({error}): expected {{"1": "dog", ...}}.') from error
    return {number: name for number, name in sorted(names.items()) if number not in (0, 255)}


def _label_folder(base: Path, name: str, num_folds: int, limits: dict[str, Any]) -> LabelMapIndex:
    class_names = read_classes(base / "classes.json")
    images = files_by_stem(existing(base / "images", "the folder of images"), IMAGE_SUFFIXES)
    labels = files_by_stem(base / "labels", MASK_SUFFIXES)
    class_ids = sorted(class_names)
    folds = [class_ids[fold::num_folds] for fold in range(num_folds)]
    files = with_masks(images, labels, base / "labels/*.png")
    return LabelMapIndex(name, files, class_names, folds, **limits)


def _twin_trees(images: Path, masks: Path) -> dict[str, dict[str, tuple[Path, Path]]]:
    classes = [path.name for path in shown(images) if path.is_dir()]
    found = {}
    for class_name in classes or ["object"]:
        image_dir, mask_dir = (images / class_name, masks / class_name) if classes else (images, masks)
        found_images = files_by_stem(image_dir, IMAGE_SUFFIXES)
        own = files_by_stem(existing(mask_dir, f"the masks of class '{class_name}'"), MASK_SUFFIXES)
        own = {stem.removesuffix("_mask"): path for stem, path in own.items()}
        found[class_name] = with_masks(found_images, own, mask_dir / "*.png")
    return found


def _class_folder(path: Path) -> dict[str, tuple[Path, Path]]:
    """Images of one class beside their masks: `dog.jpg` + `dog.png`, or `dog.png` + `dog_mask.png`."""
    files = [p for p in shown(path) if p.suffix.lower() in IMAGE_SUFFIXES]
    masks = {p.stem.removesuffix("_mask"): p for p in files if p.stem.endswith("_mask")}
    rest = [p for p in files if not p.stem.endswith("_mask")]
    # A .png may be either: it is the mask of a .jpg of its name, the image of a `_mask` of its name, else a mask that
    # lost its image. So what can only be an image comes first.
    photos = {p.stem: p for p in rest if p.suffix.lower() not in MASK_SUFFIXES}
    for p in rest:
        if p.suffix.lower() in MASK_SUFFIXES:
            if p.stem in photos or p.stem not in masks:
                masks.setdefault(p.stem, p)
            else:
                photos[p.stem] = p
    lonely = sorted(set(masks) - set(photos))
    if lonely and photos:
        raise DataSetError(
            f"mask '{masks[lonely[0]]}' has no image of the same name: add '{lonely[0]}.jpg' or remove the mask."
        )
    return with_masks(dict(sorted(photos.items())), masks, path / "*.png")


DATA_SETS = (DataSet("folder", "a folder of images and masks", folder),)
