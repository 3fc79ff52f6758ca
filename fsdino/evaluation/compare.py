"""`fsdino compare`: is A better than B? The same episodes, their query images drawn anew for both alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fsdino.evaluation.tables import KEY, SAME, read_episodes
from fsdino.metrics.bootstrap import Interval, paired_bootstrap, pooled_miou


@dataclass(frozen=True)
class Comparison:
    """A against B on "fold 0", or on all as "mean": their mIoUs in [0, 1], and A minus B with its 95 % interval."""

    name: str
    a: float
    b: float
    difference: Interval
    episodes: int


def compare_tables(a: pd.DataFrame, b: pd.DataFrame) -> list[Comparison]:
    """Compare two tables of the same episodes, from `read_episodes`: each fold and, of several, their mean.

    Raises:
        ValueError: the tables are not of the same episodes, or were scored at different sizes.
    """
    check_same_episodes(a, b)
    parts = [(f"fold {fold}", np.flatnonzero(a["fold"] == fold)) for fold in sorted(a["fold"].unique())]
    if len(parts) > 1:
        parts.append(("mean", np.arange(len(a))))
    return [_compare(name, a.iloc[rows], b.iloc[rows]) for name, rows in parts]


def check_same_episodes(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Refuse tables that cannot be paired row by row.

    Raises:
        ValueError: the first reason why not.
    """
    if len(a) == 0 or len(a) != len(b) or any((a[name].to_numpy() != b[name].to_numpy()).any() for name in KEY):
        raise ValueError(
            f"A has {len(a)} episodes of folds {sorted(a['fold'].unique())}, B {len(b)} of "
            f"{sorted(b['fold'].unique())}: measure both on the same lists."
        )
    # Equal numbers can still be of two lists: what was looked for, and where, must agree as well.
    for name in SAME:
        differs = np.flatnonzero(a[name].astype(str).to_numpy() != b[name].astype(str).to_numpy())
        if len(differs):
            first = differs[0]
            raise ValueError(
                f"episode {a['episode'].iloc[first]} of fold {a['fold'].iloc[first]} has {name} "
                f"'{a[name].iloc[first]}' in A and '{b[name].iloc[first]}' in B: measure both on the same "
                "lists."
            )
    # All valid pixels of an episode are background agreed on, or in the union of the objects.
    pixels = [table["inter_bg"].to_numpy() + table["union_fg"].to_numpy() for table in (a, b)]
    if (pixels[0] != pixels[1]).any():
        raise ValueError(
            "A and B count different numbers of pixels in the same episode: one was scored at the "
            "image's own size, the other at the network's; give both the same --scoring."
        )


def _compare(name: str, a: pd.DataFrame, b: pd.DataFrame) -> Comparison:
    classes, folds = a["class_id"].to_numpy(), a["fold"].to_numpy()
    counts = [(t["inter_fg"].to_numpy(np.int64), t["union_fg"].to_numpy(np.int64)) for t in (a, b)]
    score_a, score_b = (pooled_miou(classes, *count, folds) for count in counts)
    # Query images are drawn, not episodes: an image that several episodes show is hard or easy in all of them.
    interval = paired_bootstrap(classes, counts[0], counts[1], folds, groups=a["query"].to_numpy(str))
    return Comparison(name, score_a, score_b, interval, len(a))


def verdict(interval: Interval) -> str:
    """What an interval of a difference says."""
    if interval.low > 0:
        return "A is better, beyond the chance of these episodes"
    if interval.high < 0:
        return "B is better, beyond the chance of these episodes"
    return "these episodes do not tell which is better"


def compare(a: str, b: str) -> int:
    """Compare two evaluations of the same episodes: mIoU of A minus mIoU of B with a paired bootstrap interval.

    Query images are drawn anew, with all of their episodes.

    Args:
        a: the episodes file or folder that `fsdino evaluate` wrote.
        b: the same of the other method.
    """
    found = compare_tables(read_episodes(a), read_episodes(b))
    print(f"A  {a}\nB  {b}\n\n{'':<8}{'A':>8}{'B':>8}{'A - B':>9}{'95 % interval':>18}{'episodes':>10}")
    for one in found:
        interval = f"{100 * one.difference.low:+.2f} to {100 * one.difference.high:+.2f}"
        print(
            f"{one.name:<8}{100 * one.a:>8.2f}{100 * one.b:>8.2f}{100 * one.difference.value:>+9.2f}{interval:>18}"
            f"{one.episodes:>10}"
        )
    print(f"\n{verdict(found[-1].difference)}.")
    return 0
