"""Write `benchmarks/results/*.csv` into the README: `python benchmarks/table.py [--check]`.

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->` and is made from `NAME*.csv` alone; what stands
there is replaced. Numbers of the field are marked as published, everything else was measured here, and the line under a
table says on what machine.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from provenance import COLUMNS, ROOT, read_rows

Row = dict[str, str]
Format = Callable[[str], str]
MARKER = re.compile(r"<!-- table:(\w+) -->\n(.*?)<!-- /table:\1 -->", re.DOTALL)
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
    """A run's name without seed and fold."""
    return re.sub(r"-(seed|fold)\d+", "", row["run"])


# ---- one renderer a table


def params(rows: list[Row], _: Path) -> str:
    """Parameters and multiply-adds."""
    millions = ("total", "trained", "encoder", "adapter", "prompts", "decoder", "inference")
    columns = {"method": "method", "preset": "preset", "img_size": "px"} | {name: f"{name}, M" for name in millions}
    columns |= {"gmac": "GMAC a picture", "gmac_encoder": "of it encoder", "gmac_remember": "GMAC to remember"}
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


def seeds(rows: list[Row], _: Path) -> str:
    """One row a method, over its seeds."""
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
    return markdown_table(shown, columns, right | {"total": MILLIONS, "trained": MILLIONS})


def distillation_curve(rows: list[Row], _: Path) -> str:
    """Distilled beside undistilled, by the number of annotated pictures."""
    by_name, shown = groups(rows, run_name), []
    for count in dict.fromkeys(name.split("-", 1)[1] for name in by_name):
        found, plain = by_name.get(f"distilled-{count}", []), by_name.get(f"undistilled-{count}", [])
        shown.append({"count": count, "seeds": str(len(found)), "distilled": average(found, "novel_miou"),
                      "undistilled": average(plain, "novel_miou"),
                      "difference": paired(found, plain, "novel_miou")})  # fmt: skip
    columns = {"count": "annotated pictures", "seeds": "seeds", "distilled": "distilled, novel mIoU",
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


def photos(rows: list[Row], _: Path) -> str:
    """One row a method, one column a fold, means over the seeds."""
    folds, shown = sorted({row["fold"] for row in rows}), []
    for found in groups(rows, lambda row: row["method"]).values():
        by_fold = groups(found, lambda row: row["fold"])
        cells = {f"fold{fold}": f"{mean(numbers(part, 'novel_miou')):.1f} ({interval(part)})"
                 for fold, part in by_fold.items()}  # fmt: skip
        whole = [mean(numbers(part, "novel_miou")) for part in by_fold.values()]
        overall = f"{mean(whole):.1f}" if len(by_fold) == len(folds) else ""
        shown.append(found[0] | cells | {"seeds": str(len({r["seed"] for r in found})), "mean": overall,
                                         "fb": average(found, "novel_fb_iou")})  # fmt: skip
    columns = {"method": "method", "seeds": "seeds"} | {f"fold{fold}": f"fold {fold}" for fold in folds}
    columns |= {"mean": "mean of folds", "fb": "FB-IoU", "total": "M total", "trained": "M trained"}
    right = dict.fromkeys([name for name in columns if name != "method"], str)
    return markdown_table(shown, columns, right | {"total": MILLIONS, "trained": MILLIONS})


def teacher(rows: list[Row], _: Path) -> str:
    """IoU of the bundled teacher from one prompt."""
    shown = [row | {name: f"{ONE(row[f'{name}_iou'])} ({interval([row], f'{name}_iou_low', f'{name}_iou_high')})"
                    for name in ("click", "box")} for row in rows]  # fmt: skip
    columns = {"split": "classes", "objects": "objects", "click": "IoU, one click", "box": "IoU, box"}
    return markdown_table(shown, columns, dict.fromkeys(("objects", "click", "box"), str))


def plain(rows: list[Row], _: Path) -> str:
    """Every column but those of provenance, as it is."""
    return markdown_table(rows, {name: name for name in rows[0] if name not in COLUMNS})


TABLES: dict[str, Callable[[list[Row], Path], str]] = {
    "params": params, "speed": speed, "published": published, "tiny_seeds": seeds, "teacher": teacher,
    "distillation_curve": distillation_curve, "choices": options, "ablation": options, "photos": photos,
}  # fmt: skip


# ---- into the README


def load(results: Path, name: str) -> list[Row]:
    """The rows of `NAME*.csv`, several files one after the other."""
    return [row for path in sorted(results.glob(f"{name}*.csv")) for row in read_rows(path)]


def origin(rows: Sequence[Row]) -> str:
    """One line on where rows come from; nothing for published numbers."""
    seen = {name: list(dict.fromkeys(row[name] for row in rows if row.get(name))) for name in COLUMNS}
    if not seen["machine"]:
        return ""
    units = {"machine": "{}", "threads": "{} threads", "torch": "torch {}", "precision": "{}", "protocol": "{}"}
    parts = [text.format(" or ".join(seen[name])) for name, text in units.items() if seen[name]]
    return f"\n<sub>{' · '.join(parts)}</sub>\n"


def render(name: str, results: Path) -> str:
    """What stands between the markers of a table."""
    rows = load(results, name)
    if not rows:
        return f"_There is no `benchmarks/results/{name}.csv` yet._\n"
    return "\n" + TABLES.get(name, plain)(rows, results) + origin(rows) + "\n"


def fill(text: str, results: Path) -> str:
    """A document with every table between its markers replaced.

    Args:
        text: Markdown.
        results: Folder of the CSVs.

    Returns:
        The new text; the same again when filled again.

    Raises:
        ValueError: If a marker is not closed.
    """
    opened = re.findall(r"<!-- table:(\w+) -->", text)
    if missing := [name for name in opened if f"<!-- /table:{name} -->" not in text]:
        raise ValueError(f"the marker of table {missing[0]!r} is not closed; add <!-- /table:{missing[0]} --> below.")
    return MARKER.sub(lambda m: f"<!-- table:{m[1]} -->\n{render(m[1], results)}<!-- /table:{m[1]} -->", text)


def main() -> None:
    """Fill the README, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a table is out of date")
    chosen = parser.parse_args()
    old = chosen.readme.read_text(encoding="utf-8")
    new = fill(old, chosen.results)
    if chosen.check:
        sys.exit(f"{chosen.readme.name} is out of date; run `make tables`." if new != old else 0)
    chosen.readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
