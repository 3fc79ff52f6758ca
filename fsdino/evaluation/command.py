"""`fsdino evaluate` outside a recipe, as a plain function."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch.multiprocessing import ProcessRaisedException  # type: ignore[attr-defined]

from fsdino.base.method import FewShotMethod
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.episodes.protocols import protocol as protocol_named
from fsdino.data.splits import TestSet
from fsdino.evaluation.episode_choice import EpisodeChoice, check_list_path
from fsdino.evaluation.measure import Scoring, read_rows
from fsdino.evaluation.measure import evaluate as evaluate_list
from fsdino.evaluation.method_choice import MethodChoice, identity, remark
from fsdino.evaluation.progress import EvaluationProgress
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
from fsdino.evaluation.work import Device, Work, plain_error
from fsdino.methods.prototype import Kind
from fsdino.visualize import write_png


@dataclass(frozen=True)
class Measured:
    """All folds of an evaluation.

    Attributes:
        results: one a fold.
        index: the data set.
        method: of the last fold.
        scoring: at which size it was counted.
    """

    results: list[FoldResult]
    index: ClassIndex
    method: FewShotMethod
    scoring: Scoring


def measure_folds(
    choice: MethodChoice,
    test: EpisodeChoice,
    out: Path | None = None,
    scoring: Scoring | None = None,
    work: Work | None = None,
    strips: int = 0,
) -> tuple[Measured, Path]:
    """Measure a method on every fold asked for, or go on where an earlier run stopped.

    Args:
        choice: the method.
        test: data set, folds and lists.
        out: folder of the rows, `fold<n>/` below it; None names one after the settings below `runs/evaluate`.
        scoring: None takes the protocol's, with given lists "original".
        work: how it is computed; None = one process.
        strips: episodes drawn on each fold's contact sheet, `fold<n>.png`; 0 draws none.

    Returns:
        What was measured, and the folder.

    Raises:
        ValueError: for a data set, list, method or option that cannot be used; the message says what to do.
        FileNotFoundError: the method or a list is not there.
    """
    work = work or Work()
    if test.list_path is not None:
        check_list_path(test.list_path)
    plan = protocol_named(test.protocol)
    scored: Scoring = scoring or ("original" if test.list_path is not None else plan.scoring)
    index = test.open()
    results: list[FoldResult] = []
    method: FewShotMethod | None = None
    for episodes in test.lists(index):
        method = choice.open(episodes.fold, lambda chosen=episodes: test.base(TestSet(index, chosen)))  # type: ignore[misc]
        out = out or Path("runs/evaluate") / _folder_name(choice, test, scored, identity(method))
        boundary = scored == "original" and index.name.startswith("davis")
        result = _measure_fold(method, index, episodes, out / f"fold{episodes.fold}", scored, work, boundary)
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
    scoring: Scoring,
    work: Work,
    boundary: bool,
) -> FoldResult:
    name, note = identity(method), remark(method)
    progress = EvaluationProgress(f"fold {episodes.fold}", len(episodes), len(read_rows(folder)))
    threads = torch.get_num_threads()
    try:
        found = evaluate_list(
            method, index, episodes, folder, scoring=scoring, fingerprint=name, batch_size=work.batch_size,
            num_workers=work.num_workers, trainer=work.trainer(progress), boundary=boundary,
        )  # fmt: skip
    except (ValueError, OSError, ProcessRaisedException) as error:
        raise plain_error(error) from error
    finally:
        torch.set_num_threads(threads)
    return FoldResult(episodes.fold, found, note, episodes.content_hash)


def _folder_name(choice: MethodChoice, test: EpisodeChoice, scoring: str, method: str) -> str:
    """A name that people recognise, and that differs where anything that matters does."""
    said = json.dumps([asdict(choice), asdict(test), scoring, method], sort_keys=True)
    plain = "".join(char if char.isalnum() or char in "-_" else "-" for char in Path(choice.name).name)
    return f"{plain}-{test.data}-{test.shots}shot-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def evaluate(
    method: str,
    data: str = "synthetic",
    root: str | None = None,
    folds: str = "all",
    shots: int = 1,
    protocol: str = "fsdino",
    list: str | None = None,
    scoring: Scoring | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    skip_rare: bool = False,
    data_options: dict[str, Any] | None = None,
    threshold: float | None = None,
    preset: str = "tiny",
    encoder_weights: str = "auto",
    tap: int | Literal["auto"] = "auto",
    cut: float | Literal["auto"] = "auto",
    kind: Kind | Literal["auto"] = "auto",
    options: dict[str, Any] | None = None,
    devices: int = 1,
    device: Device = "auto",
    threads: int = 1,
    num_workers: int = 0,
    batch_size: int = 1,
    strips: int = 12,
    table: TableFormat = "csv",
    out: str | None = None,
) -> int:
    """Measure a method on fixed episodes: all folds and their mean, every episode in a table, sheets of images.

    The same command after an interruption goes on. With --config RECIPE it measures a recipe's run instead.

    Args:
        method: What `fsdino.load` opens (tiny, a folder, a checkpoint, a Hub id; {fold} is filled in), or prototype,
            sansa, fssam, persam, all_foreground.
        data: The data set, for instance pascal5i, coco20i, fss1000, folder, synthetic (`fsdino data` lists them).
        root: The folder it lies in.
        folds: all, or numbers with commas.
        shots: References per episode.
        protocol: How lists are drawn and scored: fsdino, hsnet, pfenet, sansa or matcher-lvis.
        list: Fixed lists (JSON) in place of drawn ones; {fold} and {shots} are filled in.
        scoring: original (each image's own size) or network (the network's); the protocol's when left out, original
            for given lists.
        episodes: Episodes a fold, in place of the protocol's.
        seed: Of the draw, in place of the protocol's.
        skip_rare: Leave out classes with too few images instead of refusing.
        data_options: Further arguments of the data set's reader, for instance --data_options.min_cover 0.02.
        threshold: Probability above which a pixel is object; the method's own when left out.
        preset: For prototype: whose encoder and size.
        encoder_weights: For prototype: auto (bundled for tiny, else timm's), timm, random, bundled:NAME or a file.
        tap: For prototype: block that is compared; auto chooses it on base classes.
        cut: For prototype: score above which a position is object; auto chooses it on base classes.
        kind: For prototype: fg_bg or softmax; auto chooses it on base classes.
        options: For the named methods: their arguments, for instance --options.weights FILE --options.size large.
        devices: Processes that share the work; on a GPU one each.
        device: cpu, cuda, or auto.
        threads: CPU threads of a process; with another number than 1 last digits may differ.
        num_workers: Loader processes of each.
        batch_size: Episodes loaded at a time; each is computed by itself.
        strips: Episodes drawn on each fold's sheet; 0 draws none.
        table: csv or parquet, of the episodes.
        out: Folder for rows, tables and sheets; named after the settings when left out.

    Returns:
        Exit code.

    Raises:
        ValueError: For a data set, list, method or option that cannot be used.
        FileNotFoundError: If the method or a list is not there.
    """
    choice = MethodChoice(method, preset, encoder_weights, tap, cut, kind, options or {}, threshold)
    test = EpisodeChoice(data, root, folds, shots, protocol, list, episodes, seed, skip_rare, data_options or {})
    work = Work(devices, device, threads, num_workers, batch_size)
    measured, folder = measure_folds(choice, test, Path(out) if out else None, scoring, work, strips)
    rows = write_results(measured, folder, {"method": method, "data": measured.index.name, "shots": shots,
                                            "protocol": protocol if list is None else Path(list).name,
                                            "scoring": measured.scoring}, table)  # fmt: skip
    undrawn = {class_id: measured.index.class_names[class_id] for result in measured.results
               for class_id in measured.index.novel_classes(result.fold)
               if class_id not in result.evaluation.score.per_class}  # fmt: skip
    print(f"{method} on {measured.index.name}, {shots} shot(s), scored at {_SIZES[measured.scoring]}\n")
    print(text_table(rows, undrawn))
    print(f"\nepisodes  {folder / f'{EPISODES}.{table}'}  (fsdino compare {folder} OTHER)")
    if strips > 0:
        print(f"images  {folder / 'fold*.png'}")
    return 0


_SIZES = {"original": "the images' own sizes", "network": "the network's size"}


def write_results(
    measured: Measured, folder: Path, about: dict[str, Any], table: TableFormat = "csv"
) -> list[dict[str, Any]]:
    """Write results.csv, classes.csv and the table of episodes.

    Args:
        measured: all folds.
        folder: where to.
        about: columns that all rows of results.csv share.
        table: format of the table of episodes.

    Returns:
        The rows of results.csv.
    """
    rows = result_rows(measured.results, measured.index, about)
    write_table(pd.DataFrame(rows), folder / "results", "csv")
    write_table(class_table(measured.results, measured.index), folder / "classes", "csv")
    write_table(episode_table(measured.results, measured.index), folder / EPISODES, table)
    return rows
