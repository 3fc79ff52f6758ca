"""The README's plots: `python benchmarks/figures.py [NAME ...]` draws `results/NAME.csv` as PNG and SVG beside it.

    ablation              mIoU of each variant, and what each part adds, paired episode by episode
    distillation_curve    distilled and undistilled over the number of annotated images, and their difference by seed

Colours are those of Okabe and Ito (2008); series also differ in shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
from cells import T95, Row, groups, load, numbers, run_name
from comparisons import COMPARISONS
from matplotlib.figure import Figure
from provenance import ROOT

RESULTS = ROOT / "benchmarks" / "results"
BLUE, VERMILION, INK = "#0072B2", "#D55E00", "#222222"
SERIES = ((BLUE, "o"), (VERMILION, "s"))
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.0, "axes.grid": True,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "svg.hashsalt": "fsdino", "legend.frameon": False,
}  # fmt: skip


def point(axes: Any, x: float, y: float, ends: tuple[float, float], colour: str, shape: str, **kwargs: Any) -> None:
    """A value with its interval, lying."""
    axes.plot(ends, (y, y), color=colour, linewidth=1.4, solid_capstyle="butt")
    axes.plot([x], [y], shape, color=colour, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6, **kwargs)


def shots_of(rows: Sequence[Row]) -> list[str]:
    """The numbers of shots of the rows, ascending."""
    return sorted({row.get("shots") or "1" for row in rows}, key=int)


def ablation(results: Path) -> Figure:
    """Variants on the left, differences on the right.

    Args:
        results: folder of ablation.csv and, for the right side, paired_ablation.csv.
    """
    rows, pairs = load(results, "ablation"), [row for row in load(results, "paired_ablation") if row["b"]]
    names, shots = list(groups(rows, run_name)), shots_of(rows)
    figure = Figure(figsize=(9.0, 0.42 * max(len(names), len(COMPARISONS["ablation"])) + 1.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1)) if pairs else (figure.subplots(), None)
    for k, number in enumerate(shots):
        colour, shape = SERIES[k % len(SERIES)]
        for i, name in enumerate(names):
            y = _offset(i, k, len(shots))
            some = [row for row in rows if run_name(row) == name and (row.get("shots") or "1") == number]
            values = numbers(some, "novel_miou")
            left.plot(values, [y] * len(values), "|", color=colour, markersize=7, alpha=0.55)
            if values:
                ends = (mean(numbers(some, "low")), mean(numbers(some, "high")))
                point(left, mean(values), y, ends, colour, shape, label=f"{number} shot" if i == 0 else None)
    _names(left, names)
    left.set_xlabel("novel mIoU, % (ticks: seeds; bars: 95 %)")
    if len(shots) > 1:
        figure.legend(loc="outside upper left", ncols=len(shots), handletextpad=0.2)
    if right is not None:
        _differences(right, pairs, shots)
    return figure


def _differences(axes: Any, pairs: Sequence[Row], shots: Sequence[str]) -> None:
    parts = [part for part, _, _ in COMPARISONS["ablation"] if any(row["part"] == part for row in pairs)]
    axes.axvline(0, color=INK, linewidth=0.8)
    for k, number in enumerate(shots):
        colour, shape = SERIES[k % len(SERIES)]
        for row in pairs:
            if row["shots"] == number and row["part"] in parts:
                y = _offset(parts.index(row["part"]), k, len(shots))
                ends = (float(row["low"]), float(row["high"]))
                point(axes, float(row["difference"]), y, ends, colour, shape)
    _names(axes, [f"+ {part}" for part in parts])
    axes.set_xlabel("what it adds to mIoU (bars: paired 95 %)")


def distillation_curve(results: Path) -> Figure:
    """Two curves over the number of annotated images; below, their difference seed by seed.

    Args:
        results: folder of distillation_curve.csv.
    """
    rows = load(results, "distillation_curve")
    kinds = groups(rows, lambda row: row["run"].split("-", 1)[0])
    counts = sorted({int(row["train_images"]) for row in rows})
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for (kind, some), (colour, shape) in zip(sorted(kinds.items()), SERIES):
        by_count = {n: numbers([r for r in some if int(r["train_images"]) == n], "novel_miou") for n in counts}
        by_count = {n: values for n, values in by_count.items() if values}
        for n, values in by_count.items():
            upper.plot([n] * len(values), values, "_", color=colour, markersize=7, alpha=0.55)
            _upright(upper, n, values, colour)
        means = [mean(values) for values in by_count.values()]
        upper.plot(list(by_count), means, f"{shape}-", color=colour, markersize=5.5, linewidth=1.2, label=kind,
                   markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    lower.axhline(0, color=INK, linewidth=0.8)
    for n in counts:
        values = seed_differences(kinds, n)
        lower.plot([n] * len(values), values, "_", color=INK, markersize=8)
        _upright(lower, n, values, INK)
        if values:
            lower.plot([n], [mean(values)], "o", color=INK, markersize=4.5)
    upper.set_xscale("log")
    lower.set_xticks(counts, [str(n) for n in counts])
    lower.minorticks_off()
    upper.set_ylabel("novel mIoU, %")
    lower.set_ylabel("distilled −\nundistilled")
    lower.set_xlabel("annotated base images (dashes: seeds; bars: 95 % over seeds, from two seeds on)")
    upper.legend(loc="lower right")
    return figure


def seed_differences(kinds: dict[str, list[Row]], count: int) -> list[float]:
    """Distilled minus undistilled for every seed that has both, at one number of images."""
    both = [{row["seed"]: float(row["novel_miou"]) for row in kinds.get(kind, [])
             if int(row["train_images"]) == count} for kind in ("distilled", "undistilled")]  # fmt: skip
    return [value - both[1][seed] for seed, value in both[0].items() if seed in both[1]]


def student_ends(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean over seeds (Student's t); None below two values."""
    if len(values) < 2:
        return None
    half = T95.get(len(values) - 1, 1.96) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def _upright(axes: Any, x: float, values: Sequence[float], colour: str) -> None:
    ends = student_ends(values)
    if ends is not None:
        axes.plot((x, x), ends, color=colour, linewidth=1.4, solid_capstyle="butt")


def _offset(place: int, series: int, count: int) -> float:
    """Height of a series' point in its row."""
    return place + (series - (count - 1) / 2) * 0.26


def _names(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


FIGURES: dict[str, Callable[[Path], Figure]] = {"ablation": ablation, "distillation_curve": distillation_curve}


def draw(name: str, results: Path) -> list[Path]:
    """Write one figure.

    Args:
        name: a key of `FIGURES`.
        results: folder of the CSVs, where the images go too.

    Returns:
        The PNG and the SVG.

    Raises:
        FileNotFoundError: there are no results of that name.
    """
    if not load(results, name):
        raise FileNotFoundError(f"there is no '{results / name}.csv'; run `python benchmarks/experiments.py {name}`.")
    with mpl.rc_context(STYLE):
        figure = FIGURES[name](results)
        paths = [results / f"{name}.{kind}" for kind in ("png", "svg")]
        figure.savefig(paths[0], dpi=160, facecolor="white")
        figure.savefig(paths[1], facecolor="white", metadata={"Date": None})
    return paths


def main() -> None:
    """Draw the figures asked for, or all that have results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *FIGURES], help="figures; all that have results when left out")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    for name in chosen.names or [name for name in FIGURES if load(chosen.results, name)]:
        print("  ".join(str(path) for path in draw(name, chosen.results)))


if __name__ == "__main__":
    main()
