"""Tables on what methods cost, and the field's published numbers with what was counted here beside them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks.common import by, load
from benchmarks.report.markdown import MILLIONS, Column, decimals, each, first, markdown_table, number, text


def params(rows: pd.DataFrame, _: Path) -> str:
    """Parameters and multiply-adds."""
    parts = ("total", "trained", "encoder", "adapter", "prompts", "decoder", "inference")
    products = {"gmac": "GMAC an image", "gmac_encoder": "of it encoder", "gmac_remember": "GMAC to remember"}
    columns = [text("method"), text("preset"), number("img_size", "px", 0)]
    columns += [number(name, f"{name}, M", 2, MILLIONS) for name in parts]
    columns += [Column(header, lambda row, name=name: gmac(first(row, name))) for name, header in products.items()]
    return markdown_table(each(rows), columns)


def gmac(value: str) -> str:
    """Whole numbers where they are large, two decimals below ten."""
    return decimals(value, 2 if float(value) < 10 else 0)


def speed(rows: pd.DataFrame, _: Path) -> str:
    """Methods side by side, then the other sections with their bars."""
    side_by_side, rest = rows[rows["section"] == "methods"], rows[rows["section"] != "methods"]

    def at(step: str, name: str, header: str, digits: int = 0) -> Column:
        return Column(header, lambda group: decimals(first(group[group["step"] == step], name), digits))

    columns = [
        text("method"),
        text("preset"),
        number("img_size", "px", 0),
        at("bare encoder", "ms", "its bare encoder(s), ms"),
        at("remember", "ms", "remember, ms"),
        at("segment", "ms", "segment, ms"),
        at("one-shot episode", "ms", "one-shot episode, ms"),
        at("segment", "ratio", "segment / its bare encoder", 2),
        at("segment", "ratio_b14", "segment / bare DINOv2-B", 2),
        at("segment", "peak_mb", "peak memory, MB"),
    ]
    others = [text("section"), text("method"), text("preset"), number("img_size", "px", 0), text("step")]
    others += [number("ms", "ms", 0), text("base", "beside"), number("ratio", "ratio", 2), number("peak_mb", "MB", 0)]
    found = [markdown_table(by(side_by_side, "method", "preset").values(), columns)] if len(side_by_side) else []
    found += [markdown_table(each(rest), [*others, text("bar"), text("met")])] if len(rest) else []
    return "\n".join(found)


def bars(rows: pd.DataFrame, _: Path) -> str:
    """What speed and memory are held to, and what was measured."""

    def what(row: pd.DataFrame) -> str:
        return " · ".join(filter(None, (first(row, name) for name in ("method", "preset", "img_size", "step"))))

    def measured(row: pd.DataFrame) -> str:
        if first(row, "bar").endswith(" s"):
            return f"{float(first(row, 'ms')) / 1000:.0f} s"
        if peak := first(row, "peak_mb"):
            return f"{decimals(peak, 0)} MB"
        ratio = first(row, "ratio")
        return f"{decimals(ratio, 2)} × {first(row, 'base')}" if ratio else f"{decimals(first(row, 'ms'), 0)} ms"

    columns = [Column("what", what, False), Column("measured", measured), text("bar"), text("met")]
    return markdown_table(each(rows[rows["bar"] != ""]), columns)


# ---- the field


def published(rows: pd.DataFrame, results: Path) -> str:
    """The field's numbers, and what was counted and timed here of the systems that this package has."""
    counts = by(load(results, "params"), "method", "preset")
    times = load(results, "speed")
    times = by(times[(times["section"] == "methods") & (times["step"] == "segment")], "method", "preset")

    def ours(row: pd.DataFrame) -> str:
        return f"{first(row, 'ours_method')} {first(row, 'ours_preset')}"

    def counted(row: pd.DataFrame) -> str:
        here = counts.get(ours(row))
        sizes = [] if here is None else [decimals(first(here, name), 2, MILLIONS) for name in ("total", "trained")]
        return " / ".join(sizes)

    def timed(row: pd.DataFrame) -> str:
        here = times.get(ours(row))
        return "" if here is None else decimals(first(here, "ratio_b14"), 2)

    def two(header: str, one: str, other: str) -> Column:
        return Column(header, lambda row: slash(first(row, one), first(row, other)), False)

    columns = [text("system"), text("backbone"), text("regime"), text("source", "mIoU")]
    columns += [two("PASCAL-5i", "pascal_1", "pascal_5"), two("COCO-20i", "coco_1", "coco_5")]
    columns += [two("FSS-1000", "fss_1", "fss_5"), two("LVIS-92i", "lvis_1", "lvis_5")]
    columns += [two("M total / trained, published", "total_m", "trained_m")]
    columns += [Column("M total / trained, counted here", counted, False)]
    columns += [Column("segment / bare DINOv2-B, measured here", timed), text("note")]
    return "mIoU at 1 shot / 5 shots.\n\n" + markdown_table(each(rows), columns)


def slash(one: str, other: str) -> str:
    """ "one / other", a dash for one that is missing; empty without both."""
    return f"{one or '-'} / {other or '-'}" if one or other else ""


def families(rows: pd.DataFrame, _: Path) -> str:
    """What every encoder did at two sizes, and how many of its blocks did it."""
    columns = [text("family"), text("timm"), number("parameters", "M", 1, MILLIONS), text("patch", right=True)]
    columns += [text("size", "px", right=True), text("builds")]
    for step in ("predicts", "exports"):
        used = f"{step}_blocks"
        columns += [text(step), Column("blocks", lambda row, n=used: of(first(row, n), first(row, "blocks")))]
    columns += [number("agreement", "equal pixels, %", 2, 100), number("cpu_seconds", "CPU s", 0)]
    return markdown_table(each(rows.sort_values(["family", "parameters", "size"], key=_in_order)), columns)


def of(part: str, whole: str) -> str:
    """ "2 of 12"; empty where there is no part."""
    return f"{part} of {whole}" if part else ""


def kills(rows: pd.DataFrame, _: Path) -> str:
    """How often a command that was sent signals ended in the same files."""
    columns = [text("what", "command"), text("signal", right=True), text("kills", "times sent", right=True)]
    columns += [number("longest_s", "longest end, s", 1)]
    same = Column("rounds with equal files", lambda row: of(first(row, "same"), first(row, "rounds")))
    return markdown_table(each(rows), [*columns, same])


def mutants(rows: pd.DataFrame, _: Path) -> str:
    """How many changed lines of each file a test noticed, and why the others cannot be."""

    def count(result: str) -> Column:
        return Column(result, lambda group: str((group["result"] == result).sum()))

    reasons = Column("why", lambda group: "; ".join(filter(None, group["reason"])), False)
    lines = Column("lines", lambda group: str(len(group)))
    return markdown_table(by(rows, "file").values(), [text("file"), lines, count("killed"), count("survived"), reasons])


def _in_order(column: pd.Series) -> pd.Series:
    """Numbers as numbers, texts as texts."""
    return column if column.name == "family" else pd.to_numeric(column)


def inputs(rows: pd.DataFrame, _: Path) -> str:
    """CPU time of images and episodes at each side, then the memory of annotations."""
    columns = [
        text("what"),
        number("side", "px", 0),
        number("whole_ms", "whole, CPU ms"),
        number("reduced_ms", "reduced, CPU ms"),
    ]
    columns += [
        number("images_per_cpu_s", "images a CPU second", 0),
        number("ratio", "ratio", 2),
        text("bar"),
        text("met"),
    ]
    found = [markdown_table(each(rows[rows["side"] != ""]), columns)]
    held = [text("what"), number("annotations", "annotations", 0), number("held_bytes", "bytes held, each", 0)]
    held += [number("peak_bytes", "bytes at the peak, each", 0), number("cpu_s", "CPU s", 1)]
    rest = rows[rows["side"] == ""]
    return "\n".join(found + ([markdown_table(each(rest), held)] if len(rest) else []))


TABLES = {"input": inputs, "families": families, "params": params, "speed": speed, "bars": bars, "published": published}
TABLES |= {"kills": kills, "mutants": mutants}
