"""`fsdino evaluate`: a method on fixed episodes of a data set, all folds and their mean."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.multiprocessing import ProcessRaisedException  # type: ignore[attr-defined]

from fsdino.base.method import FewShotMethod
from fsdino.base.ranges import Strips, within_ranges
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.episodes.protocols import protocol as protocol_named
from fsdino.data.splits import TestSet
from fsdino.evaluation.episode_choice import EpisodeChoice, check_list_path
from fsdino.evaluation.measure import Scoring, read_rows
from fsdino.evaluation.measure import evaluate as evaluate_list
from fsdino.evaluation.method_choice import MethodChoice, identity
from fsdino.evaluation.sheet import contact_sheet
from fsdino.evaluation.tables import (
    EPISODES,
    FoldResult,
    TableFormat,
    class_table,
    episode_table,
    result_rows,
    text_table,
    write_table,
)
from fsdino.evaluation.work import EvaluationProgress, Work, plain_error
from fsdino.visualize import write_png

_SIZES = {"original": "the images' own sizes", "network": "the network's size"}


@dataclass(frozen=True)
class Measured:
    """All folds of an evaluation; `method` is that of the last one."""

    results: list[FoldResult]
    index: ClassIndex
    method: FewShotMethod
    scoring: Scoring


def measure_folds(
    choice: MethodChoice,
    test: EpisodeChoice,
    out: Path | None = None,
    *,
    scoring: Scoring | None = None,
    work: Work | None = None,
    strips: int = 0,
    edges: bool = False,
) -> tuple[Measured, Path]:
    """Measure a method on every fold asked for, or go on where an earlier run stopped.

    Args:
        out: folder of the rows, `fold<n>/` below it; None names one after the settings below `runs/evaluate`.
        scoring: None takes the protocol's, with given lists "original".
        strips: episodes drawn on each fold's contact sheet, `fold<n>.png`; 0 draws none.
        edges: also score the outlines.

    Returns:
        What was measured, and the folder.

    Raises:
        ValueError: for a data set, list, method or option that cannot be used; the message says what to do.
        FileNotFoundError: the method or a list is not there.
    """
    work = work or Work()
    # Before the data set is opened, which can take minutes.
    if test.list is not None:
        check_list_path(test.list)
    scored: Scoring = scoring or ("original" if test.list is not None else protocol_named(test.protocol).scoring)
    index = test.open()
    results: list[FoldResult] = []
    method: FewShotMethod | None = None
    for episodes in test.lists(index):
        method = choice.open(episodes.fold, partial(test.base, TestSet(index, episodes)))
        # Named by the first fold's method: only an opened method can say what its weights are.
        out = out or Path("runs/evaluate") / _folder_name(choice, test, scored, identity(method), edges)
        result = _measure_fold(
            method, index, episodes, out / f"fold{episodes.fold}", scoring=scored, work=work, edges=edges
        )
        results.append(result)
        if strips > 0:
            drawn = contact_sheet(method, index, episodes, result.evaluation.rows, strips)
            write_png(out / f"fold{episodes.fold}.png", drawn)
    if method is None or out is None:
        raise ValueError(f"data set '{index.name}' has no fold with classes; check --root and --folds.")
    return Measured(results, index, method, scored), out


def _measure_fold(
    method: FewShotMethod,
    index: ClassIndex,
    episodes: EpisodeList,
    folder: Path,
    *,
    scoring: Scoring,
    work: Work,
    edges: bool,
) -> FoldResult:
    progress = EvaluationProgress(f"fold {episodes.fold}", len(episodes), len(read_rows(folder)))
    # The trainer sets its own number of threads, and whoever measures next must find the old one.
    threads = torch.get_num_threads()
    try:
        found = evaluate_list(
            method,
            index,
            episodes,
            folder,
            scoring=scoring,
            fingerprint=identity(method),
            batch_size=work.batch_size,
            together=work.batch,
            num_workers=work.num_workers,
            trainer=work.trainer(progress),
            boundary=scoring == "original" and index.name.startswith("davis"),
            edges=edges,
        )
    except (ValueError, OSError, ProcessRaisedException) as error:
        raise plain_error(error) from error
    finally:
        torch.set_num_threads(threads)
    return FoldResult(episodes.fold, found, method.remark(), episodes.content_hash)


def _folder_name(choice: MethodChoice, test: EpisodeChoice, scoring: str, method: str, edges: bool) -> str:
    """A name that people recognise, and that differs where anything that matters does."""
    # The digest holds what the words leave out: options, lists, and the weights themselves.
    settings = [asdict(choice), asdict(test), scoring, method, *(["edges"] if edges else [])]
    said = json.dumps(settings, sort_keys=True)
    plain = "".join(char if char.isalnum() or char in "-_" else "-" for char in Path(choice.method).name)
    return f"{plain}-{test.data}-{test.shots}shot-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


@within_ranges
def evaluate(
    choice: MethodChoice,
    test: EpisodeChoice,
    work: Work,
    scoring: Scoring | None = None,
    edges: bool = False,
    strips: Strips = 12,
    table: TableFormat = "csv",
    out: str | None = None,
) -> int:
    """Measure a method on fixed episodes: all folds and their mean, every episode in a table, sheets of images.

    The same command after an interruption goes on.

    Args:
        choice: the method.
        test: the episodes.
        work: how it is computed.
        scoring: original (each image's own size) or network (the network's); the protocol's when left out, original
            for given lists.
        edges: also score the outlines: boundary IoU (pooled as mIoU is) and boundary F.
        strips: episodes drawn on each fold's sheet; 0 draws none.
        table: csv or parquet, of the episodes.
        out: folder for rows, tables and sheets; named after the settings when left out.
    """
    target = Path(out) if out else None
    measured, folder = measure_folds(choice, test, target, scoring=scoring, work=work, strips=strips, edges=edges)
    index = measured.index
    about = {
        "method": choice.method,
        "data": index.name,
        "shots": test.shots,
        "protocol": test.protocol if test.list is None else Path(test.list).name,
        "scoring": measured.scoring,
    }
    rows = write_results(measured, folder, about, table)
    undrawn = {
        class_id: index.class_names[class_id]
        for result in measured.results
        for class_id in index.novel_classes(result.fold)
        if class_id not in result.evaluation.score.per_class
    }
    print(f"{choice.method} on {index.name}, {test.shots} shot(s), scored at {_SIZES[measured.scoring]}\n")
    print(text_table(rows, undrawn))
    print(f"\nepisodes  {folder / f'{EPISODES}.{table}'}  (fsdino compare {folder} OTHER)")
    if strips > 0:
        print(f"images  {folder / 'fold*.png'}")
    return 0


def write_results(
    measured: Measured, folder: Path, about: dict[str, Any], table: TableFormat = "csv"
) -> list[dict[str, Any]]:
    """Write results.csv, whose rows share the columns `about`, classes.csv and the episodes; the rows of the first."""
    rows = result_rows(measured.results, measured.index, about)
    write_table(pd.DataFrame(rows), folder / "results", "csv")
    write_table(class_table(measured.results, measured.index), folder / "classes", "csv")
    write_table(episode_table(measured.results, measured.index), folder / EPISODES, table)
    return rows
