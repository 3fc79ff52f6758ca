"""Outlines with corners anywhere: to masks and back, with holes and several parts."""

import numpy as np
import pytest

from fsdino.annotate.outlines import ellipse, filled, outlines, turned
from tests.annotate.world import iou

DISC = np.hypot(*np.mgrid[-30:31, -40:41]) < 21.3
RING = DISC & ~(np.hypot(*np.mgrid[-30:31, -40:41]) < 9.1)
PARTS = np.zeros((50, 60), bool)
PARTS[3:20, 4:30], PARTS[30:45, 20:58], PARTS[48:, :5] = True, True, True


@pytest.mark.parametrize("mask", [DISC, RING, PARTS, np.ones((5, 7), bool)], ids=["disc", "ring", "parts", "all"])
def test_a_mask_comes_back(mask: np.ndarray) -> None:
    back = np.zeros_like(mask)
    for corners in outlines(mask):
        back |= filled(corners, mask.shape)
    assert iou(mask, back) > 0.98


def test_few_corners() -> None:
    corners = outlines(PARTS)
    assert len(corners) == 3 and sum(map(len, corners)) <= 18


def test_nothing_has_no_outline() -> None:
    assert outlines(np.zeros((4, 4), bool)) == []


def test_a_polygon_covers_the_pixels_in_it() -> None:
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:7] = True
    assert (filled([2, 1, 7, 1, 7, 4, 2, 4], (6, 8)) == expected).all()


@pytest.mark.parametrize("polygon", [[], [1, 1, 5, 5], [np.nan, 0, 3, 3, 0, 3]])
def test_what_has_no_area_is_empty(polygon: list[float]) -> None:
    assert not filled(polygon, (6, 8)).any()


def test_what_is_outside_is_left_out() -> None:
    assert filled([-10, -10, 50, -10, 50, 50, -10, 50], (6, 8)).all()


def test_an_ellipse_is_turned_clockwise() -> None:
    mask = filled(ellipse((20, 20), (15, 3), 45), (40, 40))
    assert mask[28, 28] and not mask[12, 28]


def test_a_rectangle_is_turned_clockwise_around_its_corner() -> None:
    assert np.allclose(turned(np.array([[10.0, 0.0]]), (0, 0), 90), [[0, 10]])
