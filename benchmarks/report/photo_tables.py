"""Tables on photographs: folds and lists, the training-free chain, and what is made of coarse maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import by, load
from benchmarks.report import markdown as md
from benchmarks.report.accuracy_tables import differences
from benchmarks.report.markdown import Column, decimals, first, interval, markdown_table, mean_of, text


def photos(rows: pd.DataFrame, results: Path) -> str:
    """One row a method, one column a fold, means over the seeds; then the differences, episode by episode."""
    folds, pairs = sorted(set(rows["fold"])), load(results, "paired_photos")
    pooled = {} if pairs.empty else by(pairs[pairs["b"] == ""], "a")

    def fold_column(fold: str) -> Column:
        def cell(group: pd.DataFrame) -> str:
            found = group[group["fold"] == fold]
            return f"{np.mean(md.numbers(found, 'novel_miou')):.1f} ({interval(found)})" if len(found) else ""

        return Column(f"fold {fold}", cell)

    def overall(group: pd.DataFrame) -> str:
        means = [np.mean(md.numbers(found, "novel_miou")) for found in by(group, "fold").values()]
        if len(means) < len(folds):
            return ""
        whole = pooled.get(first(group, "method"))
        return f"{np.mean(means):.1f}" + ("" if whole is None else f" ({interval(whole)})")

    columns = [text("method"), md.SEEDS, *map(fold_column, folds), Column("mean of folds", overall)]
    columns += [mean_of("novel_fb_iou", "FB-IoU"), md.TOTAL, md.TRAINED]
    return markdown_table(by(rows, "method").values(), columns) + differences(pairs)


def photos_mean(rows: pd.DataFrame, results: Path) -> str:
    """One row a method: the mean of the folds alone, with the interval over all their episodes."""
    pooled = load(results, "paired_photos")
    pooled = pooled[pooled["b"] == ""]

    def overall(group: pd.DataFrame) -> str:
        whole = pooled[pooled["a"] == first(group, "method")]
        return f"{decimals(first(whole, 'difference'), 1)} ({interval(whole)})"

    columns = [text("method"), Column("mIoU, mean of four folds", overall), mean_of("novel_fb_iou", "FB-IoU")]
    columns += [md.TOTAL, md.TRAINED]
    return markdown_table(by(rows, "method").values(), columns)


def chain(rows: pd.DataFrame, _: Path) -> str:
    """Chain and prototype on each list, a column a fold, with the paired difference; the cost; what was tried."""
    scores = rows[rows["part"].isin(["mIoU", "paired"])]
    folds = [fold for fold in dict.fromkeys(scores["fold"]) if fold != "mean"]

    def score(fold: str, ends: bool) -> Column:
        def cell(group: pd.DataFrame) -> str:
            row = group[group["fold"] == fold]
            sign = "+" if first(row, "part") == "paired" else ""
            found = f"{float(first(row, 'value')):{sign}.1f}"
            return (
                f"{found} ({float(first(row, 'low')):{sign}.1f} to {float(first(row, 'high')):{sign}.1f})"
                if ends
                else found
            )

        return Column(fold if ends else f"fold {fold}", cell)

    columns = [text("list"), text("shots", right=True), text("method"), mean_of("base_miou", "base classes")]
    columns += [score(fold, False) for fold in folds] + [score("mean", True)]
    found = markdown_table(by(scores, "list", "shots", "method").values(), columns)
    timed = rows[rows["part"] == "time"]
    if len(timed):
        found += (
            f"\nAn image costs {float(first(timed, 'ratio')):.2f} of what the bare encoder takes in the same run.\n"
        )
    shown = {
        "tried": md.number("base_miou", "mIoU on base classes"),
        "presence": md.number("value", "AUROC, there or not"),
    }
    shown["classes"] = md.number("base_miou", "mIoU, several classes")
    for part, column in shown.items():
        some = rows[rows["part"] == part]
        if len(some):
            found += "\n" + markdown_table(md.each(some), [text("method", part), column, text("choice", "cut")])
    return found


def scored(name: str, header: str) -> Column:
    """A score in percent with its difference from the first way, and that difference's interval where there is one."""

    def cell(row: pd.DataFrame) -> str:
        value, gain, low, high = (first(row, name + end) for end in ("", "_gain", "_low", "_high"))
        if float(low) == float(high) == 0:
            return decimals(value, 1)
        return f"{decimals(value, 1)}, {float(gain):+.1f} ({float(low):+.1f} to {float(high):+.1f})"

    return Column(header, cell)


def edges(rows: pd.DataFrame, _: Path) -> str:
    """Ways to bring a coarse map to pixels, over all folds that were measured together."""
    rows = rows[rows["part"].str.contains("folds")]
    columns = [text("part", "episodes of"), text("way"), scored("miou", "mIoU"), scored("boundary_iou", "boundary IoU")]
    columns += [scored("boundary_f", "boundary F"), md.number("time_ratio", "time", 1), md.number("extra_mb", "MB", 0)]
    return markdown_table(md.each(rows), columns)


def instances(rows: pd.DataFrame, _: Path) -> str:
    """Ways to cut a mask into instances; the method's masks, then the true ones."""
    columns = [text("part", "episodes of"), text("masks", "masks of"), text("way"), text("instances", right=True)]
    return markdown_table(md.each(rows), [*columns, scored("ap", "AP"), scored("ap50", "AP50")])


def lists(rows: pd.DataFrame, _: Path) -> str:
    """One row a list: both methods, and their difference."""
    names = list(dict.fromkeys(rows["method"]))

    def score(name: str) -> Column:
        def cell(group: pd.DataFrame) -> str:
            row = group[group["method"] == name]
            value, low, high = (decimals(first(row, end), 1) for end in ("value", "low", "high"))
            return f"{value} ({low} to {high})"

        return Column(name, cell)

    listed = Column("list", lambda group: "fixed" if first(group, "list") == "0" else f"seed {first(group, 'list')}")
    columns = [listed, text("seeds", "models a fold", right=True), *map(score, names)]
    return markdown_table(by(rows, "list").values(), columns)


def compared(rows: pd.DataFrame, _: Path) -> str:
    """One row a way: what the chain compares, and whether it is centred."""
    columns = [text("world"), text("maps", "compared"), text("centred"), text("number", "maps", right=True)]
    return markdown_table(md.each(rows), [*columns, scored("miou", "mIoU"), md.number("cut", "best cut", 2)])


def own_cut(rows: pd.DataFrame, _: Path) -> str:
    """One row a data set and way: mIoU, the difference from the first way, and the quartiles of own cuts."""
    columns = [text("data"), text("shots", "references", right=True), text("episodes", right=True)]
    columns += [text("features"), text("cut", "cut by"), scored("miou", "mIoU")]
    columns += [md.number(name, name, 2) for name in ("lower", "median", "upper")]
    return markdown_table(md.each(rows), columns)


def adapted(rows: pd.DataFrame, _: Path) -> str:
    """One row a data set and way: mean IoU, and how often the answer "absent" is wrong."""
    columns = [text("data"), text("way", "features"), text("sessions", right=True), text("classes", right=True)]
    columns += [
        scored("iou", "mean IoU"),
        md.number("missed", "missed, %"),
        md.number("elsewhere", "found elsewhere, %"),
    ]
    ends = ("error_low", "error_high")
    error = Column("error, %", lambda row: f"{decimals(first(row, 'error_value'), 1)} ({interval(row, *ends)})")
    return markdown_table(md.each(rows), [*columns, error])


TABLES = {
    "photos": photos, "photos_mean": photos_mean, "chain": chain, "compared": compared, "lists": lists,
    "edges": edges, "instances": instances, "own_cut": own_cut, "adapted": adapted,
}  # fmt: skip
