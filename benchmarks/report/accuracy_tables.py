"""Tables on how well methods segment: seeds, folds, grids of runs, prompts and the answer 'absent'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.accuracy.grids import BASES
from benchmarks.common import by, load, with_variant
from benchmarks.report import markdown as md
from benchmarks.report.markdown import Column, decimals, first, interval, markdown_table, mean_of, text


def seeds(rows: pd.DataFrame, results: Path) -> str:
    """One row a method, over its seeds; then the differences, episode by episode."""
    columns = [text("method"), *SCORES, md.TOTAL, md.TRAINED, mean_of("seconds", "s to train", 0)]
    return markdown_table(by(rows, "method").values(), columns) + differences(load(results, "paired_tiny_seeds"))


SCORES = (md.SEEDS, mean_of("val_miou", "val mIoU"), mean_of("novel_miou", "novel mIoU"), md.INTERVAL,
          mean_of("novel_fb_iou", "novel FB-IoU"))  # fmt: skip


def methods(rows: pd.DataFrame, results: Path) -> str:
    """Every system that was timed, on the same episodes; FS-DINO's and the prototype's rows are those of the seeds."""
    timed = rows[rows["segment_ms"] != ""][["method", "remember_ms", "segment_ms", "total", "trained"]]
    scored = pd.concat([load(results, "tiny_seeds"), rows[rows["novel_miou"] != ""]])
    scored = scored.drop(columns=list(timed.columns[1:]), errors="ignore").merge(timed, on="method")
    columns = [text("method"), *SCORES, md.TOTAL, md.TRAINED]
    columns += [md.number("remember_ms", "remember, ms"), md.number("segment_ms", "segment, ms")]
    return markdown_table(by(scored, "method").values(), columns)


def distillation_curve(rows: pd.DataFrame, _: Path) -> str:
    """Distilled beside undistilled, by the number of annotated images."""
    rows = with_variant(rows)
    rows = rows.assign(kind=rows["variant"].str.split("-").str[0], count=rows["variant"].str.split("-").str[1])

    def kind(group: pd.DataFrame, name: str) -> pd.DataFrame:
        return group[group["kind"] == name]

    columns = [
        text("count", "annotated images", right=True),
        Column("seeds", lambda group: str(len(kind(group, "distilled")))),
        Column("distilled, novel mIoU", lambda group: md.average(kind(group, "distilled"), "novel_miou")),
        Column("undistilled, novel mIoU", lambda group: md.average(kind(group, "undistilled"), "novel_miou")),
        Column("paired difference",
               lambda group: md.paired(kind(group, "distilled"), kind(group, "undistilled"), "novel_miou")),
    ]  # fmt: skip
    return markdown_table(by(rows, "count").values(), columns)


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


def ablation(rows: pd.DataFrame, results: Path) -> str:
    """One row a variant, with its differences to the whole model, or to the bare one."""
    groups, pairs = by(with_variant(rows), "variant"), load(results, "paired_ablation")

    def base(group: pd.DataFrame) -> str:
        name = first(group, "variant")
        return "" if BASES.get(name, name) == name or BASES[name] not in groups else BASES[name]

    def seeded(group: pd.DataFrame) -> str:
        return md.paired(group, groups[base(group)], "val_miou") if base(group) else ""

    def drawn(group: pd.DataFrame) -> str:
        found = pairs[(pairs["a"] == first(group, "variant")) & (pairs["b"] != "")] if len(pairs) else pairs
        return "" if found.empty else gain(found)

    columns = [text("variant"), md.SEEDS, Column("beside", base, False), mean_of("val_miou", "val mIoU")]
    columns += [Column("difference", seeded), mean_of("novel_miou", "novel mIoU"), Column("difference", drawn)]
    columns += [md.TRAINED, mean_of("time", "time after the encoder", 2)]
    return markdown_table(groups.values(), columns)


def gain(row: pd.DataFrame) -> str:
    """A difference with its interval; empty beside itself."""
    ends = [float(first(row, name)) for name in ("difference", "low", "high")]
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*ends) if any(ends) else ""


PAIR = Column("difference of", lambda row: f"{first(row, 'a')} − {first(row, 'b')}", False)


def differences(rows: pd.DataFrame) -> str:
    """Differences paired episode by episode, means over the seeds; nothing where none were made."""
    rows = rows if rows.empty else rows[rows["b"] != ""]
    if rows.empty:
        return ""

    def signed(row: pd.DataFrame, name: str) -> str:
        return f"{float(first(row, name)):+.1f}"

    columns = [text("part"), PAIR]
    columns += [text(name, right=True) for name in ("shots", "seeds", "episodes")]
    columns += [Column("mIoU", lambda row: signed(row, "difference"))]
    columns += [Column("95 % interval", lambda row: f"{signed(row, 'low')} to {signed(row, 'high')}")]
    # Whether episodes or query images were drawn is what each row says of itself.
    drawn = " or ".join(dict.fromkeys(rows["protocol"]))
    note = f"\nPaired by episode ({drawn}; means over the seeds):\n\n"
    return note + markdown_table(md.each(rows), columns)


def few_shot(rows: pd.DataFrame, _: Path) -> str:
    """One row a method, data set and number of shots: the folds, their mean and its interval."""
    folds = sorted({fold for fold in rows["fold"] if fold != "mean"})

    def fold_column(fold: str) -> Column:
        return Column(f"fold {fold}", lambda group: decimals(first(group[group["fold"] == fold], "miou"), 1))

    def last(group: pd.DataFrame) -> pd.DataFrame:
        return group.iloc[[-1]]  # the mean of the folds, or the only fold

    columns = [text("data"), text("shots", right=True), text("method"), text("model", "as typed")]
    columns += [fold_column(fold) for fold in folds] if len(folds) > 1 else []
    columns += [Column("mIoU", lambda group: f"{decimals(first(last(group), 'miou'), 1)} ({interval(last(group))})")]
    columns += [Column("FB-IoU", lambda group: decimals(first(last(group), "fb_iou"), 1))]
    columns += [Column("episodes", lambda group: first(last(group), "episodes")), md.TOTAL, text("protocol")]
    return markdown_table(by(rows, "data", "shots", "protocol", "model").values(), columns)


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


# ---- prompts and presence


def from_prompts(rows: pd.DataFrame, _: Path) -> str:
    """IoU of a promptable model from one prompt, and tracked into another view where it can."""
    prompts = {"click": "IoU, one click", "box": "IoU, box", "track": "IoU, tracked into another view"}

    def iou(name: str) -> Column:
        ends = (f"{name}_iou_low", f"{name}_iou_high")
        return Column(prompts[name],
                      lambda row: f"{decimals(first(row, f'{name}_iou'), 1)} ({interval(row, *ends)})")  # fmt: skip

    there = [iou(name) for name in prompts if f"{name}_iou" in rows]
    return markdown_table(md.each(rows), [text("split", "classes"), md.number("objects", "objects", 0), *there])


DRAWN = {"drawn, trained decoder": "trained decoder", "drawn, SAM's decoder": "SAM's decoder",
         "drawn": "with a second look", "drawn, teacher": "the teacher itself",
         "found": "then found elsewhere"}  # fmt: skip
CORRECTED = {"corrected": "corrections", "not this": "a second class in the image: IoU",
             "mistaken": "share of it taken for the object"}  # fmt: skip


def prompts(rows: pd.DataFrame, _: Path) -> str:
    """Kinds of references, then corrections and 'not this'."""

    def drawn(part: str) -> Column:
        def cell(group: pd.DataFrame) -> str:
            row = group[group["part"] == part]
            ends = f" ({interval(row)})" if part == "found" else ""
            return decimals(first(row, "iou"), 1) + ends

        return Column(DRAWN[part], cell)

    def given(row: pd.DataFrame) -> str:
        negative = "" if first(row, "part") == "corrected" else " a negative reference"
        return first(row, "prompt") + negative

    kinds = by(rows[rows["part"].isin(DRAWN)], "prompt").values()
    table = markdown_table(kinds, [text("prompt", "reference"), *map(drawn, DRAWN)])
    columns = [Column("", lambda row: CORRECTED[first(row, "part")], False), Column("given", given, False)]
    columns += [Column("percent", lambda row: f"{decimals(first(row, 'iou'), 1)} ({interval(row)})")]
    columns += [text("number", "episodes", right=True)]
    return table + "\n" + markdown_table(md.each(rows[rows["part"].isin(CORRECTED)]), columns)


def presence(rows: pd.DataFrame, _: Path) -> str:
    """How well signals tell presence, and what the gate does to masks."""
    shown = {
        "auroc": "AUROC",
        "rank": "rank correlation with IoU",
        "error": "error at one half",
        "missed": "present, missed",
    }
    shown |= {"false_alarms": "absent, seen", "ece": "calibration error"}
    shown |= {"miou_there": "mIoU, all present", "miou_there_gated": "gated"}
    shown |= {"miou_all": "mIoU, half absent", "miou_all_gated": "gated, half absent"}
    return markdown_table(md.each(rows), [text("signal"), *(md.number(name, header) for name, header in shown.items())])


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


def references(rows: pd.DataFrame, _: Path) -> str:
    """One row a way, for each world, number of references and side."""
    columns = [text(name) for name in ("world", "shots", "classes", "way")]
    columns += [md.number("miou", "mIoU"), Column("difference", gain), text("episodes", right=True)]
    return markdown_table(md.each(rows), columns)


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


TABLES = {
    "compared": compared, "edges": edges, "instances": instances, "references": references, "lists": lists,
    "tiny_seeds": seeds, "methods": methods, "distillation_curve": distillation_curve,
    "ablation": ablation, "photos": photos, "photos_mean": photos_mean, "few_shot": few_shot, "transfer": few_shot,
    "chain": chain, "teacher": from_prompts, "mini_sam2": from_prompts, "prompts": prompts, "presence": presence,
}  # fmt: skip
