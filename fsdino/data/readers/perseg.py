"""PerSeg: forty personal objects, the first image of each as the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fsdino.data.catalog import DataSet, Published, needed
from fsdino.data.files import existing, files_by_stem, first_existing, with_masks
from fsdino.data.images import IMAGE_SUFFIXES, read_image
from fsdino.data.readers.folder import MASK_SUFFIXES, MaskFolderIndex

_ROOTS = ("PerSeg", "data", ".")


class PersegIndex(MaskFolderIndex):
    """PerSeg; all objects are novel in fold 0. In the masks, colour images, whatever is not black is the object.

    Args:
        root: folder with `Images/<object>/<number>.jpg` and `Annotations/<object>/<number>.png`, or one holding it as
            `PerSeg/` or `data/`.

    Source: Zhang et al., 2024 (PerSAM).
    """

    def __init__(self, root: str | Path) -> None:
        base = first_existing(root, _ROOTS, "Annotations")
        image_dir, files = existing(base / "Images", "PerSeg's images"), {}
        for folder in sorted(path for path in image_dir.iterdir() if path.is_dir()):
            images = files_by_stem(folder, IMAGE_SUFFIXES)
            masks = files_by_stem(existing(base / "Annotations" / folder.name, "the object's masks"), MASK_SUFFIXES)
            expected = base / "Annotations" / folder.name / "*.png"
            files[folder.name] = with_masks(images, masks, expected, "unpack PerSeg again")
        super().__init__("perseg", files, folds=[range(len(files))])

    def _read_mask(self, path: Path) -> np.ndarray:
        with Image.open(path) as image:
            is_grey = image.mode in ("1", "L")
        # A grey mask is read by its brightness, as everywhere; in colours the object may be dark red, so there whatever
        # is not black counts.
        return super()._read_mask(path) if is_grey else np.asarray((read_image(path) > 0).any(axis=-1), np.uint8)


_FETCH = "PerSeg.zip from the PerSAM page"

DATA_SETS = (
    DataSet(
        "perseg",
        "PerSeg",
        PersegIndex,
        requirements=needed({"Images/*": "images", "Annotations/*": "masks"}, _FETCH, _ROOTS),
        published=Published(classes=40),
        order="first",
    ),
)
