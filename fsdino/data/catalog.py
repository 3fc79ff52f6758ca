"""Data sets by name. Each is described in the file of its reader, in `DATA_SETS`, and found there; no table names them.

Nothing here imports torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from fsdino.data import readers
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import Order

Role = Literal["train", "test"]
TRAIN_VAL: Mapping[Role, str] = {"train": "train", "test": "val"}
TRAIN_TEST: Mapping[Role, str] = {"train": "train", "test": "test"}
_EMBEDDED_WORLD = "fsdino.data.world.index"  # the one reader that is a package of its own


@dataclass(frozen=True)
class Requirement:
    """A file or folder of a data set.

    Attributes:
        path: relative path, may hold `*`.
        folders: places under the root to look in.
    """

    path: str
    what: str
    fetch: str
    folders: Sequence[str] = (".",)
    optional: bool = False


def needed(files: Mapping[str, str], fetch: str, folders: Sequence[str]) -> tuple[Requirement, ...]:
    """Requirements (path -> what it is) that are all fetched in one way and looked for in the same places."""
    return tuple(Requirement(path, what, fetch, folders) for path, what in files.items())


@dataclass(frozen=True)
class Source:
    """An archive at a data set's official home that can be fetched without a login.

    Attributes:
        gives: what is there once it is unpacked below the root, may hold `*`.
        megabytes: size of the archive as its page says, roughly.
        grows: unpacked bytes for a byte of it, roughly; photographs hardly shrink in an archive, JSON does.
        checksum: "sha256:..." or "md5:..." where somebody answers for one; without it the first download's is kept.
    """

    url: str
    gives: str
    megabytes: int
    grows: float = 1.1
    checksum: str = ""


@dataclass(frozen=True)
class Published:
    """Published numbers of a data set; `fsdino data` sets what it finds beside them.

    Where splits differ, a number is a table from split name to number; a data set without splits has the split "".

    Attributes:
        classes: classes of a split.
        images: images of a split.
        fold_classes: classes that each fold tests.
        tested_classes: classes that all folds together test.
        fold_pairs: split -> (image, class) pairs of each fold's classes.
    """

    classes: int | Mapping[str, int] | None = None
    images: int | Mapping[str, int] | None = None
    fold_classes: int | None = None
    tested_classes: int | None = None
    fold_pairs: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """All that is known of a data set beside its files.

    Attributes:
        reader: opens it; called as `reader(root, split=..., **options)`, without what it does not have.
        roles: role that it can play -> its own split name, None where it has no splits.
        options: arguments that go with the name.
        needs_root: False for what the package brings along.
        order: how a list of episodes takes its queries, see `EpisodeList.draw`.
        photographs: whose photographs it annotates, where other data sets annotate the same: one that is tested must
            not be trained on under another name.
        sources: what `fsdino data NAME --download` fetches; empty where a login or a browser is needed.
        licence: what has to be accepted before that.
    """

    name: str
    title: str
    reader: Callable[..., ClassIndex]
    roles: Mapping[Role, str | None] = field(default_factory=lambda: {"train": None, "test": None})
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_root: bool = True
    requirements: Sequence[Requirement] = ()
    published: Published = field(default_factory=Published)
    order: Order = "random"
    photographs: str = ""
    sources: Sequence[Source] = ()
    licence: str = ""

    def insist_on_root(self, root: str | Path | None) -> None:
        """Refuse to go on without a folder where one is needed."""
        if self.needs_root and root is None:
            raise ValueError(f"data set '{self.name}' ({self.title}) needs the folder it lies in: give --root DIR.")


@cache
def data_sets() -> dict[str, DataSet]:
    """Every data set by name, sorted."""
    # All files of the room are imported to open one data set (about 0.2 s): a table of names would be quicker, and one
    # more place to edit for each data set. Files without DATA_SETS hold what several readers share.
    modules = [f"{readers.__name__}.{module.name}" for module in pkgutil.iter_modules(readers.__path__)]
    found = [entry for name in [*modules, _EMBEDDED_WORLD] for entry in getattr(import_module(name), "DATA_SETS", ())]
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}


def data_set(name: str) -> DataSet:
    """What is known of a data set, by its name."""
    if name not in data_sets():
        raise ValueError(f"there is no data set '{name}'; known: {', '.join(data_sets())}.")
    return data_sets()[name]


def open_data_set(
    name: str, root: str | Path | None = None, role: Role = "test", split: str | None = None, **options: Any
) -> ClassIndex:
    """Open a data set by name.

    Args:
        name: one of `data_sets`.
        root: its folder on disk; not used by the embedded world.
        role: "train" for images of base classes, "test" for episodes.
        split: the data set's own split name, in place of a role.

    Raises:
        ValueError: there is no such data set, it cannot play the role, no root was given, or its files are missing or
            damaged.
    """
    entry = data_set(name)
    entry.insist_on_root(root)
    if split is not None and not any(entry.roles.values()):
        raise ValueError(f"data set '{name}' has no splits of its own, got split '{split}': leave it out.")
    if split is None:
        if role not in entry.roles:
            able = " and ".join(entry.roles)
            raise ValueError(f"data set '{name}' is there to {able} on, not to {role} on: choose another one.")
        split = entry.roles[role]
    # A caller's options win over the entry's, so that a recipe can change what an entry presets.
    arguments = {**entry.options, **options} | ({} if split is None else {"split": split})
    return entry.reader(root, **arguments) if entry.needs_root else entry.reader(**arguments)
