"""Which episodes an evaluation runs: the folds asked for, each with its list, and base classes to choose on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsdino.base.ranges import Episodes, Seed, Shots, check_fields
from fsdino.data.catalog import open_data_set
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.episodes.protocols import protocol as protocol_named
from fsdino.data.part import DataPart, DataSpec, list_file
from fsdino.data.splits import TestSet, base_episodes, open_train


@dataclass(frozen=True)
class EpisodeChoice:
    """What is asked for: a data set, its folds, and where their lists come from.

    Args:
        data: the data set, for instance pascal5i, coco20i, fss1000, folder, synthetic (`fsdino data` lists them).
        root: the folder it lies in.
        folds: all, or numbers with commas.
        shots: references per episode.
        protocol: how lists are drawn and scored: fsdino, hsnet, pfenet, sansa or matcher-lvis.
        list: fixed lists (JSON, or bundled:NAME) in place of drawn ones; {fold} and {shots} are filled in.
        episodes: episodes a fold, in place of the protocol's; of a list whose length follows from the data set
            (FSS-1000, DAVIS, PerSeg), so many evenly spread.
        seed: of the draw, in place of the protocol's.
        skip_rare: leave out classes with too few images instead of refusing.
        data_options: further arguments of the data set's reader, for instance --data_options.min_cover 0.02.
    """

    data: str = "synthetic"
    root: str | None = None
    folds: str = "all"
    shots: Shots = 1
    protocol: str = "fsdino"
    list: str | None = None
    episodes: Episodes | None = None
    seed: Seed | None = None
    skip_rare: bool = False
    data_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    def open(self) -> ClassIndex:
        """The data set of test images."""
        return open_data_set(self.data, self.root, "test", **self.data_options)

    def lists(self, index: ClassIndex) -> Sequence[EpisodeList]:
        """The list of each fold, checked against the data set.

        Raises:
            ValueError: for folds that the data set has not, or a list that does not fit it.
        """
        # All lists before the first is measured: what does not fit is said now, and not hours later.
        return [self._list(index, fold) for fold in chosen_folds(self.folds, index)]

    def _list(self, index: ClassIndex, fold: int) -> EpisodeList:
        if self.list is None:
            plan = protocol_named(self.protocol)
            drawn = plan.draw(index, fold, self.shots, self.episodes, seed=self.seed, skip_rare=self.skip_rare)
            return drawn if self.episodes is None else spread(drawn, self.episodes)
        path = self.list.format(fold=fold, shots=self.shots)
        given = EpisodeList.load(list_file(path), index.name)
        if (given.fold, given.shots) != (fold, self.shots):
            raise ValueError(
                f"list '{path}' is of fold {given.fold}, {given.shots} shot(s), asked for was fold {fold}, "
                f"{self.shots} shot(s): name the lists with {{fold}} and {{shots}}, or give --folds {given.fold} "
                f"--shots {given.shots}."
            )
        given.verify(index)
        return given

    def base(self, test: TestSet, all_classes: bool = False) -> tuple[ClassIndex, EpisodeList]:
        """Training images and episodes of base classes of a fold: the held-out ones, or all.

        Raises:
            ValueError: the data set has no base class to choose on.
        """
        # Given the test set, so that none of its images is among those that something is chosen on.
        spec = DataSpec(self.data, self.root, self.data_options)
        if all_classes:
            return base_episodes(spec, test)
        found = open_train(DataPart([spec], test=spec, fold=test.episodes.fold, shots=self.shots), test)
        assert found.val_episodes is not None  # the default share holds some classes out
        return found.index, found.val_episodes


def spread(episodes: EpisodeList, number: int) -> EpisodeList:
    """So many episodes of a longer list, evenly spread over it; a shorter one as it is."""
    if len(episodes) <= number:
        return episodes
    # Lists of FSS-1000, DAVIS and PerSeg are in the order of their classes, so the first ones would be few classes.
    places = [i * len(episodes) // number for i in range(number)]
    return replace(episodes, episodes=tuple(episodes.episodes[place] for place in places))


def chosen_folds(folds: str, index: ClassIndex) -> list[int]:
    """Fold numbers without repeats from "all" or numbers with commas; "all" leaves out folds without classes.

    Raises:
        ValueError: for anything else, or a fold that is not there.
    """
    if folds == "all":
        return [fold for fold, classes in enumerate(index.folds) if classes]
    try:
        numbers = list(dict.fromkeys(int(part) for part in folds.split(",")))
    except ValueError as error:
        raise ValueError(f"folds '{folds}' are not numbers; give --folds all, or for instance --folds 0,2.") from error
    for number in numbers:
        # Raises for a fold that is not there, and says which there are.
        index.novel_classes(number)
    return numbers


def check_list_path(path: str) -> None:
    """Refuse a pattern that cannot be filled in.

    Raises:
        ValueError: it holds other braces than {fold} and {shots}.
    """
    try:
        Path(path.format(fold=0, shots=1))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"list '{path}' holds other braces than {{fold}} and {{shots}}; correct --list.") from error
