"""Bootstrap intervals of few-shot mIoU, alone and paired."""

import numpy as np
import pytest
import torch

from fsdino.metrics.bootstrap import (
    bootstrap_interval,
    paired_bootstrap,
    percentile_interval,
    pooled_miou,
    resampled_miou,
)
from fsdino.metrics.few_shot import FewShotIoU
from tests.small import refuses


def _counts(quality: float, num: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes, union = rng.integers(0, 6, num), rng.integers(100, 1000, num)
    share = np.clip(quality + 0.15 * rng.standard_normal(num), 0, 1)
    return classes, (share * union).astype(np.int64), union


def test_pooled_miou_is_what_the_metric_says():
    classes, inter, union = _counts(0.5)
    metric = FewShotIoU(range(6))
    for c, i, u in zip(classes, inter, union):
        metric.add_counts(torch.tensor([0, int(i)]), torch.tensor([0, int(u)]), int(c))
    assert pooled_miou(classes, inter, union) == pytest.approx(metric.compute().miou, abs=1e-12)
    folds = classes % 2
    halves = [pooled_miou(classes[folds == f], inter[folds == f], union[folds == f]) for f in (0, 1)]
    assert pooled_miou(classes, inter, union, folds) == pytest.approx(np.mean(halves), abs=1e-12)


def test_the_interval_covers_as_often_as_it_says():
    true_value, hits = 0.5, 0
    for seed in range(100):
        interval = bootstrap_interval(*_counts(0.5, 120, seed), num_resamples=200, seed=seed)
        assert interval.low <= interval.value <= interval.high
        hits += interval.low <= true_value <= interval.high
    assert 86 <= hits <= 100


def test_intervals_shrink_with_episodes_and_repeat_with_the_seed():
    few, many = (bootstrap_interval(*_counts(0.5, n), num_resamples=300) for n in (60, 1500))
    assert many.high - many.low < 0.4 * (few.high - few.low)
    assert bootstrap_interval(*_counts(0.5, 60), num_resamples=300) == few
    assert bootstrap_interval(*_counts(0.5, 60), num_resamples=300, seed=1) != few


def test_a_paired_bootstrap_sees_what_two_intervals_do_not():
    classes, inter, union = _counts(0.5, 150)
    better = np.minimum(inter + (0.01 * union).astype(np.int64) + 1, union)
    a, b = bootstrap_interval(classes, better, union), bootstrap_interval(classes, inter, union)
    assert a.low < b.high  # overlap
    paired = paired_bootstrap(classes, (better, union), (inter, union))
    assert 0 < paired.low < paired.value < paired.high < 0.03 and paired.value == pytest.approx(a.value - b.value)
    same = paired_bootstrap(classes, (inter, union), (inter, union))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_groups_are_drawn_whole():
    classes, inter, union = _counts(0.5, 100)
    alone = bootstrap_interval(classes, inter, union)
    assert bootstrap_interval(classes, inter, union, groups=np.arange(100)) == alone
    # Each episode four times over is no new evidence: drawn by image, the interval is as wide as of one each.
    often = [np.repeat(x, 4) for x in (classes, inter, union)]
    images = np.repeat([f"{i:03d}.jpg" for i in range(100)], 4)
    grouped = bootstrap_interval(*often, groups=images)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    naive = bootstrap_interval(*often)
    assert naive.high - naive.low < 0.7 * (grouped.high - grouped.low)
    refuses(r"lengths \[99, 100\]", bootstrap_interval, classes, inter, union, groups=np.arange(99))


def test_an_interval_holds_the_middle_of_the_samples():
    values = np.array([70.0, *range(101)])  # the value itself comes first and is no sample
    for level, low, high in ((0.95, 2.5, 97.5), (0.5, 25.0, 75.0)):
        found = percentile_interval(values, level)
        assert (found.value, found.low, found.high) == pytest.approx((70, low, high))


def test_a_sample_counts_an_episode_as_often_as_it_is_drawn():
    values = resampled_miou([0, 0, 0], [0, 0, 9], [9, 9, 9], None, num_resamples=200, seed=0)
    assert set(np.unique(3 * values).round(9)) == {0, 1, 2, 3}


def test_a_class_that_a_sample_misses_is_left_out_of_it():
    assert set(resampled_miou([0, 1], [7, 7], [7, 7], None, num_resamples=50, seed=0)) == {1.0}


def test_bootstrap_needs_equal_lengths_and_episodes():
    with pytest.raises(ValueError, match=r"per-episode arrays have lengths \[2, 3\]; expected one length above 0"):
        bootstrap_interval(np.zeros(3), np.zeros(3), np.zeros(2))
    refuses(r"lengths \[0\]", pooled_miou, np.zeros(0), np.zeros(0), np.zeros(0))
