"""Data sets of crops: an image is the crop of one object, a class is one part of one kind of object."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError

Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two are outside


@dataclass(frozen=True)
class ObjectCrop:
    """One object of an image: where it is, and what the reader needs to find each of its parts."""

    image: str
    box: Box
    parts: dict[int, Any] = field(default_factory=dict)


class CropIndex(ClassIndex):
    """Data set of crops; an image id is `<image>@<object>`, `crops` is image id -> crop."""

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


def _cut(array: np.ndarray, box: Box) -> np.ndarray:
    top, left, bottom, right = box
    return np.ascontiguousarray(array[top:bottom, left:right])
