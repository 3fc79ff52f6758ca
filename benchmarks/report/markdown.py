"""Tables in Markdown: a row is a group of result rows, a column says what of the group is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

Cell = Callable[[pd.DataFrame], str]
MILLIONS = 1e-6


class Column(NamedTuple):
    """One column: its header, the text of a group's cell, and whether it is set to the right."""

    header: str
    cell: Cell
    right: bool = True


def markdown_table(groups: Iterable[pd.DataFrame], columns: Sequence[Column]) -> str:
    """Groups of rows as a Markdown table, one line a group."""
    lines = [[column.header for column in columns], ["---:" if column.right else "---" for column in columns]]
    lines += [[column.cell(group) for column in columns] for group in groups]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


# ---- groups of rows


def each(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Every row as a group of its own."""
    return [rows.iloc[[i]] for i in range(len(rows))]


def numbers(rows: pd.DataFrame, name: str) -> list[float]:
    """The numbers of a column, without empty cells."""
    if name not in rows:
        return []
    return pd.to_numeric(rows[name], errors="coerce").dropna().tolist()


# ---- texts of cells


def decimals(text: str, digits: int, scale: float = 1.0) -> str:
    """A number with so many decimals, after multiplying; any other text as it is."""
    try:
        return f"{float(text) * scale:.{digits}f}"
    except ValueError:
        return text


def first(rows: pd.DataFrame, name: str) -> str:
    """The text of the first row; empty where there is no such row or column."""
    return str(rows[name].iloc[0]) if name in rows and len(rows) else ""


def average(rows: pd.DataFrame, name: str, digits: int = 1) -> str:
    """Mean of a column, with the range where there are several rows; empty without numbers."""
    values = numbers(rows, name)
    if not values:
        return ""
    spread = f" ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def interval(rows: pd.DataFrame, low: str = "low", high: str = "high") -> str:
    """Mean of the lower and of the upper ends."""
    ends = numbers(rows, low), numbers(rows, high)
    return f"{np.mean(ends[0]):.1f}–{np.mean(ends[1]):.1f}" if ends[0] else ""


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean over seeds (Student's t); at least two values."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def paired(rows: pd.DataFrame, base: pd.DataFrame, name: str) -> str:
    """Mean difference over the seeds (and folds) that both have, with its 95 % interval."""
    same = [key for key in ("seed", "fold") if key in rows]
    both = rows.merge(base, on=same, suffixes=("", "_base"))
    values = (pd.to_numeric(both[name]) - pd.to_numeric(both[f"{name}_base"])).dropna().tolist()
    if len(values) < 2:
        return f"{values[0]:+.1f}" if values else ""
    return f"{np.mean(values):+.1f} ± {half_width(values):.1f}"


# ---- columns


def text(name: str, header: str | None = None, right: bool = False) -> Column:
    """The text of a column as it is."""
    return Column(header or name, lambda rows: first(rows, name), right)


def number(name: str, header: str, digits: int = 1, scale: float = 1.0) -> Column:
    """The first row's number with so many decimals."""
    return Column(header, lambda rows: decimals(first(rows, name), digits, scale))


def mean_of(name: str, header: str, digits: int = 1) -> Column:
    """Mean and range over the rows."""
    return Column(header, lambda rows: average(rows, name, digits))


SEEDS = Column("seeds", lambda rows: str(rows["seed"].nunique()))
INTERVAL = Column("95 % interval", interval)
TOTAL, TRAINED = number("total", "M total", 2, MILLIONS), number("trained", "M trained", 2, MILLIONS)
