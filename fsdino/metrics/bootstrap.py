"""Intervals of few-shot mIoU by drawing episodes or query images anew, for one method and for two on the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval over episodes."""

    value: float
    low: float
    high: float


def pooled_miou(
    class_ids: np.ndarray, intersection: np.ndarray, union: np.ndarray, folds: np.ndarray | None = None
) -> float:
    """mIoU in [0, 1] from per-episode foreground counts, averaged over folds; arguments as in `bootstrap_interval`."""
    return float(resampled_miou(class_ids, intersection, union, folds, num_resamples=0, seed=0)[0])


def bootstrap_interval(
    class_ids: np.ndarray,
    intersection: np.ndarray,
    union: np.ndarray,
    folds: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups: np.ndarray | None = None,
) -> Interval:
    """The pooled per-class mIoU with its percentile bootstrap over episodes, drawn anew within each fold.

    Args:
        class_ids: (N,) class of each episode.
        intersection: (N,) foreground intersection in pixels.
        union: (N,) foreground union in pixels.
        folds: (N,) fold of each episode; None = all one fold.
        seed: equal seeds draw equal episodes, whatever the method measured.
        level: coverage in (0, 1).
        groups: (N,) what is drawn in place of single episodes, for instance the query image of each; None draws
            episodes. A short list shows one image in several episodes, which succeed or fail together.

    Source: Efron, 1979 (percentile interval); Field and Welsh, 2007 (drawing clusters).
    """
    values = resampled_miou(
        class_ids, intersection, union, folds, num_resamples=num_resamples, seed=seed, groups=groups
    )
    return percentile_interval(values, level)


def paired_bootstrap(
    class_ids: np.ndarray,
    counts_a: tuple[np.ndarray, np.ndarray],
    counts_b: tuple[np.ndarray, np.ndarray],
    folds: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups: np.ndarray | None = None,
) -> Interval:
    """mIoU of A minus mIoU of B on the same episodes: A is better beyond chance when the interval's `low` is above 0.

    Args:
        counts_a: (intersection, union), each (N,), of A.
        counts_b: the same of B, episode by episode.
        class_ids, folds, num_resamples, seed, level, groups: as in `bootstrap_interval`.
    """
    # One seed for both: a sample holds the same episodes of A and of B, so what is hard for both cancels and the
    # interval is narrower than that of two independent ones.
    drawn: dict[str, Any] = {"folds": folds, "num_resamples": num_resamples, "seed": seed, "groups": groups}
    a, b = (resampled_miou(class_ids, *counts, **drawn) for counts in (counts_a, counts_b))
    return percentile_interval(a - b, level)


def resampled_miou(
    class_ids: np.ndarray,
    intersection: np.ndarray,
    union: np.ndarray,
    folds: np.ndarray | None,
    num_resamples: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """(1 + num_resamples,) mIoUs: of the episodes as they are, then of samples; arguments as in `bootstrap_interval`.

    Raises:
        ValueError: lengths differ, or there is no episode.
    """
    class_ids, intersection, union = (np.asarray(x) for x in (class_ids, intersection, union))
    folds = np.zeros(len(class_ids), dtype=np.int64) if folds is None else np.asarray(folds)
    groups = np.arange(len(class_ids)) if groups is None else np.asarray(groups)
    lengths = {len(class_ids), len(intersection), len(union), len(folds), len(groups)}
    if len(lengths) != 1 or not len(class_ids):
        raise ValueError(f"per-episode arrays have lengths {sorted(lengths)}; expected one length above 0.")
    rng = np.random.default_rng(seed)
    means = []
    for fold in np.unique(folds):
        members = np.flatnonzero(folds == fold)
        names, group = np.unique(groups[members], return_inverse=True)
        # Drawing n of n groups with replacement is drawing how often each comes; as weights, all samples are one
        # product of matrices. Folds are drawn apart, as they are measured apart and averaged.
        draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_resamples)[:, group]
        weights = np.concatenate([np.ones((1, len(members)), dtype=np.int64), draws])
        classes = np.unique(class_ids[members])
        one_hot = (class_ids[members][:, None] == classes).astype(np.float64)
        inter = weights @ (one_hot * intersection[members][:, None])  # (R + 1, classes)
        joint = weights @ (one_hot * union[members][:, None])
        # A class that a sample missed is left out of that sample's mean, as a class that was not drawn is left out of
        # the score itself.
        iou = np.divide(inter, joint, out=np.full_like(inter, np.nan), where=joint > 0)
        counted = (joint > 0).sum(1)
        means.append(np.where(counted > 0, np.nansum(iou, axis=1) / np.maximum(counted, 1), np.nan))
    return np.mean(means, axis=0)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """The interval of (1 + R,) values, the value itself first: of `resampled_miou`, or differences or means of such."""
    low, high = np.nanquantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0]), float(low), float(high))
