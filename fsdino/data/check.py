"""`fsdino data check`: what of a data set lies on disk, what is missing, and how its counts compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fsdino.data.catalog import DataSet, Published, Requirement, data_set, open_data_set
from fsdino.data.class_index import ClassIndex
from fsdino.data.images import check_mask_size


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
    """What was found of a data set, as lines; `missing` says what to fetch, `without` names optional files."""

    data_set: DataSet
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
        where = f" in {self.root}" if self.root else ""
        lines = [f"{self.data_set.title} [{self.data_set.name}]{where}"]
        kinds = {"found": self.found, "without": self.without, "missing": self.missing}
        kinds |= {"count": list(map(str, self.counts)), "problem": self.problems}
        lines += [f"  {kind:<8} {line}" for kind, entries in kinds.items() for line in entries]
        verdict = "ready to use" if self.ok else "not ready: see the lines marked missing and problem"
        return "\n".join([*lines, f"  result   {verdict}"])


def check_data_set(name: str, root: str | Path | None = None, num_samples: int = 20) -> DataReport:
    """Look at a data set as `fsdino evaluate` and `fsdino run` would, and at `num_samples` images, spread evenly."""
    entry = data_set(name)
    entry.insist_on_root(root)
    report = DataReport(entry, None if root is None else Path(root))
    if report.root is not None:
        if not report.root.exists():
            report.missing.append(f"the root '{report.root}' itself: check --root")
            return report
        for requirement in entry.requirements:
            _look_for(requirement, report.root, report)
    # a data set without splits opens the same images in each role: look at them once
    for split, role in {split or "": role for role, split in entry.roles.items()}.items():
        try:
            index = open_data_set(name, root, role)
            report.counts += _counts(entry.published, split, index)
            _sample(index, num_samples, report, split)
        except (ValueError, FileNotFoundError, ImportError) as error:
            # Where a file is missing, the error is a consequence of it and would only hide what to fetch.
            if str(error) not in report.problems and not report.missing:
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


def _counts(published: Published, split: str, index: ClassIndex) -> list[Count]:
    label = f"{split} " if split else ""
    counts = [
        Count(f"{label}classes", len(index.class_names), _of_split(published.classes, split)),
        Count(f"{label}images", len(index.all_images()), _of_split(published.images, split)),
    ]
    pairs_published = published.fold_pairs.get(split)
    for fold, classes in enumerate(index.folds):
        # Episodes are drawn from (image, class) pairs, so their number tells another selection of images from the
        # published one even where classes and images agree.
        if classes:
            pairs = sum(len(index.images(class_id)) for class_id in classes)
            counts.append(Count(f"{label}fold {fold}, classes", len(classes), published.fold_classes))
            wanted = None if pairs_published is None else pairs_published[fold]
            counts.append(Count(f"{label}fold {fold}, (image, class) pairs", pairs, wanted))
    if published.tested_classes is not None:
        tested = sum(map(len, index.folds))
        counts.append(Count(f"{label}classes in all folds", tested, published.tested_classes))
    return counts


def _of_split(number: int | Mapping[str, int] | None, split: str) -> int | None:
    return number.get(split) if isinstance(number, Mapping) else number


def _sample(index: ClassIndex, num_samples: int, report: DataReport, split: str) -> None:
    """Open some images with one of their masks each."""
    images = index.all_images()
    # Spread evenly over the list: a download or an archive that broke off lacks the end of it.
    picked = np.unique(np.linspace(0, len(images) - 1, min(num_samples, len(images))).astype(int))
    for image_id in (images[i] for i in picked):
        image, class_id = index.load_image(image_id), min(index.classes_in(image_id))
        check_mask_size(index.load_mask(image_id, class_id), image.shape[:2], f"{image_id} (class {class_id})")
    label = f"{split} " if split else ""
    report.found.append(f"{len(picked)} {label}images of '{index.name}' opened with their masks")
