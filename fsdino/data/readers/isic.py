"""Skin lesions of ISIC 2018, as the cross-domain benchmark CD-FSS tests them."""

from __future__ import annotations

from pathlib import Path

from fsdino.data.catalog import DataSet, Published, Requirement
from fsdino.data.files import DataSetError, existing, files_by_stem, first_existing, shown
from fsdino.data.readers.folder import MaskFolderIndex

_ROOTS = ("ISIC", "isic", ".")
_IMAGES, _MASKS = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"
_FETCH = "{}.zip from challenge.isic-archive.com/data (2018, task 1)"
_SORTING = "sorted into folders 1, 2, 3 by the table class_id.csv of CD-FSS (github.com/slei109/PATNet, data/isic)"


def isic(root: str | Path) -> MaskFolderIndex:
    """Task 1 (outlines of lesions) by kind of lesion: three classes, all novel in fold 0.

    The kinds are nevus, melanoma and seborrhoeic keratosis; which folder number is which is not documented, so classes
    are called by their folder. The benchmark's paper counts 2,596 images, the official archive holds 2,594.

    Args:
        root: folder with `ISIC2018_Task1-2_Training_Input/<class>/<image>.jpg` and
            `ISIC2018_Task1_Training_GroundTruth/<image>_segmentation.png`, or one holding it as `ISIC/`. The archive
            itself has no class folders.

    Source: Codella et al., 2019; Lei et al., 2022 (PATNet, the benchmark).
    """
    base = first_existing(root, _ROOTS, _IMAGES)
    masks = existing(base / _MASKS, "the masks of ISIC 2018, task 1")
    files = {}
    for folder in (path for path in shown(base / _IMAGES) if path.is_dir()):
        images = files_by_stem(folder, (".jpg",))
        files[folder.name] = {
            stem: (path, existing(masks / f"{stem}_segmentation.png", "the mask of an image"))
            for stem, path in images.items()
        }
    if not any(files.values()):
        raise DataSetError(f"'{base / _IMAGES}' has no class folder with .jpg images: they are to be {_SORTING}.")
    return MaskFolderIndex("isic", files, folds=[range(len(files))])


DATA_SETS = (
    DataSet(
        "isic",
        "ISIC 2018, task 1 (CD-FSS)",
        isic,
        roles={"test": None},
        requirements=(
            Requirement(f"{_IMAGES}/*/*.jpg", "images by class", f"{_FETCH.format(_IMAGES)}, {_SORTING}", _ROOTS),
            Requirement(f"{_MASKS}/*_segmentation.png", "masks", _FETCH.format(_MASKS), _ROOTS),
        ),
        published=Published(classes=3, images=2594),
    ),
)
