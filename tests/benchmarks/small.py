"""Made result rows and rows of episodes, as small as the tables and pairs can be."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import Row
from fsdino.evaluation.measure import COLUMNS


def row(run: str, method: str, miou: float, **others: object) -> Row:
    """A row of a grid's CSV: `val` four points above the novel score, an interval of five."""
    scores = {"val_miou": miou + 4, "novel_miou": miou, "low": miou - 2.5, "high": miou + 2.5, "novel_fb_iou": 60}
    sizes = {"trained": 200000, "total": 3300000, "machine": "M"}
    return {"run": run, "seed": 0, "fold": 0, "shots": 1, "method": method} | scores | sizes | others


def texts(rows: list[Row]) -> pd.DataFrame:
    """Rows as they are read from a CSV."""
    return pd.DataFrame(rows).astype(str)


def write_episodes(folder: Path, hits: float, seed: int, count: int = 40) -> None:
    """Rows of one run: episodes of four classes with objects of 100 pixels, `hits` of them found on average."""
    rng = np.random.default_rng(seed)
    noise = np.random.default_rng(0).normal(0, 12, count)  # episodes are hard or easy for every run alike
    folder.mkdir(parents=True)
    with (folder / "rows.0.csv").open("w", newline="") as file:
        for i in range(count):
            found = int(np.clip(hits + noise[i] + rng.normal(0, 2), 0, 100))
            values = (i, i % 4, f"q{i}", f"s{i}", 1000, found, 1100, 100, 0.5, 1.0, "")
            csv.writer(file).writerow(dict(zip(COLUMNS, values, strict=True)).values())
