"""Large images window by window, put together again."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fsdino.base.result import Segmentation
from fsdino.predict.tiles import find_tiled, tiles


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
    found = find_tiled(Whiteness(), [None], 1, image, 64)[0]
    expected = image[..., 0] / 255
    lower = slice(90, None)  # above, whole windows are dark, so absent there
    assert found.presence is None and found.present and found.score == pytest.approx(1.0)
    np.testing.assert_allclose(found.probs[lower], expected[lower], atol=1e-6)


def test_the_presence_is_the_highest_of_all_windows() -> None:
    image = np.zeros((150, 90, 3), np.uint8)
    image[120:] = 204
    first, second = find_tiled(Whiteness(says_presence=True), [None, None], 2, image, 64)
    assert first.presence == second.presence == pytest.approx(0.8)
    assert first.mask[120:].all() and not first.mask[:100].any()
