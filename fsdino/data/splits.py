"""From a recipe's data part to images, classes and episodes: what may be trained on, is held out, is tested."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fsdino.cache.image_list import ImageList, joined
from fsdino.data.catalog import data_set, open_data_set
from fsdino.data.class_index import ClassIndex, CombinedIndex, SubsetIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.episodes.filters import novel_as_ignore, training_view
from fsdino.data.images import IMAGE_SUFFIXES, read_image, read_reduced
from fsdino.data.part import DataPart, DataSpec, list_file
from fsdino.data.readers.own import spread_images


@dataclass(frozen=True)
class TestSet:
    """The measurement's side; nothing of it reaches a training stage."""

    index: ClassIndex
    episodes: EpisodeList


@dataclass(frozen=True)
class TrainSet:
    """The training side.

    Attributes:
        val_episodes: fixed episodes of those; None without held-out classes.
        ignore_classes: classes whose pixels take part in no loss.
        class_weights: class -> how often it is drawn, relative to the others; None draws all equally often.
        reduce: decode images no larger than the network needs.
    """

    index: ClassIndex
    classes: list[int]
    val_index: ClassIndex
    val_classes: list[int]
    val_episodes: EpisodeList | None
    ignore_classes: list[int]
    annotated: ImageList
    images: ImageList
    class_weights: dict[int, float] | None = None
    reduce: bool = False


def open_test(part: DataPart, seed: int = 0) -> TestSet:
    """The test data set with its fixed list, read from `test_list` and verified, or drawn."""
    part = part.placed()
    index = open_data_set(part.test.name, part.test.root, "test", **part.test.options)
    if part.test_list is None:
        return TestSet(index, EpisodeList.draw(index, part.fold, part.shots, part.test_episodes, seed))
    episodes = EpisodeList.load(list_file(part.test_list.format(fold=part.fold, shots=part.shots)))
    episodes.verify(index)
    return TestSet(index, episodes)


def open_train(part: DataPart, test: TestSet, seed: int = 0) -> TrainSet:
    """The annotated and unannotated training images of a fold.

    Held-out classes are taken from the first data set, which should be the most like the test's. A data set of the same
    name as the test's loses the list's images and the fold's classes. The seed chooses annotated images.

    Raises:
        ValueError: if no base class is left, or only some data sets have a share.
    """
    part = part.placed()
    members, novel, shares = [], [], []
    for spec in part.train:
        index = _without_tested(open_data_set(spec.name, spec.root, "train", **spec.options), spec, part, test)
        barred: list[int] = []
        if _is_tested(index, spec, part, test) and not part.in_domain:  # a fold speaks of the tested data set alone
            barred = novel_as_ignore(index, part.fold, part.filter)
            index = training_view(index, part.fold, part.filter)
        barred += _left_out(index, spec, part.fold)
        if len(barred) < len(index.class_names):
            members.append(index)
            novel.append(set(barred))
            shares.append(spec.share)
    if not members:
        raise ValueError(f"no annotated data set is left in fold {part.fold}; check data.train and leave_out.")
    whole = CombinedIndex(members) if len(members) > 1 else members[0]
    tables = whole.class_ids if isinstance(whole, CombinedIndex) else [{c: c for c in whole.class_names}]
    ignore = sorted(table[c] for table, barred_ids in zip(tables, novel) for c in barred_ids)
    # More images than shots, since an episode needs a query beside its supports.
    usable = [c for c in whole.class_names if c not in set(ignore) and len(whole.images(c)) > part.shots]
    # Checkpoint and threshold are chosen on classes of the first data set alone: it is the one like the test's.
    tested_kind = set(tables[0].values())
    annotated = _image_list(whole, part.reduce)
    images = _all_images(part, annotated, test)
    if part.val_by == "images":
        view, seen, classes, val = _split_images(part, whole, usable)
    else:
        if part.val_fold is None:
            val = held_out_classes([c for c in usable if c in tested_kind], part.val_share)
        else:
            others = {tables[0][c] for c in members[0].novel_classes(part.val_fold) if c in tables[0]}
            val = [c for c in usable if c in others]
        classes = [c for c in usable if c not in set(val)]
        view = seen = whole
        if not classes:
            raise ValueError(f"no foreground class of '{whole.name}' has two images to train on; add annotated images.")
    episodes = validation_episodes(seen, val, part.shots, part.val_episodes) if val else None
    if episodes is not None:
        view, classes = _apart(view, classes, episodes, part.shots)
    view = _fewer(view, classes, part.max_train_images, seed)
    weights = _class_weights(shares, [set(table.values()) & set(classes) for table in tables])
    return TrainSet(
        index=view,
        classes=classes,
        val_index=seen,
        val_classes=val,
        val_episodes=episodes,
        ignore_classes=ignore,
        annotated=annotated,
        images=images,
        class_weights=weights,
        reduce=part.reduce,
    )


def base_episodes(spec: DataSpec, test: TestSet, count: int = 240) -> tuple[ClassIndex, EpisodeList]:
    """Training images of the tested data set and fixed episodes of all base classes, for methods that train on none."""
    # A class that nothing is trained on need not be held out, and a choice on few classes is a noisy one.
    found = open_train(DataPart([spec], test=spec, fold=test.episodes.fold, shots=test.episodes.shots), test)
    classes = sorted([*found.classes, *found.val_classes])
    return found.index, validation_episodes(found.index, classes, test.episodes.shots, count)


def held_out_classes(classes: Sequence[int], share: float, seed: int = 0) -> list[int]:
    """Base classes kept out of training to pick checkpoint and threshold, sorted; at least one above share 0."""
    if share <= 0:
        return []
    # By a seed of its own, not the run's: runs of several seeds are chosen by the same classes, so they compare.
    order = np.random.default_rng(seed).permutation(len(classes))
    count = max(1, round(share * len(classes)))
    return sorted(int(classes[i]) for i in order[:count])


def validation_episodes(
    index: ClassIndex, classes: Sequence[int], shots: int, count: int, seed: int = 0
) -> EpisodeList:
    """Fixed episodes of held-out base classes; classes with too few images are left out."""
    view = SubsetIndex(index, {c: index.images(c) for c in classes})
    # Lists are drawn from the novel classes of a fold, so the held-out ones become those of the only fold.
    view.folds = [list(classes)]
    return EpisodeList.draw(view, 0, shots, count, seed, protocol="validation", skip_rare=True)


def _is_tested(index: ClassIndex, spec: DataSpec, part: DataPart, test: TestSet) -> bool:
    """Whether a training data set is the tested one, however its root is written."""
    ours, theirs = (None if root is None else Path(root).resolve() for root in (spec.root, part.test.root))
    return index.name == test.index.name and ours == theirs


def _without_tested(index: ClassIndex, spec: DataSpec, part: DataPart, test: TestSet) -> ClassIndex:
    """A training data set without the test list's images."""
    if _is_tested(index, spec, part, test):
        return SubsetIndex.without_images(index, test.episodes.images)
    # COCO 2014, COCO 2017, LVIS and PACO name one photograph differently; a test image must not be trained on under
    # another name.
    family = data_set(spec.name).photographs
    if not family or family != data_set(part.test.name).photographs:
        return index
    tested = {_coco_number(image) for image in test.episodes.images}
    return SubsetIndex.without_images(index, [p for p in index.all_images() if _coco_number(p) in tested])


def _coco_number(image_id: str) -> str:
    """The number of a COCO photograph, which COCO 2014, COCO 2017, LVIS and PACO share."""
    numbers = re.findall(r"\d{12}", image_id)
    if not numbers:
        raise ValueError(f"image {image_id!r} has no COCO number (12 digits); keep the published file names.")
    return numbers[-1]


def _split_images(
    part: DataPart, whole: ClassIndex, usable: list[int]
) -> tuple[ClassIndex, ClassIndex, list[int], list[int]]:
    """All classes are trained on and choose the checkpoint, each from images of its own.

    Returns images to train on, images held out, classes to train on, those of them that choose.
    """
    held_out = spread_images(whole, part.val_share) if part.val_share > 0 else set()
    view, seen = SubsetIndex.without_images(whole, held_out), SubsetIndex.of_images(whole, held_out)
    kept = [c for c in usable if len(view.images(c)) > part.shots]
    if not kept:
        raise ValueError(
            f"no class of '{whole.name}' has {part.shots + 1} images left to train on; add annotated images."
        )
    return view, seen, kept, [c for c in kept if len(seen.images(c)) > part.shots]


def _apart(view: ClassIndex, classes: list[int], episodes: EpisodeList, shots: int) -> tuple[ClassIndex, list[int]]:
    """Images to train on without those of the validation episodes, and the classes that have enough of them left.

    A photograph shows several classes: trained on for its dog, it is no unseen image when its chair is asked for.
    """
    shared = episodes.images & {image for c in classes for image in view.images(c)}
    if not shared:
        return view, classes
    rest = SubsetIndex.without_images(view, shared)
    kept = [c for c in classes if len(rest.images(c)) > shots]
    if not kept:
        raise ValueError(
            f"the images of the {len(episodes)} validation episodes are {len(shared)} of those of '{view.name}', and "
            "without them no class is left to train on; lower data.val_episodes or set data.val_share to 0."
        )
    return rest, kept


def _class_weights(shares: list[float | None], members: list[set[int]]) -> dict[int, float] | None:
    """Each data set's share, divided equally among its classes; classes that are not trained on have no weight."""
    given = [share for share in shares if share is not None]
    if not given:
        return None
    if len(given) < len(shares) or min(given) < 0 or sum(given) == 0:
        raise ValueError(f"the shares of data.train are {shares}; give every data set one, none below 0, one above.")
    return {c: share / len(classes) for share, classes in zip(given, members) for c in sorted(classes)}


def _left_out(index: ClassIndex, spec: DataSpec, fold: int) -> list[int]:
    names = set(spec.leave_out.get(fold, []))
    if unknown := names - set(index.class_names.values()) - {"*"}:
        raise ValueError(
            f"leave_out names {sorted(unknown)}, which are no classes of '{index.name}'; check the spelling."
        )
    return [c for c, name in index.class_names.items() if "*" in names or name in names]


def _fewer(index: ClassIndex, classes: list[int], count: int | None, seed: int) -> ClassIndex:
    """Only `count` annotated images, two of a class at a time, so that few images still make episodes."""
    if count is None:
        return index
    # The 11 is this draw's own: other draws of the same seed do not go along with it.
    rng = np.random.default_rng([seed, 11])
    order = {c: rng.permutation(index.images(c)).tolist() for c in rng.permutation(classes).tolist()}
    # Two of a class make a one-shot episode; class after class, so that a larger count holds the smaller one's images.
    rounds = max(len(images) for images in order.values()) // 2
    pairs = [(c, image) for k in range(rounds) for c in order for image in order[c][2 * k : 2 * k + 2]]
    kept: dict[int, list[str]] = {}
    for class_id, image in pairs[:count]:
        kept.setdefault(class_id, []).append(image)
    return SubsetIndex(index, kept)


def _all_images(part: DataPart, annotated: ImageList, test: TestSet) -> ImageList:
    lists: list[ImageList] = []
    for spec in part.images:
        if spec.name == "images":
            lists.append(_folder_images(Path(spec.root or "."), part.reduce))
            continue
        index = _without_tested(open_data_set(spec.name, spec.root, "train", **spec.options), spec, part, test)
        lists.append(_image_list(index, part.reduce))
    if not lists:
        return annotated
    return lists[0] if len(lists) == 1 else joined(lists)


def _image_list(index: ClassIndex, reduce: bool) -> ImageList:
    return ImageList(index.name, tuple(index.all_images()), index.load_image, index.load_reduced if reduce else None)


def _folder_images(root: Path, reduce: bool) -> ImageList:
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"no image below {root}; give data.images a folder with images.")
    names, reduced = tuple(str(p.relative_to(root)) for p in files), partial(_reduced_below, root)
    return ImageList(root.name, names, partial(_read_below, root), reduced if reduce else None)


def _read_below(root: Path, image_id: str) -> np.ndarray:
    return read_image(root / image_id)


def _reduced_below(root: Path, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    return read_reduced(root / image_id, side)
