"""Data sets, each reduced to a `ClassIndex`, and episodes drawn from them.

`DATA_SETS` is the one table of names; a reader is imported when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from fsdino.data.class_index import ClassIndex

Role = Literal["train", "test"]


@dataclass(frozen=True)
class DataSetEntry:
    """How a data set is opened.

    Attributes:
        target: `module:callable`, called as `callable(root, split=..., **options)`.
        title: its full name.
        roles: role -> the data set's own split name; empty where it has no splits.
        options: arguments that go with the name.
        needs_root: False for what the package brings along.
    """

    target: str
    title: str
    roles: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    needs_root: bool = True


_TRAIN_VAL = {"train": "train", "test": "val"}
DATA_SETS: dict[str, DataSetEntry] = {
    "pascal5i": DataSetEntry("fsdino.data.readers.voc:VocIndex", "PASCAL-5i (VOC 2012 + SBD)", _TRAIN_VAL),
    "coco20i": DataSetEntry("fsdino.data.readers.coco:coco20i", "COCO-20i (COCO 2014)", _TRAIN_VAL),
    "fss1000": DataSetEntry("fsdino.data.readers.fss:fss1000", "FSS-1000", {"train": "train", "test": "test"}),
    "lvis92i": DataSetEntry("fsdino.data.readers.lvis:LvisIndex", "LVIS-92i (LVIS v1)", _TRAIN_VAL),
    "pascal-part": DataSetEntry("fsdino.data.readers.parts:PascalPartIndex", "PASCAL-Part (VOC 2010)", _TRAIN_VAL),
    "paco-part": DataSetEntry(
        "fsdino.data.readers.parts:PacoPartIndex", "PACO-Part", {"train": "train", "test": "test"}
    ),
    "davis2016": DataSetEntry("fsdino.data.readers.davis:DavisIndex", "DAVIS 2016", _TRAIN_VAL, {"year": 2016}),
    "davis2017": DataSetEntry("fsdino.data.readers.davis:DavisIndex", "DAVIS 2017", _TRAIN_VAL, {"year": 2017}),
    "perseg": DataSetEntry("fsdino.data.readers.perseg:PersegIndex", "PerSeg"),
    "folder": DataSetEntry("fsdino.data.readers.folder:folder", "a folder of images and masks"),
    "own": DataSetEntry(
        "fsdino.data.readers.own:own_folder", "one's own folder, all classes learnt", {"train": "train", "test": "test"}
    ),
    "coco": DataSetEntry("fsdino.data.readers.coco:coco_folder", "a COCO-format JSON file with its images"),
    "coco386": DataSetEntry(
        "fsdino.data.readers.coco:coco_folder", "386 COCO photographs", options={"name": "coco386", "min_cover": 0.02}
    ),
    "synthetic": DataSetEntry(
        "fsdino.data.world.index:SyntheticWorld", "the embedded world", {"train": "base", "test": "novel"},
        needs_root=False,
    ),
}  # fmt: skip


def open_data_set(
    name: str, root: str | Path | None = None, role: Role = "test", split: str | None = None, **options: Any
) -> ClassIndex:
    """Open a data set by name.

    Args:
        name: one of `DATA_SETS`.
        root: its folder on disk; not used by the embedded world.
        role: "train" for images of base classes, "test" for episodes.
        split: the data set's own split name, in place of a role.
        options: further arguments of its reader.

    Returns:
        The data set.

    Raises:
        ValueError: there is no such data set, no root was given, or its files are missing or damaged.
    """
    entry = data_set_entry(name)
    if entry.needs_root and root is None:
        raise ValueError(f"data set '{name}' ({entry.title}) needs the folder it lies in: give --root DIR.")
    module, _, attribute = entry.target.partition(":")
    reader = getattr(import_module(module), attribute)
    arguments = entry.options | options
    if entry.roles:
        arguments["split"] = split or entry.roles[role]
    index: ClassIndex = reader(root, **arguments) if entry.needs_root else reader(**arguments)
    return index


def data_set_entry(name: str) -> DataSetEntry:
    """The table's entry of a data set.

    Raises:
        ValueError: there is no such data set.
    """
    if name not in DATA_SETS:
        raise ValueError(f"there is no data set '{name}'; known: {', '.join(DATA_SETS)}.")
    return DATA_SETS[name]
