"""FSS-1000's test classes, as the cross-domain benchmark CD-FSS tests them."""

from __future__ import annotations

from pathlib import Path

from fsdino.data.catalog import DataSet, Published
from fsdino.data.readers.folder import MaskFolderIndex
from fsdino.data.readers.fss import REQUIREMENTS, fss1000


def fss1000_cd(root: str | Path) -> MaskFolderIndex:
    """The 240 official test classes (`root` as for `fss1000`); nothing of FSS-1000 is trained on, so it has one split.

    Source: Li et al., 2020; Lei et al., 2022 (PATNet, the benchmark: each of the 2,400 images is a query once).
    """
    index = fss1000(root, "test")
    index.name = "fss1000-cd"
    return index


DATA_SETS = (
    DataSet(
        "fss1000-cd",
        "FSS-1000, test classes (CD-FSS)",
        fss1000_cd,
        roles={"test": None},
        requirements=REQUIREMENTS,
        published=Published(classes=240, images=2400, fold_pairs={"": (2400,)}),
        order="each",
    ),
)
