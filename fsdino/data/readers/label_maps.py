"""Data sets whose masks are label maps: one PNG an image, one class number a pixel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fsdino.base.image import IGNORE
from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError
from fsdino.data.images import read_image, read_labels, read_reduced


class LabelMapIndex(ClassIndex):
    """Images with label maps.

    Args:
        files: image id -> (image, label map). In the map 0 is background, 255 is ignored, every other number is a
            class id.
        min_pixels: smallest number of pixels that a class needs to count for an image.
        min_cover: smallest share of the image, in [0, 1], that a class has to exceed to count.
        min_images: classes with fewer images count for none.
        pairs: class id -> image ids, from a published list; then the maps are not read and no smallest size applies.
    """

    def __init__(
        self,
        name: str,
        files: Mapping[str, tuple[Path, Path]],
        class_names: Mapping[int, str],
        folds: Sequence[Sequence[int]],
        min_pixels: int = 1,
        min_cover: float = 0.0,
        min_images: int = 1,
        pairs: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        self.name, self.class_names, self.folds = name, dict(class_names), [list(fold) for fold in folds]
        self._files = dict(files)
        # The last map is kept, since masks of one image are asked for one after the other.
        self._labels: tuple[str, np.ndarray] | None = None
        self._areas: dict[str, dict[int, int]] = {}
        # Which images count for a class depends on its pixels, so without a published list every map is read once. The
        # areas are kept: episodes and training filters ask for them again and again.
        if pairs is None:
            self._areas = self._read_areas()
            pairs = self._count(min_pixels, min_cover)
        kept = {c: sorted(p) if len(p) >= min_images else [] for c, p in pairs.items()}
        self._images: dict[int, list[str]] = {class_id: kept.get(class_id, []) for class_id in self.class_names}
        if not any(self._images.values()):
            example = next(iter(self._files.values()))[1] if self._files else "(no map)"
            raise DataSetError(
                f"data set '{name}' has no class with enough images; the label maps such as '{example}' hold too few "
                "object pixels, or 0 and 255 alone: 255 means ignore, so write class numbers, or use masks/ for black "
                "and white masks."
            )

    def images(self, class_id: int) -> list[str]:
        return list(self._images.get(class_id, []))

    def load_image(self, image_id: str) -> np.ndarray:
        return read_image(self._paths(image_id)[0])

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        return read_reduced(self._paths(image_id)[0], side)

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        labels = self._label_map(image_id)
        return np.where(labels == IGNORE, IGNORE, labels == class_id).astype(np.uint8)

    def classes_in(self, image_id: str) -> set[int]:
        return {class_id for class_id in self._areas_of(image_id) if class_id > 0}

    def object_pixels(self, image_id: str, class_id: int) -> int:
        return self._areas_of(image_id).get(class_id, 0)

    def _areas_of(self, image_id: str) -> dict[int, int]:
        if image_id not in self._areas:
            self._areas[image_id] = self._check(image_id, self._label_map(image_id))
        return self._areas[image_id]

    def _read_map(self, path: Path) -> np.ndarray:
        return read_labels(path)

    def _label_map(self, image_id: str) -> np.ndarray:
        if self._labels is None or self._labels[0] != image_id:
            self._labels = (image_id, self._read_map(self._paths(image_id)[1]))
        return self._labels[1]

    def _paths(self, image_id: str) -> tuple[Path, Path]:
        if image_id not in self._files:
            raise DataSetError(f"data set '{self.name}' has no image '{image_id}': check the root or the list.")
        return self._files[image_id]

    def _check(self, image_id: str, labels: np.ndarray) -> dict[int, int]:
        """Pixels per class, -1 for the whole map."""
        numbers, counts = np.unique(labels, return_counts=True)
        areas = {int(n): int(c) for n, c in zip(numbers, counts) if n not in (0, IGNORE)}
        unknown = [number for number in areas if number not in self.class_names]
        if unknown:
            raise DataSetError(
                f"label map '{self._paths(image_id)[1]}' holds {unknown[0]}, which is no class (known: "
                f"{min(self.class_names)} to {max(self.class_names)}, 0 = background, 255 = ignore): add the class or "
                "repair the map."
            )
        return areas | {-1: labels.size}

    def _read_areas(self) -> dict[str, dict[int, int]]:
        def one(image_id: str) -> dict[int, int]:
            return self._check(image_id, self._read_map(self._files[image_id][1]))

        # Threads, not processes: decoding PNGs releases the interpreter's lock.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return dict(zip(self._files, pool.map(one, self._files)))

    def _count(self, min_pixels: int, min_cover: float) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {class_id: [] for class_id in self.class_names}
        for image_id, areas in self._areas.items():
            for class_id, pixels in areas.items():
                if class_id > 0 and pixels >= min_pixels and pixels > min_cover * areas[-1]:
                    found[class_id].append(image_id)
        return found
