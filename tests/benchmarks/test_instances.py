"""COCO's AP of samples of episodes is that of pycocotools, and follows the masks."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from benchmarks.accuracy.instances import Asked, Precision, connected, samples
from fsdino.base.result import Segmentation
from fsdino.data.episodes.episode_list import EpisodeSpec


def drawn(seed: int, moved: int) -> list[Asked]:
    """Twelve episodes of three classes with squares as truth, some of them crowds, and the same, moved, as found."""
    rng, asked = np.random.default_rng(seed), []
    for number in range(12):
        truth, union = [], np.zeros((60, 80), np.uint8)
        for _ in range(rng.integers(1, 5)):
            one = np.zeros((60, 80), np.uint8)
            x, y = rng.integers(5, 60), rng.integers(5, 40)
            one[y : y + 15, x : x + 15] = 1
            union |= one
            truth.append({"rle": rle_tools.encode(np.asfortranarray(one)), "iscrowd": int(rng.random() < 0.15)})
        mask = np.roll(union, rng.integers(0, moved + 1), 1)
        probs = (mask * rng.uniform(0.5, 1, mask.shape)).astype(np.float32)
        spec = EpisodeSpec(number % 3 + 1, f"query {number // 2}", ("support",))
        asked.append(Asked(spec, number % 2, truth, {"method": Segmentation(mask > 0, probs, 1.0, True)}))
    return asked


def test_a_sample_of_all_episodes_has_cocos_ap() -> None:
    way = Precision(drawn(0, 4), "method", connected)
    found = way.of(np.ones((1, 12), int))[0]
    with contextlib.redirect_stdout(io.StringIO()):
        way.coco.accumulate()
    precision = way.coco.eval["precision"][:, :, :, 0, 0]
    expected = [np.mean([p[..., k].mean() for k in range(3) if p.max() > -1]) for p in (precision, precision[:1])]
    assert found == pytest.approx(100 * np.array(expected), abs=1e-6) and 0 < found[0] < found[1] < 100


def test_an_episode_twice_is_a_weight_of_two() -> None:
    asked = drawn(1, 4)
    once, twice = np.ones((1, 12), int), np.ones((1, 12), int)
    twice[0, 3] = 2
    longer = Precision([*asked, asked[3]], "method", connected)
    way = Precision(asked, "method", connected)
    assert way.of(twice) == pytest.approx(longer.of(np.ones((1, 13), int)))
    assert way.of(once) != pytest.approx(way.of(twice))


def test_worse_masks_have_a_lower_ap_and_samples_keep_the_folds_apart() -> None:
    good, bad = (Precision(drawn(2, moved), "method", connected) for moved in (0, 8))
    values = samples([good, bad], drawn(2, 0), 20)
    assert values.shape == (2, 21, 2) and (values[0] >= values[1]).all() and values[0, 0, 0] > values[1, 0, 0]
