"""Land cover of DeepGlobe, as the cross-domain benchmark CD-FSS tests it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fsdino.data.catalog import DataSet, Published, needed
from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError, existing, files_by_stem, first_existing, with_masks
from fsdino.data.images import image_size, read_image, read_mask, read_reduced

CLASSES = ("agriculture", "urban", "rangeland", "forest", "water", "barren")  # folders 1 to 6
_ROOTS = ("Deepglobe", "DeepGlobe", "deepglobe", ".")
_FETCH = "the benchmark's preprocessed tiles, linked as 'Preprocessed Data' on github.com/slei109/PATNet"


class DeepGlobeIndex(ClassIndex):
    """Satellite images cut into tiles of 408 x 408 pixels; six classes, all novel in fold 0.

    A tile lies in the folder of each class that it shows, with that class's mask; the official class "unknown" has no
    folder. An image's id is the tile's name, so a tile that shows two classes is one image. The paper reports 5,666
    images without saying whether such a tile counts once. The names of the folders' classes follow from the order of
    colours in the benchmark's preprocessing.

    Args:
        root: folder with `<1 to 6>/test/origin/<tile>.jpg` and `<1 to 6>/test/groundtruth/<tile>.png`, or one holding
            it as `Deepglobe/`.

    Source: Demir et al., 2018; Lei et al., 2022 (PATNet, the benchmark: tiles and classes).
    """

    def __init__(self, root: str | Path) -> None:
        base = first_existing(root, _ROOTS, "1/test")
        self.name, self.class_names = "deepglobe", dict(enumerate(CLASSES, start=1))
        self.folds = [list(self.class_names)]
        self._images: dict[str, Path] = {}
        self._masks: dict[int, dict[str, Path]] = {}
        for class_id in self.class_names:
            folder = base / f"{class_id}/test"
            images = files_by_stem(existing(folder / "origin", "the tiles of a class"), (".jpg",))
            masks = files_by_stem(existing(folder / "groundtruth", "the masks of a class"), (".png",))
            pairs = with_masks(images, masks, folder / "groundtruth/*.png", "unpack the archive again")
            # A tile of two classes lies in both folders, with the same pixels.
            self._images |= images
            self._masks[class_id] = {tile: mask for tile, (_, mask) in pairs.items()}
        if not self._images:
            raise DataSetError(f"'{base}' has no .jpg tile in '<class>/test/origin': unpack the archive again.")

    def images(self, class_id: int) -> list[str]:
        return list(self._masks[class_id])

    def load_image(self, image_id: str) -> np.ndarray:
        return read_image(self._path(image_id))

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        return read_reduced(self._path(image_id), side)

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        mask = self._masks[class_id].get(image_id)
        return np.zeros(image_size(self._path(image_id)), np.uint8) if mask is None else read_mask(mask)

    def classes_in(self, image_id: str) -> set[int]:
        return {class_id for class_id, masks in self._masks.items() if image_id in masks}

    def _path(self, image_id: str) -> Path:
        if image_id not in self._images:
            raise DataSetError(f"data set 'deepglobe' has no image '{image_id}': check the root or the list.")
        return self._images[image_id]


DATA_SETS = (
    DataSet(
        "deepglobe",
        "DeepGlobe land cover (CD-FSS)",
        DeepGlobeIndex,
        roles={"test": None},
        requirements=needed(
            {"[1-6]/test/origin/*.jpg": "tiles", "[1-6]/test/groundtruth/*.png": "masks by class"}, _FETCH, _ROOTS
        ),
        published=Published(classes=6, images=5666),
    ),
)
