"""`fsdino data check`: what of a data set lies on disk, what is missing, and how its counts compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fsdino.data.catalog import data_set_entry, open_data_set
from fsdino.data.class_index import ClassIndex
from fsdino.data.images import check_mask_size
from fsdino.data.readers.fss import PUBLISHED_QUERIES
from fsdino.data.readers.voc import PUBLISHED_PAIRS
from fsdino.data.requirements import REQUIREMENTS, Requirement


@dataclass(frozen=True)
class Count:
    """A number found on disk beside the published one (None where nothing was published)."""

    what: str
    found: int
    published: int | None = None

    def __str__(self) -> str:
        if self.published is None:
            return f"{self.what}: {self.found}"
        verdict = "as published" if self.found == self.published else f"published: {self.published}"
        return f"{self.what}: {self.found} ({verdict})"


@dataclass
class DataReport:
    """What was found.

    Attributes:
        name: name of the data set.
        root: folder that was searched.
        found: lines about files that are there.
        without: lines about optional files that are not.
        missing: lines about files that are not, each with what to fetch.
        counts: numbers per fold.
        problems: errors met when reading.
    """

    name: str
    root: Path | None
    found: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the data set can be used: nothing is missing and nothing failed. Counts may differ."""
        return not self.missing and not self.problems

    def __str__(self) -> str:
        title = f"{data_set_entry(self.name).title} [{self.name}]" + (f" in {self.root}" if self.root else "")
        lines = [title]
        lines += [f"  found    {line}" for line in self.found]
        lines += [f"  without  {line}" for line in self.without]
        lines += [f"  missing  {line}" for line in self.missing]
        lines += [f"  count    {count}" for count in self.counts]
        lines += [f"  problem  {line}" for line in self.problems]
        verdict = "ready to use" if self.ok else "not ready: see the lines marked missing and problem"
        return "\n".join([*lines, f"  result   {verdict}"])


def check_data_set(name: str, root: str | Path | None = None, num_samples: int = 20) -> DataReport:
    """Look at a data set as `fsdino evaluate` and `fsdino train` would, and at a few of its images.

    Args:
        name: one of `fsdino.data.catalog.DATA_SETS`.
        root: folder on disk; not needed for the embedded world.
        num_samples: images to open with their masks, spread evenly.

    Returns:
        The report; print it.

    Raises:
        ValueError: there is no such data set, or no root was given.
    """
    entry = data_set_entry(name)
    if entry.needs_root and root is None:
        raise ValueError(f"data set '{name}' ({entry.title}) needs the folder it lies in: give --root DIR.")
    report = DataReport(name, Path(root) if root is not None else None)
    if report.root is not None:
        if not report.root.exists():
            report.missing.append(f"the root '{report.root}' itself: check --root")
            return report
        for requirement in REQUIREMENTS.get(name, ()):
            _look_for(requirement, report.root, report)
    for role in entry.roles or {"all": ""}:
        split = entry.roles.get(role, "")
        try:
            index = open_data_set(name, root, split=split or None)
            report.counts += _counts(name, split, index)
            _sample(index, num_samples, report, split)
        except (ValueError, FileNotFoundError, ImportError) as error:
            if str(error) not in report.problems and not report.missing:  # else the missing file says it all
                report.problems.append(str(error))
    return report


def _look_for(requirement: Requirement, root: Path, report: DataReport) -> None:
    for folder in requirement.folders:
        hits = sorted((root / folder).glob(requirement.path)) if (root / folder).is_dir() else []
        if hits:
            number = f" ({len(hits)})" if len(hits) > 1 else ""
            report.found.append(f"{(root / folder / requirement.path)}{number}: {requirement.what}")
            return
    where = root / requirement.folders[-1] / requirement.path
    if requirement.optional:
        report.without.append(f"{where} ({requirement.what}): optional, {requirement.fetch}")
    else:
        report.missing.append(f"{where} ({requirement.what}): fetch {requirement.fetch}")


def _counts(name: str, split: str, index: ClassIndex) -> list[Count]:
    label = f"{split} " if split else ""
    counts = [
        Count(f"{label}classes", len(index.class_names), _published_classes(name, split)),
        Count(f"{label}images", len(index.all_images())),
    ]
    for fold, classes in enumerate(index.folds):
        pairs = sum(len(index.images(class_id)) for class_id in classes)
        published = PUBLISHED_PAIRS[split][fold] if name == "pascal5i" else None
        if name == "fss1000" and split == "test":
            counts.append(Count(f"{label}queries", pairs, PUBLISHED_QUERIES))
        elif classes:
            counts.append(Count(f"{label}fold {fold}, classes", len(classes), _PER_FOLD.get(name)))
            counts.append(Count(f"{label}fold {fold}, (image, class) pairs", pairs, published))
    if name in _IN_ALL_FOLDS:
        what, published = _IN_ALL_FOLDS[name]
        counts.append(Count(f"{label}{what} in all folds", sum(map(len, index.folds)), published))
    return counts


_PER_FOLD = {"pascal5i": 5, "coco20i": 20, "lvis92i": 92}
_IN_ALL_FOLDS = {"lvis92i": ("classes", 920), "pascal-part": ("parts", 56), "paco-part": ("parts", 303)}
_CLASSES = {
    ("pascal5i", ""): 20, ("coco20i", ""): 80, ("lvis92i", ""): 1203, ("perseg", ""): 40,
    ("fss1000", "train"): 520, ("fss1000", "val"): 240, ("fss1000", "test"): 240,
    ("davis2016", "train"): 30, ("davis2016", "val"): 20, ("davis2017", "train"): 144, ("davis2017", "val"): 61,
}  # fmt: skip


def _published_classes(name: str, split: str) -> int | None:
    return _CLASSES.get((name, split), _CLASSES.get((name, "")))


def _sample(index: ClassIndex, num_samples: int, report: DataReport, split: str) -> None:
    """Open some images with one of their masks each."""
    images: Sequence[str] = index.all_images()
    picked = np.unique(np.linspace(0, len(images) - 1, min(num_samples, len(images))).astype(int))
    for i in picked:
        image_id = images[i]
        image = index.load_image(image_id)
        class_id = next(iter(sorted(index.classes_in(image_id))))
        check_mask_size(index.load_mask(image_id, class_id), image.shape[:2], f"{image_id} (class {class_id})")
    label = f"{split} " if split else ""
    report.found.append(f"{len(picked)} {label}images of '{index.name}' opened with their masks")
