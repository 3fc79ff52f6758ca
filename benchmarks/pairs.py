"""Differences between runs on the same episodes: `python benchmarks/pairs.py GRID` writes `results/paired_GRID.csv`.

Reads the rows that `experiments.py` left in `runs/experiments/GRID/RUN/evaluate/RUN`. Both runs of a pair are drawn
alike in every bootstrap sample, folds apart; with several seeds the mean over the seeds is what is drawn. The interval
speaks of the choice of test episodes, not of the choice of seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cells import Row, groups, run_name
from comparisons import COMPARISONS
from provenance import ROOT, provenance, read_rows, write_rows

from fsdino.evaluation.measure import read_rows as read_episodes
from fsdino.metrics.few_shot import percentile_interval, resampled_miou

RESULTS, RUNS = ROOT / "benchmarks" / "results", ROOT / "runs" / "experiments"
BASELINES = ("prototype", "prototype, random encoder", "all foreground")


def episodes_of(row: Row, grid: str, runs: Path) -> pd.DataFrame:
    """The per-episode rows of one row of a grid's CSV, in the order of the list.

    Args:
        row: with run, method, fold and shots.
        grid: the grid.
        runs: folder of all grids' runs.

    Raises:
        FileNotFoundError: the run's folder is gone; the grid has to be run again to pair it.
    """
    name = row["run"]
    if row["method"] in BASELINES:
        name = row["method"].replace(", ", "-").replace(" ", "-")
    base = runs / grid / row["run"] / "evaluate"
    places = [base / f"{name}-{row.get('shots') or 1}shot", base / name]
    folder = next((place for place in places if list(place.glob("rows.*.csv"))), None)
    if folder is None:
        raise FileNotFoundError(f"no rows in '{places[-1]}'; run `python benchmarks/experiments.py {grid} --only "
                                f"{row['run']}` again after taking the run out of results/{grid}.csv.")  # fmt: skip
    rows = read_episodes(folder).assign(fold=int(row.get("fold") or 0))
    return rows.sort_values("episode", ignore_index=True)


def samples(rows: Iterable[Row], grid: str, runs: Path) -> tuple[dict[str, np.ndarray], int]:
    """Resampled mIoU of a method's rows over all of its folds.

    Returns:
        Seed -> (1 + R,) in percent, the first of the episodes as they are; and the number of episodes.
    """
    found, episodes = {}, 0
    for seed, some in groups(rows, lambda row: row["seed"]).items():
        table = pd.concat([episodes_of(row, grid, runs) for row in sorted(some, key=lambda row: row["fold"])])
        columns = [table[name].to_numpy(np.int64) for name in ("class_id", "inter_fg", "union_fg", "fold")]
        found[seed], episodes = 100 * resampled_miou(*columns, num_resamples=1000, seed=0), len(table)
    return found, episodes


def whole_seeds(rows: list[Row]) -> list[Row]:
    """The rows of the seeds that have every fold; a seed with fewer folds would weigh them unevenly."""
    folds = {row["fold"] for row in rows}
    by_seed = groups(rows, lambda row: row["seed"])
    return [row for some in by_seed.values() if {row["fold"] for row in some} == folds for row in some]


def compare(a: dict[str, np.ndarray], b: dict[str, np.ndarray], training_free: bool) -> tuple[np.ndarray, int]:
    """Mean over the seeds of A minus B, sample by sample.

    Args:
        a: from `samples`.
        b: the same.
        training_free: B has no seed; its one run stands beside every seed of A.

    Returns:
        (1 + R,) differences, and the number of seeds; none where no seed is in both.
    """
    alone = next(iter(b.values())) if training_free else None
    pairs = [(a[seed], b.get(seed, alone)) for seed in a if seed in b or alone is not None]
    if not pairs:
        return np.empty(0), 0
    return np.mean([first - second for first, second in pairs], axis=0), len(pairs)


def paired_rows(grid: str, rows: list[Row], runs: Path) -> list[dict[str, Any]]:
    """All rows of a grid's table of pairs.

    Args:
        grid: a key of `COMPARISONS`.
        rows: of its results.
        runs: folder of all grids' runs.

    Returns:
        For each number of shots: mIoU of each method over all of its folds (`b` empty), then the differences.
    """
    key = run_name if grid == "ablation" else _method
    found: list[dict[str, Any]] = []
    for shots, some in groups(rows, lambda row: row.get("shots") or "1").items():
        whole = {name: whole_seeds(part) for name, part in groups(some, key).items()}
        parts = {name: part for name, part in whole.items() if part}
        named = {name: samples(part, grid, runs) for name, part in parts.items()}
        folds = {name: {row["fold"] for row in part} for name, part in parts.items()}
        for name, (values, episodes) in named.items():
            mean = np.mean(list(values.values()), axis=0)
            head = {"part": "mIoU", "a": name, "b": "", "shots": shots, "seeds": len(values), "episodes": episodes}
            found.append(head | _numbers(mean))
        for part, a, b in COMPARISONS[grid]:
            if a in named and b in named and folds[a] == folds[b]:
                difference, seeds = compare(named[a][0], named[b][0], b in BASELINES)
                head = {"part": part, "a": a, "b": b, "shots": shots, "seeds": seeds, "episodes": named[a][1]}
                found += [head | _numbers(difference)] if seeds else []
    return found


def _method(row: Row) -> str:
    return row["method"]


def _numbers(values: np.ndarray) -> dict[str, float]:
    interval = percentile_interval(values)
    return {"difference": round(interval.value, 3), "low": round(interval.low, 3), "high": round(interval.high, 3)}


def main() -> None:
    """Pair the runs of a grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=sorted(COMPARISONS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=RUNS)
    chosen = parser.parse_args()
    rows = [row for path in sorted(chosen.results.glob(f"{chosen.grid}*.csv")) for row in read_rows(path)]
    about = provenance(seed=0, protocol="1000 bootstrap samples of the test episodes, both runs drawn alike")
    found = [row | about for row in paired_rows(chosen.grid, rows, chosen.runs)]
    write_rows(chosen.results / f"paired_{chosen.grid}.csv", found)
    for row in found:
        print(f"{row['part']:<28}{row['a']} − {row['b'] or '0'}: {row['difference']:+.2f} "
              f"({row['low']:+.2f} to {row['high']:+.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
