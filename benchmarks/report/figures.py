"""The README's plots: `python -m benchmarks.report.figures` draws `results/NAME.csv` as PNG and SVG beside it.

    ablation              mIoU of each variant, and how it differs from its base, paired episode by episode
    distillation_curve    distilled and undistilled over the number of annotated images, and their difference by seed

Colours are those of Okabe and Ito (2008); series also differ in shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import RESULTS, load, run_script, with_variant
from benchmarks.report.markdown import half_width, numbers

BLUE, VERMILION, INK = "#0072B2", "#D55E00", "#222222"
SERIES = ((BLUE, "o"), (VERMILION, "s"))
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.0, "axes.grid": True,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "svg.hashsalt": "fsdino", "legend.frameon": False,
}  # fmt: skip


def ablation(results: Path) -> Figure:
    """Variants on the left; on the right, where `paired_ablation.csv` is there, how they differ from their base."""
    rows, pairs = with_variant(load(results, "ablation")), load(results, "paired_ablation")
    names, look = list(rows["variant"].unique()), (SERIES[0], SERIES[1])
    pairs = pairs[pairs["b"] != ""] if len(pairs) else pairs
    figure = Figure(figsize=(9.0, 0.26 * len(names) + 1.3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True) if len(pairs) else (figure.subplots(), None)
    for i, name in enumerate(names):
        some = rows[rows["variant"] == name]
        values = numbers(some, "novel_miou")
        left.plot(values, [i] * len(values), "|", color=BLUE, markersize=7, alpha=0.55)
        if values:
            ends = (float(np.mean(numbers(some, "low"))), float(np.mean(numbers(some, "high"))))
            point(left, (np.mean(values), i), ends, look[0])
    _names(left, names)
    left.set_xlabel("novel mIoU, % (ticks: seeds; bars: 95 %)")
    if right is not None:
        right.axvline(0, color=INK, linewidth=0.8)
        for row in pairs.to_dict("records"):
            ends = (float(row["low"]), float(row["high"]))
            point(right, (float(row["difference"]), names.index(row["a"])), ends, look[row["b"] != "full"])
        right.grid(axis="y", visible=False)
        right.set_xlabel("less the full model (squares: less another), paired 95 %")
    return figure


def distillation_curve(results: Path) -> Figure:
    """Two curves over the number of annotated images; below, their difference seed by seed."""
    rows = load(results, "distillation_curve")
    rows = rows.assign(kind=rows["run"].str.split("-").str[0], train_images=rows["train_images"].astype(int))
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for (kind, some), (colour, shape) in zip(rows.groupby("kind"), SERIES):
        by_count = {count: numbers(found, "novel_miou") for count, found in some.groupby("train_images")}
        for count, values in by_count.items():
            upper.plot([count] * len(values), values, "_", color=colour, markersize=7, alpha=0.55)
            _upright(upper, count, values, colour)
        means = [np.mean(values) for values in by_count.values()]
        upper.plot(list(by_count), means, f"{shape}-", color=colour, markersize=5.5, linewidth=1.2, label=kind,
                   markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    lower.axhline(0, color=INK, linewidth=0.8)
    counts = sorted(rows["train_images"].unique())
    for count in counts:
        values = seed_differences(rows[rows["train_images"] == count])
        lower.plot([count] * len(values), values, "_", color=INK, markersize=8)
        _upright(lower, count, values, INK)
        if values:
            lower.plot([count], [np.mean(values)], "o", color=INK, markersize=4.5)
    upper.set_xscale("log")
    lower.set_xticks(counts, [str(count) for count in counts])
    lower.minorticks_off()
    upper.set_ylabel("novel mIoU, %")
    lower.set_ylabel("distilled −\nundistilled")
    lower.set_xlabel("annotated base images (dashes: seeds; bars: 95 % over seeds, from two seeds on)")
    upper.legend(loc="lower right")
    return figure


def seed_differences(rows: pd.DataFrame) -> list[float]:
    """Distilled minus undistilled for every seed that has both."""
    scores = rows.assign(score=pd.to_numeric(rows["novel_miou"])).pivot(index="seed", columns="kind", values="score")
    if not {"distilled", "undistilled"} <= set(scores):
        return []
    return (scores["distilled"] - scores["undistilled"]).dropna().tolist()


def point(
    axes: Any, at: tuple[float, float], ends: tuple[float, float], look: tuple[str, str], label: str | None = None
) -> None:
    """A value (x, y) with its lying interval, in a colour and a shape."""
    axes.plot(ends, (at[1], at[1]), color=look[0], linewidth=1.4, solid_capstyle="butt")
    axes.plot([at[0]], [at[1]], look[1], color=look[0], markersize=5.5, markeredgecolor="white", markeredgewidth=0.6,
              label=label)  # fmt: skip


def _upright(axes: Any, x: float, values: Sequence[float], colour: str) -> None:
    if len(values) > 1:
        middle, half = np.mean(values), half_width(values)
        axes.plot((x, x), (middle - half, middle + half), color=colour, linewidth=1.4, solid_capstyle="butt")


def _names(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


FIGURES: dict[str, Callable[[Path], Figure]] = {"ablation": ablation, "distillation_curve": distillation_curve}


def draw(name: str, results: Path) -> list[Path]:
    """Write one figure beside its CSV, as PNG and as SVG.

    Raises:
        FileNotFoundError: there are no results of that name.
    """
    if load(results, name).empty:
        raise FileNotFoundError(
            f"there is no '{results / name}.csv'; run `python -m benchmarks.accuracy.experiments {name}`."
        )
    with mpl.rc_context(STYLE):
        figure = FIGURES[name](results)
        paths = [results / f"{name}.{kind}" for kind in ("png", "svg")]
        figure.savefig(paths[0], dpi=160, facecolor="white")
        figure.savefig(paths[1], facecolor="white", metadata={"Date": None})
    return paths


def main(names: list[str] | None = None, results: Path = RESULTS) -> None:
    """Draw the named figures, or all that have results."""
    wanted: Iterable[str] = names or [name for name in FIGURES if not load(results, name).empty]
    for name in wanted:
        print("  ".join(str(path) for path in draw(name, results)))


if __name__ == "__main__":
    run_script(main)
