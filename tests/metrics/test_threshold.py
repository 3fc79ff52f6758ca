"""The curve over thresholds and the choice from it, against counting at each threshold by itself."""

import numpy as np
import pytest
import torch

from fsdino.metrics.threshold import ThresholdCurve, choose_threshold
from tests.small import refuses


def test_the_curve_equals_thresholding_at_each_value() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(6, 9, 9, generator=generator)
    truth = torch.randint(0, 2, (6, 9, 9), generator=generator)
    truth[:, 0] = 255
    classes = torch.tensor([4, 4, 7, 7, 7, 4])
    curve = ThresholdCurve([4, 7, 8], thresholds=(0.2, 0.5, 0.7))
    curve.update(probs[:3], truth[:3], classes[:3])
    curve.update(probs[3:], truth[3:], classes[3:])
    for threshold in (0.2, 0.5, 0.7):
        ious, counts = [], torch.zeros(2, 2)
        for class_id in (4, 7):
            chosen = classes == class_id
            valid = truth[chosen] != 255
            found, wanted = (probs[chosen] > threshold) & valid, (truth[chosen] == 1) & valid
            ious.append((found & wanted).sum() / (found | wanted).sum())
            counts[0] += torch.stack([(found & wanted).sum(), (found | wanted).sum()])
            counts[1] += torch.stack([(valid & ~found & ~wanted).sum(), (valid & ~(found & wanted)).sum()])
        assert curve.at(threshold)["miou"] == pytest.approx(float(torch.stack(ious).mean()))
        assert curve.at(threshold)["fb_iou"] == pytest.approx(float((counts[:, 0] / counts[:, 1]).mean()))
    assert curve.best().threshold in (0.2, 0.5, 0.7)


def test_the_choice_is_brute_force() -> None:
    rng = np.random.default_rng(1)
    scores = [rng.normal(size=(9, 7)) for _ in range(6)]
    truths = [rng.choice([0, 1, 255], size=(9, 7), p=[0.5, 0.4, 0.1]) for _ in range(6)]
    classes, grid = [3, 3, 5, 5, 5, 9], np.linspace(-2, 2, 9)
    curve = []
    for threshold in grid:
        ious = []
        for class_id in (3, 5, 9):
            both = union = 0
            for score, truth, c in zip(scores, truths, classes):
                if c == class_id:
                    pred = (score > threshold) & (truth != 255)
                    both += (pred & (truth == 1)).sum()
                    union += (pred | (truth == 1)).sum()
            ious.append(both / union)
        curve.append(np.mean(ious))
    choice = choose_threshold(scores, [torch.from_numpy(t) for t in truths], classes, grid)
    np.testing.assert_allclose(choice.curve, curve)
    assert choice.threshold == grid[int(np.argmax(curve))] and choice.miou == pytest.approx(max(curve))


def test_of_equals_the_middle_one_is_chosen() -> None:
    certain, truth = np.array([[0.05, 0.95]]), np.array([[0, 1]])
    assert choose_threshold([certain], [truth], [0], [0.1, 0.3, 0.5, 0.7, 0.9]).threshold == 0.5


def test_of_near_equals_the_better_one_is_chosen() -> None:
    scores, truth = np.full((1, 100), 0.9), np.ones((1, 100), np.uint8)
    scores[0, 0] = 0.6
    assert choose_threshold([scores], [truth], [0], [0.5, 0.7]).threshold == 0.5  # 100 against 99 of 100 pixels


def test_a_pixel_at_the_threshold_is_no_object() -> None:
    # Neither at 0.3 nor at 0.7, which lie on other sides of their roundings to float32.
    choice = choose_threshold([np.array([[0.3, 0.7, 0.9]])], [np.array([[0, 1, 1]])], [0], [0.3, 0.7])
    assert choice.curve == (1.0, 0.5)


def test_errors_say_what_to_do() -> None:
    refuses("as many scores, truths and class ids", choose_threshold, [], [], [], [0.0])
    refuses("ascending", choose_threshold, [np.zeros((2, 2))], [np.zeros((2, 2))], [0], [1.0, 0.0])
    refuses("resize the scores first", choose_threshold, [np.zeros((2, 2))], [np.zeros((3, 2))], [0], [0.0])
