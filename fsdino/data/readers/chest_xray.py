"""Lungs in chest X-rays, as the cross-domain benchmark CD-FSS tests them."""

from __future__ import annotations

from pathlib import Path

from fsdino.data.catalog import DataSet, Published, needed
from fsdino.data.files import DataSetError, existing, files_by_stem, first_existing
from fsdino.data.readers.folder import MaskFolderIndex

_ROOTS = ("LungSegmentation", "Lung Segmentation", "data/Lung Segmentation", ".")
_FETCH = "kaggle.com/datasets/nikhilpandey360/chest-xray-masks-and-labels"


def chest_xray(root: str | Path) -> MaskFolderIndex:
    """Chest X-rays with one class, lung, novel in fold 0.

    The masks are those called `<image>_mask.png`. In the public archive these are the 566 of the Shenzhen hospital, the
    number that the benchmark reports; Montgomery's 138 masks lack the ending and do not count. The benchmark does not
    say so itself.

    Args:
        root: folder with `CXR_png/<image>.png` and `masks/<image>_mask.png`, or one holding it as `LungSegmentation/`.

    Source: Candemir et al., 2014; Jaeger et al., 2014; Lei et al., 2022 (PATNet, the benchmark).
    """
    base = first_existing(root, _ROOTS, "CXR_png")
    masks = files_by_stem(existing(base / "masks", "the masks of the X-rays"), (".png",))
    named = {stem.removesuffix("_mask"): path for stem, path in masks.items() if stem.endswith("_mask")}
    if not named:
        raise DataSetError(f"'{base / 'masks'}' has no file called '<image>_mask.png': unpack the archive again.")
    images = {stem: existing(base / f"CXR_png/{stem}.png", "the X-ray of a mask") for stem in named}
    return MaskFolderIndex("chest-xray", {"lung": {stem: (images[stem], named[stem]) for stem in named}})


DATA_SETS = (
    DataSet(
        "chest-xray",
        "Chest X-ray (CD-FSS)",
        chest_xray,
        roles={"test": None},
        requirements=needed({"CXR_png/*.png": "X-rays", "masks/*_mask.png": "masks of the lungs"}, _FETCH, _ROOTS),
        published=Published(classes=1, images=566),
    ),
)
