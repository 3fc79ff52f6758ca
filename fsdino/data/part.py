"""A recipe's data part: which data sets and lists, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fsdino.base.bundled import bundled_list
from fsdino.base.ranges import Count, Episodes, Number, Share, Shots, Weight, check_fields

BUNDLED_LIST = "bundled:"


@dataclass
class DataSpec:
    """A data set.

    Args:
        name: one of `fsdino.data.catalog.data_sets`, or "images" for a folder of images without masks.
        root: its folder on disk.
        options: further arguments of its reader.
        leave_out: fold -> names of classes that must not be seen in it ("*" = the whole set), for a second data set
            that has the first one's novel classes under other names.
        share: part of the training episodes drawn from this set, relative to the others' shares; None in all sets
            draws every class equally often, so that a set with many classes outweighs one with few.
    """

    name: str = "synthetic"
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    leave_out: dict[int, list[str]] = field(default_factory=dict)
    share: Weight | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class DataPart:
    """What is learnt from and what is tested on.

    Args:
        train: annotated data sets; their base classes are trained on.
        images: images of distillation, used without masks; empty = the annotated ones.
        test: data set of the test episodes.
        fold: fold whose classes are novel.
        shots: references per episode.
        filter: training images: "none" (all, novel pixels ignored), "hsnet" or "pfenet".
        in_domain: also train on the tested classes, from images that no test episode shows (a generalist's test, not
            a few-shot one).
        val_by: what is held out to pick checkpoint and threshold: base "classes", or "images" of all classes, for data
            with too few classes to spare one.
        val_share: part of them, in [0, 1).
        val_fold: hold out the base classes that are novel in this other fold, in place of a share; to choose between
            options without the classes of the fold's test.
        val_episodes: episodes of those.
        test_episodes: length of the test list, where it is drawn.
        test_list: a fixed test list (JSON), `bundled:NAME` for one of the package; `{fold}` and `{shots}` are filled
            in.
        reduce: decode JPEGs smaller, and shrink large images before their colours change, where training needs an
            image at the network's size alone; measurements always read images whole.
        max_train_images: keep only so many annotated images (drawn by the seed); None = all.
        root: folder that relative folders and the test list are in; None: the current one.
    """

    train: list[DataSpec] = field(default_factory=lambda: [DataSpec()])
    images: list[DataSpec] = field(default_factory=list)
    test: DataSpec = field(default_factory=DataSpec)
    fold: Number = 0
    shots: Shots = 1
    filter: Literal["none", "hsnet", "pfenet"] = "none"
    in_domain: bool = False
    val_by: Literal["classes", "images"] = "classes"
    val_share: Share = 0.2
    val_fold: Number | None = None
    val_episodes: Number = 120
    test_episodes: Episodes = 600
    test_list: str | None = None
    reduce: bool = True
    max_train_images: Count | None = None
    root: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.val_fold is not None and (self.val_by == "images" or self.val_fold == self.fold):
            raise ValueError(
                f"val_fold {self.val_fold} must be another fold than {self.fold}, whose classes are tested, and goes "
                'with val_by "classes".'
            )

    def placed(self) -> DataPart:
        """The same part with every folder below `root`."""
        base = Path(self.root or ".")

        def place(spec: DataSpec) -> DataSpec:
            return replace(spec, root=None if spec.root is None else str(base / spec.root))

        given = self.test_list
        if given is not None and not given.startswith(BUNDLED_LIST):
            given = str(base / given)
        train, images = ([place(spec) for spec in specs] for specs in (self.train, self.images))
        return replace(self, root=None, train=train, images=images, test=place(self.test), test_list=given)


def list_file(name: str) -> Path:
    """The file of a test list by its path, or by `bundled:NAME`."""
    return bundled_list(name.removeprefix(BUNDLED_LIST)) if name.startswith(BUNDLED_LIST) else Path(name)
