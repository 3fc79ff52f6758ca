"""Differences between runs on the same episodes: `python -m benchmarks.accuracy.pairs GRID`.

Reads the rows that `experiments` left in `runs/experiments/GRID/RUN/evaluate/RUN` and writes `results/paired_GRID.csv`.
Both runs of a pair are drawn alike in every bootstrap sample, query images with all of their episodes, folds apart;
with several seeds the mean over the seeds is what is drawn. The interval speaks of the choice of test images, not of
the choice of seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.accuracy.grids import COMPARISONS, ON_SAME
from benchmarks.common import RESULTS, ROOT, Row, by, load, provenance, run_script, with_variant, write_rows
from fsdino.evaluation.measure import read_rows as read_episodes
from fsdino.metrics.bootstrap import percentile_interval, resampled_miou

RUNS = ROOT / "runs" / "experiments"
BASELINES = ("prototype", "chain", ON_SAME, "prototype, random encoder", "all foreground")
Samples = dict[str, np.ndarray]  # seed -> (1 + R,) mIoU in percent, the first of the episodes as they are


def folder_name(method: str) -> str:
    """Where a baseline's rows lie below its run's `evaluate`."""
    return method.replace(", ", "-").replace(" ", "-")


def episodes_of(row: Row, grid: str, runs: Path) -> pd.DataFrame:
    """The per-episode rows of one row of a grid's CSV, in the order of the list.

    Raises:
        FileNotFoundError: the run's folder is gone; the grid has to be run again to pair it.
    """
    name = folder_name(row["method"]) if row["method"] in BASELINES else row["run"]
    folder = runs / grid / row["run"] / "evaluate" / name
    if not list(folder.glob("rows.*.csv")):
        raise FileNotFoundError(
            f"no rows in '{folder}'; run `python -m benchmarks.accuracy.experiments {grid} --only {row['run']}` "
            f"again after taking the run out of results/{grid}.csv."
        )
    return read_episodes(folder).assign(fold=int(row["fold"])).sort_values("episode", ignore_index=True)


def samples(rows: pd.DataFrame, grid: str, runs: Path) -> tuple[Samples, int]:
    """Resampled mIoU of a method over all of its folds, by seed; and the number of episodes."""
    found, episodes = {}, 0
    for seed, some in by(rows, "seed").items():
        parts = some.sort_values("fold").to_dict("records")
        table = pd.concat([episodes_of(row, grid, runs) for row in parts])
        columns = [table[name].to_numpy(np.int64) for name in ("class_id", "inter_fg", "union_fg", "fold")]
        queries = table["query"].to_numpy(str)
        found[seed] = 100 * resampled_miou(*columns, num_resamples=1000, seed=0, groups=queries)
        episodes = len(table)
    return found, episodes


def whole_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the seeds that have every fold; a seed with fewer folds would weigh them unevenly."""
    return rows.groupby("seed").filter(lambda some: set(some["fold"]) == set(rows["fold"]))


def compare(a: Samples, b: Samples, training_free: bool) -> list[np.ndarray]:
    """A minus B, sample by sample, for every seed of both; a training-free B has one run for all seeds of A."""
    alone = next(iter(b.values())) if training_free else None
    others = {seed: b.get(seed, alone) for seed in a}
    return [a[seed] - other for seed, other in others.items() if other is not None]


def paired_rows(grid: str, rows: pd.DataFrame, runs: Path) -> list[Row]:
    """All rows of a grid's table of pairs.

    For each number of shots: the mIoU of each method over all of its folds (`b` empty), then the differences.
    """
    key = "variant" if grid == "ablation" else "method"
    found: list[Row] = []
    for shots, some in by(with_variant(rows), "shots").items():
        groups = {name: whole_seeds(part) for name, part in by(some, key).items()}
        named = {name: samples(part, grid, runs) for name, part in groups.items() if len(part)}
        for name, (values, episodes) in named.items():
            head = {"part": "mIoU", "a": name, "b": "", "shots": shots, "seeds": len(values), "episodes": episodes}
            found.append(head | _numbers(list(values.values())))
        for part, a, b in COMPARISONS[grid]:
            if a not in named or b not in named or set(groups[a]["fold"]) != set(groups[b]["fold"]):
                continue
            pairs = compare(named[a][0], named[b][0], b in BASELINES)
            head = {"part": part, "a": a, "b": b, "shots": shots, "seeds": len(pairs), "episodes": named[a][1]}
            found += [head | _numbers(pairs)] if pairs else []
    return found


def _numbers(values: list[np.ndarray]) -> dict[str, float]:
    interval = percentile_interval(np.mean(values, axis=0))
    return {"difference": round(interval.value, 3), "low": round(interval.low, 3), "high": round(interval.high, 3)}


def main(grid: str, results: Path = RESULTS, runs: Path = RUNS) -> None:
    """Pair the runs of a grid: ablation, photos or tiny_seeds."""
    about = provenance(seed=0, protocol="1000 bootstrap samples of the query images, both runs drawn alike")
    found = paired_rows(grid, load(results, grid), runs)
    write_rows(results / f"paired_{grid}.csv", [row | about for row in found])
    for row in found:
        ends = f"({row['low']:+.2f} to {row['high']:+.2f})"
        print(f"{row['part']:<28}{row['a']} − {row['b'] or '0'}: {row['difference']:+.2f} {ends}")


if __name__ == "__main__":
    run_script(main)
