"""DAVIS's F of outlines and the average of its frames."""

import numpy as np
import pytest

from fsdino.metrics.davis import boundary_f, davis_score, outline
from tests.data.small import block


def test_outline_of_a_square():
    found = outline(block(1, 2, 2, 3, size=(8, 8)) == 1)
    expected = np.zeros((8, 8), np.uint8)
    expected[1:5, 1:5] = 1
    expected[2:4, 2:4] = 0
    assert (found == expected).all()
    assert not outline(np.ones((8, 8))).any()  # the image's rim is no outline


def _slow_f(pred: np.ndarray, truth: np.ndarray, radius: int) -> float:
    a, b = np.argwhere(outline(pred)), np.argwhere(outline(truth == 1))
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    near = ((a[:, None] - b[None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_boundary_f_matches_a_slow_reference():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = block(1, *rng.integers(0, 40, 2), int(rng.integers(0, 30)))
        pred = block(1, *rng.integers(0, 40, 2), int(rng.integers(0, 30)))
        assert boundary_f(pred, truth) == pytest.approx(_slow_f(pred == 1, truth, 2))  # ceil(0.008 * 128)
    assert boundary_f(block(1, 11, 11, 20), block(1, 10, 10, 20)) == 1


def test_scores_average_frames_then_objects():
    assert davis_score(np.array([0, 0, 1]), np.array([1.0, 0.0, 0.2])) == pytest.approx(0.35)
