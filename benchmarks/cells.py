"""Rows of results as cells of a table: numbers, means over runs, intervals, paired differences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from provenance import read_rows

Row = dict[str, str]
Format = Callable[[str], str]
# Two-sided 95 % points of Student's t by degrees of freedom; paired differences over n seeds have n - 1.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def markdown_table(
    rows: Iterable[Mapping[str, str]], columns: Mapping[str, str], formats: Mapping[str, Format] | None = None
) -> str:
    """Rows as a Markdown table.

    Args:
        rows: Column to text; what is missing or empty stays empty.
        columns: Column to header, in order.
        formats: Column to what its text becomes; columns with a format are set to the right.

    Returns:
        Lines, the last one ended.
    """
    formats = formats or {}
    lines = [list(columns.values()), ["---:" if name in formats else "---" for name in columns]]
    for row in rows:
        texts = {name: row.get(name) or "" for name in columns}
        lines.append([formats[name](text) if name in formats and text else text for name, text in texts.items()])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def decimals(digits: int, scale: float = 1.0) -> Format:
    """Numbers with so many decimals, after multiplying; what is no number stays as it is."""

    def show(text: str) -> str:
        try:
            return f"{float(text) * scale:.{digits}f}"
        except ValueError:
            return text

    return show


MILLIONS, ONE, TWO, WHOLE = decimals(2, 1e-6), decimals(1), decimals(2), decimals(0)


def gmac(text: str) -> str:
    """Whole numbers where they are large, two decimals below ten."""
    return (TWO if float(text) < 10 else WHOLE)(text)


# ---- rows into fewer rows


def groups(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Rows by key, in the order of the keys' first rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def numbers(rows: Iterable[Row], column: str) -> list[float]:
    """The numbers of a column, without empty cells."""
    return [float(row[column]) for row in rows if row.get(column)]


def average(rows: Sequence[Row], column: str, digits: int = 1) -> str:
    """Mean of a column, with the range where there are several rows; empty without numbers."""
    values = numbers(rows, column)
    if not values:
        return ""
    spread = f" ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def interval(rows: Sequence[Row], low: str = "low", high: str = "high") -> str:
    """Mean of the lower and of the upper ends."""
    if not numbers(rows, low):
        return ""
    return f"{mean(numbers(rows, low)):.1f}–{mean(numbers(rows, high)):.1f}"


def paired(rows: Sequence[Row], base: Sequence[Row], column: str) -> str:
    """Mean difference over the seeds that both have, with its 95 % interval (Student's t)."""
    before = {(row["seed"], row.get("fold", "")): float(row[column]) for row in base if row.get(column)}
    keys = [(row["seed"], row.get("fold", "")) for row in rows if row.get(column)]
    found = dict(zip(keys, numbers(rows, column)))
    differences = [value - before[key] for key, value in found.items() if key in before]
    if not differences:
        return ""
    if len(differences) == 1:
        return f"{differences[0]:+.1f}"
    half = T95.get(len(differences) - 1, 1.96) * stdev(differences) / len(differences) ** 0.5
    return f"{mean(differences):+.1f} ± {half:.1f}"


def run_name(row: Row) -> str:
    """A run's name without seed, fold and shots."""
    return re.sub(r"-((seed|fold)\d+|\d+shot)", "", row["run"])


def load(results: Path, name: str) -> list[Row]:
    """The rows of `NAME*.csv`, several files one after the other."""
    return [row for path in sorted(results.glob(f"{name}*.csv")) for row in read_rows(path)]
