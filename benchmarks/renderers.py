"""One renderer a table of the READMEs: rows of `benchmarks/results` in, Markdown out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from answers import presence, prompts
from cells import (
    MILLIONS,
    ONE,
    TWO,
    WHOLE,
    Row,
    average,
    gmac,
    groups,
    interval,
    load,
    markdown_table,
    numbers,
    paired,
    run_name,
)
from comparisons import COMPARISONS
from provenance import COLUMNS


def params(rows: list[Row], _: Path) -> str:
    """Parameters and multiply-adds."""
    millions = ("total", "trained", "encoder", "adapter", "prompts", "decoder", "inference")
    columns = {"method": "method", "preset": "preset", "img_size": "px"} | {name: f"{name}, M" for name in millions}
    columns |= {"gmac": "GMAC an image", "gmac_encoder": "of it encoder", "gmac_remember": "GMAC to remember"}
    formats = {name: MILLIONS for name in millions} | {"img_size": WHOLE}
    return markdown_table(rows, columns, formats | {name: gmac for name in columns if name.startswith("gmac")})


def speed(rows: list[Row], _: Path) -> str:
    """Methods side by side, then the other sections with their bars."""
    steps = {"bare encoder": "bare", "remember": "remember", "segment": "segment", "one-shot episode": "episode"}
    wide = []
    for found in groups((r for r in rows if r["section"] == "methods"), lambda r: r["method"] + r["preset"]).values():
        by_step = {row["step"]: row for row in found}
        last = by_step["segment"]
        wide.append(last | {short: by_step[step]["ms"] for step, short in steps.items()})
    columns = {"method": "method", "preset": "preset", "img_size": "px", "bare": "its bare encoder(s), ms",
               "remember": "remember, ms", "segment": "segment, ms", "episode": "one-shot episode, ms",
               "ratio": "segment / its bare encoder", "ratio_b14": "segment / bare DINOv2-B",
               "peak_mb": "peak memory, MB"}  # fmt: skip
    formats = dict.fromkeys(("bare", "remember", "segment", "episode", "peak_mb", "img_size"), WHOLE)
    first = markdown_table(wide, columns, formats | {"ratio": TWO, "ratio_b14": TWO}) + "\n" if wide else ""
    rest = [row for row in rows if row["section"] != "methods"]
    columns = {"section": "section", "method": "method", "preset": "preset", "img_size": "px", "step": "step",
               "ms": "ms", "base": "beside", "ratio": "ratio", "peak_mb": "MB", "bar": "bar", "met": "met"}  # fmt: skip
    formats = {"ms": WHOLE, "ratio": TWO, "peak_mb": WHOLE, "img_size": WHOLE}
    return first + (markdown_table(rest, columns, formats) if rest else "")


def bars(rows: list[Row], _: Path) -> str:
    """What speed and memory are held to, and what was measured."""
    shown = []
    for row in (row for row in rows if row.get("bar")):
        value = f"{TWO(row['ratio'])} × {row['base']}" if row.get("ratio") else f"{WHOLE(row['ms'])} ms"
        value = f"{WHOLE(row['peak_mb'])} MB" if row.get("peak_mb") else value
        value = f"{float(row['ms']) / 1000:.0f} s" if row["bar"].endswith(" s") else value
        what = " · ".join(row[name] for name in ("method", "preset", "img_size", "step") if row.get(name))
        shown.append({"what": what, "value": value, "bar": row["bar"], "met": row["met"]})
    columns = {"what": "what", "value": "measured", "bar": "bar", "met": "met"}
    return markdown_table(shown, columns, {"value": str})


def published(rows: list[Row], results: Path) -> str:
    """The field's numbers, and what was counted and timed here of the systems that this package has."""
    here = {(row["method"], row["preset"]): row for row in load(results, "params")}
    times = {(r["method"], r["preset"]): r for r in load(results, "speed") if (r["section"], r["step"]) == SEGMENT}
    shown = []
    for row in rows:
        key = (row["ours_method"], row["ours_preset"])
        counts = here.get(key)
        extra = {"numbers": row["source"], "size": slash(row["total_m"], row["trained_m"])}
        if counts is not None:
            extra["counted"] = f"{MILLIONS(counts['total'])} / {MILLIONS(counts['trained'])}"
        if key in times:
            extra["timed"] = times[key]["ratio_b14"]
        sets = {name: slash(row[f"{name}_1"], row[f"{name}_5"]) for name in ("pascal", "coco", "fss", "lvis")}
        shown.append(row | extra | sets)
    columns = {"system": "system", "backbone": "backbone", "numbers": "mIoU", "pascal": "PASCAL-5i", "coco": "COCO-20i",
               "fss": "FSS-1000", "lvis": "LVIS-92i", "size": "M total / trained, published",
               "counted": "M total / trained, counted here",
               "timed": "segment / bare DINOv2-B, measured here"}  # fmt: skip
    return "mIoU at 1 shot / 5 shots.\n\n" + markdown_table(shown, columns, {"timed": TWO})


SEGMENT = ("methods", "segment")


def slash(first: str, second: str) -> str:
    """ "first / second", a dash for one that is missing; empty without both."""
    return f"{first or '-'} / {second or '-'}" if first or second else ""


def seeds(rows: list[Row], results: Path) -> str:
    """One row a method, over its seeds; then the differences, episode by episode."""
    shown = []
    for name, found in groups(rows, lambda row: row["method"]).items():
        extra = {"method": name, "seeds": str(len({row["seed"] for row in found})), "val": average(found, "val_miou"),
                 "novel": average(found, "novel_miou"), "interval": interval(found),
                 "fb": average(found, "novel_fb_iou"), "time": average(found, "seconds", 0)}  # fmt: skip
        shown.append(found[0] | extra)
    columns = {"method": "method", "seeds": "seeds", "val": "val mIoU", "novel": "novel mIoU",
               "interval": "95 % interval", "fb": "novel FB-IoU", "total": "M total", "trained": "M trained",
               "time": "s to train"}  # fmt: skip
    right = dict.fromkeys(("seeds", "val", "novel", "interval", "fb", "time"), str)
    table = markdown_table(shown, columns, right | {"total": MILLIONS, "trained": MILLIONS})
    return table + differences(load(results, "paired_tiny_seeds"))


def methods(rows: list[Row], results: Path) -> str:
    """Every system on the same episodes; FS-DINO's and the prototype's rows are those of the seeds."""
    times = {row["method"]: row for row in rows if row.get("segment_ms")}
    scored = [*load(results, "tiny_seeds"), *(row for row in rows if row.get("novel_miou"))]
    shown = []
    for name, found in groups(scored, lambda row: row["method"]).items():
        if times and name not in times:
            continue
        extra = {"seeds": str(len({row["seed"] for row in found})), "val": average(found, "val_miou"),
                 "novel": average(found, "novel_miou"), "interval": interval(found),
                 "fb": average(found, "novel_fb_iou")}  # fmt: skip
        shown.append(found[0] | times.get(name, {}) | extra)
    columns = {"method": "method", "seeds": "seeds", "val": "val mIoU", "novel": "novel mIoU",
               "interval": "95 % interval", "fb": "novel FB-IoU", "total": "M total", "trained": "M trained",
               "remember_ms": "remember, ms", "segment_ms": "segment, ms"}  # fmt: skip
    right = dict.fromkeys(("seeds", "val", "novel", "interval", "fb"), str) | {"total": MILLIONS, "trained": MILLIONS}
    return markdown_table(shown, columns, right | {"remember_ms": ONE, "segment_ms": ONE})


def distillation_curve(rows: list[Row], _: Path) -> str:
    """Distilled beside undistilled, by the number of annotated images."""
    by_name, shown = groups(rows, run_name), []
    for count in dict.fromkeys(name.split("-", 1)[1] for name in by_name):
        found, plain = by_name.get(f"distilled-{count}", []), by_name.get(f"undistilled-{count}", [])
        shown.append({"count": count, "seeds": str(len(found)), "distilled": average(found, "novel_miou"),
                      "undistilled": average(plain, "novel_miou"),
                      "difference": paired(found, plain, "novel_miou")})  # fmt: skip
    columns = {"count": "annotated images", "seeds": "seeds", "distilled": "distilled, novel mIoU",
               "undistilled": "undistilled, novel mIoU", "difference": "paired difference"}  # fmt: skip
    return markdown_table(shown, columns, dict.fromkeys(columns, str))


def options(rows: list[Row], _: Path) -> str:
    """One row an option, with paired differences to the default (or, without one, to the last option)."""
    by_name = groups(rows, run_name)
    base = by_name.get("default") or list(by_name.values())[-1]
    shown = []
    for name, found in by_name.items():
        extra = {"name": name, "seeds": str(len(found)), "val": average(found, "val_miou"),
                 "novel": average(found, "novel_miou"), "interval": interval(found)}  # fmt: skip
        if found is not base:
            extra |= {"dval": paired(found, base, "val_miou"), "dnovel": paired(found, base, "novel_miou")}
        shown.append(extra)
    against = run_name(base[0])
    columns = {"name": "option", "seeds": "seeds", "val": "val mIoU", "dval": f"val − {against}",
               "novel": "novel mIoU", "dnovel": f"novel − {against}", "interval": "95 % interval"}  # fmt: skip
    return markdown_table(shown, columns, dict.fromkeys(list(columns)[1:], str))


def photos(rows: list[Row], results: Path) -> str:
    """One row a method, one column a fold, means over the seeds; then the differences, episode by episode."""
    folds, shown = sorted({row["fold"] for row in rows}), []
    pooled = {row["a"]: row for row in load(results, "paired_photos") if not row["b"]}
    for name, found in groups(rows, lambda row: row["method"]).items():
        by_fold = groups(found, lambda row: row["fold"])
        cells = {f"fold{fold}": f"{mean(numbers(part, 'novel_miou')):.1f} ({interval(part)})"
                 for fold, part in by_fold.items()}  # fmt: skip
        whole = [mean(numbers(part, "novel_miou")) for part in by_fold.values()]
        overall = f"{mean(whole):.1f}" if len(by_fold) == len(folds) else ""
        if overall and (row := pooled.get(name)):
            overall += f" ({interval([row])})"
        shown.append(found[0] | cells | {"seeds": str(len({r["seed"] for r in found})), "mean": overall,
                                         "fb": average(found, "novel_fb_iou")})  # fmt: skip
    columns = {"method": "method", "seeds": "seeds"} | {f"fold{fold}": f"fold {fold}" for fold in folds}
    columns |= {"mean": "mean of folds", "fb": "FB-IoU", "total": "M total", "trained": "M trained"}
    right = dict.fromkeys([name for name in columns if name != "method"], str)
    table = markdown_table(shown, columns, right | {"total": MILLIONS, "trained": MILLIONS})
    return table + differences(load(results, "paired_photos"))


def ablation(rows: list[Row], results: Path) -> str:
    """The steps, for each number of shots, and what each part adds: paired by seed and paired by episode."""
    shots, shown = sorted({row.get("shots") or "1" for row in rows}), []
    for name, found in groups(rows, run_name).items():
        cells = {"name": name, "seeds": str(len({row["seed"] for row in found}))}
        for number in shots:
            some = [row for row in found if (row.get("shots") or "1") == number]
            cells.setdefault("val", average(some, "val_miou"))
            cells |= {f"novel{number}": average(some, "novel_miou"), f"interval{number}": interval(some)}
        shown.append(found[0] | cells)
    columns = {"name": "variant", "seeds": "seeds", "val": "val mIoU"}
    for number in shots:
        columns |= {f"novel{number}": f"novel mIoU, {number} shot", f"interval{number}": "95 % interval"}
    right = dict.fromkeys([name for name in columns if name != "name"], str)
    table = markdown_table(shown, columns | {"trained": "M trained"}, right | {"trained": MILLIONS})
    return table + by_seed(rows, shots) + differences(load(results, "paired_ablation"))


def by_seed(rows: list[Row], shots: Sequence[str]) -> str:
    """What each part of the ablation adds, paired by seed, with Student's interval over the seeds."""
    shown = []
    for part, a, b in COMPARISONS["ablation"]:
        cells = {"part": part, "pair": f"{a} − {b}"}
        for number in shots:
            some = groups((row for row in rows if (row.get("shots") or "1") == number), run_name)
            if a in some and b in some:
                cells.setdefault("val", paired(some[a], some[b], "val_miou"))
                cells[f"novel{number}"] = paired(some[a], some[b], "novel_miou")
        if len(cells) > 2:
            shown.append(cells)
    columns = {"part": "part", "pair": "difference of", "val": "val mIoU"}
    columns |= {f"novel{number}": f"novel mIoU, {number} shot" for number in shots}
    note = "\nPaired by seed (± is Student's 95 % interval over the seeds, empty for one seed):\n\n"
    right = dict.fromkeys(list(columns)[2:], str)
    return note + markdown_table(shown, columns, right) if shown else ""


def differences(rows: list[Row]) -> str:
    """Differences paired episode by episode, means over the seeds; nothing where none were made."""
    shown = [row | {"pair": f"{row['a']} − {row['b']}", "value": f"{float(row['difference']):+.1f}",
                    "interval": f"{float(row['low']):+.1f} to {float(row['high']):+.1f}"}
             for row in rows if row["b"]]  # fmt: skip
    if not shown:
        return ""
    columns = {"part": "part", "pair": "difference of", "shots": "shots", "seeds": "seeds", "episodes": "episodes",
               "value": "mIoU", "interval": "95 % interval"}  # fmt: skip
    note = "\nPaired by episode (bootstrap over the test episodes, means over the seeds):\n\n"
    return note + markdown_table(shown, columns, dict.fromkeys(list(columns)[2:], str))


def few_shot(rows: list[Row], _: Path) -> str:
    """One row a method, data set and number of shots: the folds, their mean and its interval."""
    folds, shown = sorted({row["fold"] for row in rows if row["fold"] != "mean"}), []
    for found in groups(rows, lambda r: "|".join((r["data"], r["shots"], r["protocol"], r["model"]))).values():
        by_fold = {row["fold"]: row for row in found}
        last = by_fold.get("mean", found[-1])
        cells = {f"fold{fold}": ONE(row["miou"]) for fold, row in by_fold.items() if fold != "mean"}
        shown.append(last | cells | {"value": f"{ONE(last['miou'])} ({interval([last])})"})
    columns = {"data": "data", "shots": "shots", "method": "method", "model": "as typed"}
    columns |= {f"fold{fold}": f"fold {fold}" for fold in folds} if len(folds) > 1 else {}
    columns |= {"value": "mIoU", "fb_iou": "FB-IoU", "episodes": "episodes", "total": "M total", "protocol": "protocol"}
    formats = {"shots": str, "value": str, "fb_iou": ONE, "episodes": str, "total": MILLIONS}
    return markdown_table(shown, columns, formats | dict.fromkeys([f"fold{fold}" for fold in folds], str))


def teacher(rows: list[Row], _: Path) -> str:
    """IoU of the bundled teacher from one prompt."""
    shown = [row | {name: f"{ONE(row[f'{name}_iou'])} ({interval([row], f'{name}_iou_low', f'{name}_iou_high')})"
                    for name in ("click", "box")} for row in rows]  # fmt: skip
    columns = {"split": "classes", "objects": "objects", "click": "IoU, one click", "box": "IoU, box"}
    return markdown_table(shown, columns, dict.fromkeys(("objects", "click", "box"), str))


def mini_sam2(rows: list[Row], _: Path) -> str:
    """IoU of the mini SAM2 from one prompt, and tracked into another view."""
    prompts = {"click": "IoU, one click", "box": "IoU, box", "track": "IoU, tracked into another view"}
    shown = [row | {name: f"{ONE(row[f'{name}_iou'])} ({interval([row], f'{name}_iou_low', f'{name}_iou_high')})"
                    for name in prompts} for row in rows]  # fmt: skip
    return markdown_table(
        shown, {"split": "classes", "objects": "objects", **prompts}, {"objects": WHOLE} | dict.fromkeys(prompts, str)
    )


def plain(rows: list[Row], _: Path) -> str:
    """Every column but those of provenance, as it is."""
    return markdown_table(rows, {name: name for name in rows[0] if name not in COLUMNS})


TABLES: dict[str, Callable[[list[Row], Path], str]] = {
    "params": params, "speed": speed, "published": published, "tiny_seeds": seeds, "teacher": teacher,
    "distillation_curve": distillation_curve, "choices": options, "ablation": ablation, "photos": photos,
    "few_shot": few_shot, "methods": methods, "mini_sam2": mini_sam2, "prompts": prompts, "presence": presence,
    "bars": bars,
}  # fmt: skip
SOURCES = {"bars": "speed"}  # tables that are a view of another one's rows
