"""Large images window by window, put together again."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fsdino.base.result import Segmentation
from fsdino.predict.tiles import segment_tiled, tiles


class Whiteness(SimpleNamespace):
    """Calls the image's brightness its probability: what a tiled run must put together again."""

    threshold = 0.5
    says_presence = False

    def find(self, joined: Sequence[Any], image: np.ndarray) -> Iterator[Segmentation]:
        for _ in joined:
            probs = image[..., 0].astype(np.float32) / 255
            top = float(probs.max())
            yield Segmentation(probs > 0.5, probs, top, top > 0.5, top if self.says_presence else None)


@pytest.mark.parametrize("size", [(100, 100), (64, 200), (65, 64), (257, 130)])
def test_tiles_cover_the_image_and_overlap(size: tuple[int, int]) -> None:
    seen = np.zeros(size, int)
    windows = tiles(size, 64)
    for top, left, bottom, right in windows:
        assert bottom - top == 64 and right - left == 64
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    rows = sorted({top for top, _, _, _ in windows})
    assert all(b - a <= 48 for a, b in pairwise(rows)), "neighbours share a quarter"


def test_tiled_probabilities_are_put_together_again() -> None:
    image = np.zeros((150, 90, 3), np.uint8)
    image[:, :] = np.linspace(0, 255, 150)[:, None, None]
    found = segment_tiled(Whiteness(), [None], ["a"], image, 64)
    expected = image[..., 0] / 255
    lower = slice(90, None)  # above, whole windows are dark, so absent there
    assert found.presences == {"a": None} and found.scores["a"] == pytest.approx(1.0)
    assert (found.labels[lower] == 1).all() and not found.labels[:64].any()
    np.testing.assert_allclose(found.probs[lower], expected[lower], atol=1e-6)


def test_the_presence_is_the_highest_of_all_windows() -> None:
    image = np.zeros((150, 90, 3), np.uint8)
    image[120:] = 204
    found = segment_tiled(Whiteness(says_presence=True), [None, None], ["a", "b"], image, 64)
    assert found.presences["a"] == found.presences["b"] == pytest.approx(0.8)
    assert (found.labels[120:] == 1).all() and not found.labels[:100].any()


def test_a_least_score_looks_at_all_windows_and_changes_nothing_else() -> None:
    """With one, the whole image is held; without, a row of windows at a time: both must give the same."""
    rng = np.random.default_rng(0)
    image = rng.integers(100, 256, (150, 90, 1), dtype=np.uint8).repeat(3, 2)
    banded, held = (
        segment_tiled(Whiteness(), [None], ["a"], image, 64, threshold=0.6, min_score=least) for least in (0.0, 0.1)
    )
    assert np.array_equal(banded.labels, held.labels) and np.array_equal(banded.probs, held.probs)
    image = np.minimum(image, 200)
    image[:10, :10] = 255  # the best window is one of nine, and all of the class stays
    kept = segment_tiled(Whiteness(), [None], ["a"], image, 64, min_score=0.9)
    assert kept.labels[140:].any()
    dropped = segment_tiled(Whiteness(), [None], ["a"], np.minimum(image, 200), 64, min_score=0.9)
    assert dropped.scores == {"a": 0.0} and not dropped.labels.any()


def test_no_seam_shows_where_windows_disagree() -> None:
    """The same smooth image, which every window sees brighter or darker by a number of its own."""

    class Moody(Whiteness):
        count = 0

        def find(self, joined: Sequence[Any], image: np.ndarray) -> Iterator[Segmentation]:
            self.count += 1
            probs = image[..., 0].astype(np.float32) / 255 + 0.15 * (-1) ** self.count
            yield Segmentation(probs > 0.1, probs, 1.0, True)

    image = np.zeros((300, 420, 3), np.uint8)
    image[:, :] = np.linspace(100, 150, 420).astype(np.uint8)[None, :, None]
    probs = segment_tiled(Moody(), [None], ["a"], image, 96, threshold=0.01).probs
    edges = [sorted({value for window in tiles((300, 420), 96) for value in window[axis::2]}) for axis in (0, 1)]
    # Hard borders would jump by 0.3; blended over a quarter of 96 pixels it takes 24 steps.
    for axis, borders in enumerate(edges):
        steps = np.abs(np.diff(probs, axis=axis)).max(1 - axis)
        at_borders = [steps[value + by] for value in borders for by in (-1, 0) if 0 <= value + by < len(steps)]
        assert max(at_borders) <= steps.max() <= 0.3 / 24 + 1 / 255 + 0.004


def test_windows_are_refined_and_put_together_without_seams() -> None:
    """Where the image is flat a refined window is the window itself, so the whole is what it was."""
    image = np.full((150, 90, 3), 180, np.uint8)
    plain, refined = (segment_tiled(Whiteness(), [None], ["a"], image, 64, refine_edges=told) for told in (False, True))
    np.testing.assert_allclose(refined.probs, plain.probs, atol=1e-3)
    image[70:90, 30:60] = 255
    plain, refined = (segment_tiled(Whiteness(), [None], ["a"], image, 64, refine_edges=told) for told in (False, True))
    assert np.abs(refined.probs - plain.probs).max() > 1e-3
