"""Results of one class and of several: connected parts, and which class a pixel belongs to."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fsdino.base.result import Segmentation, resolve


def found_of(probs: Any, score: float = 1.0, present: bool = True, presence: float | None = None) -> Segmentation:
    probs = np.asarray(probs, np.float32)
    return Segmentation((probs > 0.5) & present, probs, score, present, presence)


def test_instances_are_the_connected_parts() -> None:
    mask = np.zeros((10, 12), bool)
    mask[1:4, 2:6], mask[6, 7], mask[7, 8], mask[9, 0] = True, True, True, True
    found = Segmentation(mask, np.where(mask, 0.8, 0.1), score=0.5, present=True)
    parts = found.instances(name="cat")
    assert [part.box for part in parts] == [(2, 1, 6, 4), (7, 6, 9, 8), (0, 9, 1, 10)]  # corners touch: 8 neighbours
    assert [int(part.mask.sum()) for part in parts] == [12, 2, 1] and parts[0].name == "cat"
    assert np.array_equal(np.any([part.mask for part in parts], axis=0), mask)
    assert parts[0].score == pytest.approx(0.4)
    assert len(found.instances(min_pixels=2)) == 2
    assert Segmentation(np.zeros_like(mask), found.probs, 0.0, False).instances() == []


def test_overlaps_go_to_the_more_probable_class() -> None:
    absent = found_of([[1.0, 1.0, 1.0]], present=False, presence=0.25)
    named = {"a": found_of([[0.9, 0.6, 0.4]]), "b": found_of([[0.2, 0.8, 0.45]]), "c": absent}
    together = resolve(named.items(), (1, 3), 0.5)
    assert together.labels.tolist() == [[1, 2, 0]] and together.labels.dtype == np.uint8
    assert together.scores == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert together.presences == {"a": None, "b": None, "c": 0.25}
    np.testing.assert_allclose(together.probs, [[0.9, 0.8, 0.0]], atol=1e-6)
    classes = together.classes
    assert classes["a"].mask.tolist() == [[True, False, False]] and classes["a"].present
    np.testing.assert_allclose(classes["b"].probs, [[0.0, 0.8, 0.0]], atol=1e-6)
    assert not classes["c"].present and not classes["c"].mask.any()


def test_low_scores_count_as_absent() -> None:
    found = resolve([("a", found_of([[0.9]], score=0.2))], (1, 1), 0.5, min_score=0.3)
    assert found.labels.tolist() == [[0]] and found.scores == {"a": 0.0}


def test_one_class_at_a_time_is_held() -> None:
    """Hundreds of classes on a large image must not be in memory together."""
    made: list[weakref.ref[np.ndarray]] = []

    def classes() -> Iterator[tuple[str, Segmentation]]:
        for k in range(300):
            probs = np.full((2, 2), 0.6 + k / 1000, np.float32)
            made.append(weakref.ref(probs))
            yield str(k), found_of(probs)
            assert sum(ref() is not None for ref in made) <= 2

    together = resolve(classes(), (2, 2), 0.5)
    assert len(made) == 300 and (together.labels == 300).all() and together.labels.dtype == np.uint16
