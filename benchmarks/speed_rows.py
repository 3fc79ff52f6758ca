"""One timed step as a row of `speed.csv`, and the bars that it is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timing import Timings

Row = dict[str, Any]


def line(timings: Timings, names: str | tuple[str, ...], base: str, bar: str = "") -> Row:
    """The columns of one timed step (or several added up) and its ratio to a base."""
    names = (names,) if isinstance(names, str) else names
    ms, ratio = timings.ms(*names), timings.ratio(names, base)
    row = {"step": names[0].split("|")[-1], "ms": rounded(ms), "per_s": rounded(1000 / ms, 3),
           "base": base.split("|")[-1], "ratio": rounded(ratio, 3)}  # fmt: skip
    return row | (verdict(ratio, bar) if bar else {})


def verdict(value: float, bar: str) -> Row:
    """A bar as text, and whether it was met."""
    sign, limit = bar.split()[:2]
    return {"bar": bar, "met": "yes" if (value <= float(limit) if sign == "<=" else value >= float(limit)) else "no"}


def rounded(value: float | None, digits: int = 1) -> float | str:
    """For the CSV; empty where nothing is known."""
    return "" if value is None else round(value, digits)


def columns(rows: Sequence[Row]) -> list[Row]:
    """The same rows, each with every column in a fixed order."""
    order = ("section", "method", "preset", "img_size", "step", "ms", "per_s", "base", "ratio", "ratio_b14", "bar",
             "met", "peak_mb")  # fmt: skip
    return [{name: row.get(name, "") for name in order} | row for row in rows]
