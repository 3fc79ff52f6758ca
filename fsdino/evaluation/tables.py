"""The files of an evaluation: one row an episode, one a class, one a fold; and reading the first back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from fsdino.data.class_index import ClassIndex
from fsdino.evaluation.measure import COUNTS, EDGE_COUNTS, Evaluation, read_rows
from fsdino.metrics.bootstrap import Interval, bootstrap_interval
from fsdino.metrics.davis import davis_score

TableFormat = Literal["csv", "parquet"]
EPISODES = "episodes"  # file name without suffix
# What says that two rows are of the same episode, and what was counted there.
KEY = ("fold", "episode")
SAME = ("class_id", "query", "support")


@dataclass(frozen=True)
class FoldResult:
    """One fold, measured: its scores and rows, what was chosen for it, and the sha256 of its list."""

    fold: int
    evaluation: Evaluation
    remark: str = ""
    list_hash: str = ""


def mean_of_folds(results: list[FoldResult], counts: Sequence[str] = ("inter_fg", "union_fg")) -> Interval:
    """mIoU averaged over the folds, with an interval that draws episodes anew within each; `counts` as it says."""
    rows = pd.concat([result.evaluation.rows.assign(fold=result.fold) for result in results])
    columns = (rows[name].to_numpy(np.int64) for name in ("class_id", *counts, "fold"))
    return bootstrap_interval(*columns)


def episode_table(results: list[FoldResult], index: ClassIndex) -> pd.DataFrame:
    """One row an episode of all folds, with the class's name and the episode's own IoU (empty without any object)."""
    parts = []
    for result in results:
        rows = result.evaluation.rows
        iou = (rows["inter_fg"] / rows["union_fg"].where(rows["union_fg"] > 0)).round(6)
        part = rows.assign(fold=result.fold, class_name=rows["class_id"].map(index.class_names), iou=iou)
        last = ["iou", "score", "presence", *(["boundary_f"] if rows["boundary_f"].notna().any() else [])]
        last += [name for name in EDGE_COUNTS if name in rows]
        parts.append(part[["fold", "episode", "class_id", "class_name", *SAME[1:], *COUNTS, *last]])
    return pd.concat(parts, ignore_index=True)


def class_table(results: list[FoldResult], index: ClassIndex) -> pd.DataFrame:
    """One row a class: its pooled IoU and its episodes; classes that were not drawn have no IoU."""
    rows = []
    for result in results:
        drawn = result.evaluation.rows["class_id"].value_counts()
        scores = result.evaluation.score.per_class
        for class_id in index.novel_classes(result.fold):
            rows.append(
                {
                    "fold": result.fold,
                    "class_id": class_id,
                    "class_name": index.class_names[class_id],
                    "iou": round(scores[class_id], 6) if class_id in scores else None,
                    "episodes": int(drawn.get(class_id, 0)),
                }
            )
    return pd.DataFrame(rows)


def result_rows(results: list[FoldResult], index: ClassIndex, about: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a fold and, where there are several, one for their mean; percent.

    Each has the columns `about`, then fold, miou, low, high, fb_iou, episodes, classes, undrawn, choice and list; DAVIS
    adds j and f; scored outlines add boundary_iou, boundary_low, boundary_high and boundary_f.
    """
    rows = []
    for result in results:
        score, interval = result.evaluation.score, result.evaluation.interval
        novel = index.novel_classes(result.fold)
        rows.append(
            about
            | {"fold": str(result.fold)}
            | _percent(interval, score.fb_iou)
            | {
                "episodes": score.num_episodes,
                "classes": len(novel),
                "undrawn": len(novel) - len(score.per_class),
                "choice": result.remark,
                "list": result.list_hash[:16],
            }
            | (davis_numbers(result.evaluation.rows) if index.name.startswith("davis") else {})
            | edge_numbers([result])
        )
    if len(results) > 1:
        fb = float(np.mean([result.evaluation.score.fb_iou for result in results]))
        sums = {name: sum(row[name] for row in rows) for name in ("episodes", "classes", "undrawn")}
        rows.append(about | {"fold": "mean"} | _percent(mean_of_folds(results), fb) | sums | edge_numbers(results))
    return rows


def davis_numbers(rows: pd.DataFrame) -> dict[str, float]:
    """DAVIS's J and F in percent: the mean over objects of the mean over their frames; nothing where F is missing."""
    if not rows["boundary_f"].notna().all() or rows.empty:
        return {}
    # A frame whose object is hidden, and where none was found, is right: DAVIS gives it 1.
    union = rows["union_fg"].to_numpy()
    j = np.where(union > 0, rows["inter_fg"].to_numpy() / np.maximum(union, 1), 1.0)
    values = {"j": j, "f": rows["boundary_f"].to_numpy()}
    return {name: round(100 * davis_score(rows["class_id"].to_numpy(), value), 3) for name, value in values.items()}


def edge_numbers(results: list[FoldResult]) -> dict[str, float]:
    """Scores of the outlines in percent, folds alike: boundary IoU pooled per class, with its interval, and boundary F.

    F is the mean over classes of the mean over their episodes. Nothing where outlines were not scored.
    """
    if any(EDGE_COUNTS[0] not in result.evaluation.rows for result in results):
        return {}
    iou = mean_of_folds(results, EDGE_COUNTS)
    columns = [(result.evaluation.rows[name].to_numpy() for name in ("class_id", "boundary_f")) for result in results]
    f = float(np.mean([davis_score(*pair) for pair in columns]))
    values = {"boundary_iou": iou.value, "boundary_low": iou.low, "boundary_high": iou.high, "boundary_f": f}
    return {name: round(100 * value, 3) for name, value in values.items()}


def _percent(interval: Interval, fb_iou: float) -> dict[str, float]:
    values = {"miou": interval.value, "low": interval.low, "high": interval.high, "fb_iou": fb_iou}
    return {name: round(100 * value, 3) for name, value in values.items()}


def text_table(rows: list[dict[str, Any]], names: dict[int, str]) -> str:
    """Rows of `result_rows` for the terminal; `names` are those of the classes that no episode asked for."""
    lines = [f"{'fold':<8}{'mIoU':>7}{'95 % interval':>18}{'FB-IoU':>9}{'episodes':>10}{'classes':>9}"]
    for row in rows:
        interval = f"{row['low']:.1f} to {row['high']:.1f}"
        drawn = row["classes"] - row["undrawn"]
        lines.append(
            f"{row['fold']:<8}{row['miou']:>7.2f}{interval:>18}{row['fb_iou']:>9.2f}{row['episodes']:>10}"
            f"{drawn:>9}" + (f"  {row['choice']}" if row.get("choice") else "")
        )
        if "boundary_iou" in row:
            ends = f"({row['boundary_low']:.1f} to {row['boundary_high']:.1f})"
            lines.append(f"outlines   boundary IoU {row['boundary_iou']:.2f} {ends}   F {row['boundary_f']:.2f}")
        if "j" in row:
            lines.append(f"DAVIS   J {row['j']:.2f}   F {row['f']:.2f}   J&F {(row['j'] + row['f']) / 2:.2f}")
    if names:
        listed = ", ".join(list(names.values())[:8]) + (", …" if len(names) > 8 else "")
        lines.append(f"left out, in no episode: {len(names)} classes ({listed})")
    return "\n".join(lines)


def write_table(table: pd.DataFrame, stem: Path, kind: TableFormat) -> Path:
    """Write a table as `stem`.csv or .parquet, complete or not at all; the path."""
    path = stem.with_suffix(f".{kind}")
    # Renamed at the end, which is one step: a reader never sees half a table.
    partial = stem.with_name(f".{stem.name}.part")
    table.to_csv(partial, index=False) if kind == "csv" else table.to_parquet(partial, index=False)
    partial.replace(path)
    return path


def read_episodes(source: str | Path) -> pd.DataFrame:
    """Per-episode rows of an evaluation, sorted by fold and episode, with at least the columns `KEY`, `SAME`, `COUNTS`.

    Args:
        source: an episodes.csv or episodes.parquet, a folder of `fsdino evaluate` that holds one, or the folder of one
            measurement of a run.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: what is there is no such table.
    """
    path = Path(source)
    if path.is_dir():
        if list(path.glob("rows.*.csv")):
            rows = read_rows(path).assign(fold=0)
            _check_counts(rows, path)
            return rows.sort_values(list(KEY), ignore_index=True)
        found = [path / f"{EPISODES}.{kind}" for kind in ("csv", "parquet") if (path / f"{EPISODES}.{kind}").is_file()]
        if not found:
            raise FileNotFoundError(
                f"folder '{path}' holds no {EPISODES}.csv or {EPISODES}.parquet; give the folder "
                "that `fsdino evaluate --out` named."
            )
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"there is no table '{path}'; make it with `fsdino evaluate`.")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"table '{path}' cannot be read ({str(error).splitlines()[0]}); make it again.") from error
    if lacking := [name for name in (*KEY, *SAME, *COUNTS) if name not in table.columns]:
        raise ValueError(
            f"'{path}' is no table of episodes, it lacks the column(s) {', '.join(lacking)}; give the "
            f"{EPISODES} file that `fsdino evaluate` writes."
        )
    _check_counts(table, path)
    return table.sort_values(list(KEY), ignore_index=True)


def _check_counts(table: pd.DataFrame, path: Path) -> None:
    """Refuse what no evaluation counts, as a file has it that was edited or damaged."""
    numbers = table[[*KEY, "class_id", *COUNTS]]
    if not all(pd.api.types.is_integer_dtype(kind) for kind in numbers.dtypes) or bool((numbers < 0).any(axis=None)):
        reason = "folds, episodes, classes and counts are whole numbers from 0"
    elif any((table[f"inter_{part}"] > table[f"union_{part}"]).any() for part in ("fg", "bg")):
        reason = "an intersection is larger than its union"
    elif table.duplicated(list(KEY)).any():
        reason = "an episode stands there twice"
    else:
        return
    raise ValueError(f"table '{path}' is damaged ({reason}); make it again with `fsdino evaluate`.")
