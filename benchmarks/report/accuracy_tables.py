"""Tables on how well methods segment: seeds, grids of runs, prompts and the answer 'absent'."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks.accuracy.grids import BASES, EQUAL
from benchmarks.common import by, load, with_variant
from benchmarks.report import markdown as md
from benchmarks.report.markdown import Column, decimals, first, interval, markdown_table, mean_of, text


def seeds(rows: pd.DataFrame, results: Path) -> str:
    """One row a method, over its seeds; then the differences, episode by episode."""
    columns = [text("method"), *SCORES, md.TOTAL, md.TRAINED]
    return markdown_table(by(rows, "method").values(), columns) + differences(load(results, "paired_tiny_seeds"))


SCORES = (md.SEEDS, mean_of("val_miou", "val mIoU"), mean_of("novel_miou", "novel mIoU"), md.INTERVAL,
          mean_of("novel_fb_iou", "novel FB-IoU"))  # fmt: skip


def methods(rows: pd.DataFrame, results: Path) -> str:
    """Every system that was timed, on the same episodes; FS-DINO's and the prototype's rows are those of the seeds."""
    timed = rows[rows["segment_ms"] != ""][["method", "remember_ms", "segment_ms", "total", "trained"]]
    timed = pd.concat([timed, timed[timed["method"] == "FS-DINO full"].assign(method=EQUAL)])  # one network
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


def references(rows: pd.DataFrame, _: Path) -> str:
    """One row a way, for each world, number of references and side."""
    columns = [text(name) for name in ("world", "shots", "classes", "way")]
    columns += [md.number("miou", "mIoU"), Column("difference", gain), text("episodes", right=True)]
    return markdown_table(md.each(rows), columns)


TABLES = {
    "references": references, "tiny_seeds": seeds, "methods": methods, "distillation_curve": distillation_curve,
    "ablation": ablation, "few_shot": few_shot, "transfer": few_shot,
    "teacher": from_prompts, "mini_sam2": from_prompts, "prompts": prompts, "presence": presence,
}  # fmt: skip
