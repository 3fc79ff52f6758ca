"""Touching objects are cut apart at their necks, and single ones stay whole."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from fsdino.base.parts import touching_parts
from fsdino.base.result import LabelMap, Segmentation

Drawing = Callable[[np.ndarray], object]


def parts_of(draw: Drawing, neck: float = 0.7, least: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros((120, 200), np.uint8)
    draw(mask)
    heights = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    return mask > 0, touching_parts(heights, neck, least)


def disc(mask: np.ndarray, x: int, y: int, radius: int) -> None:
    cv2.circle(mask, (x, y), radius, 1, -1)


def two_discs(mask: np.ndarray) -> None:
    disc(mask, 60, 60, 30)
    disc(mask, 112, 60, 30)


def three_discs(mask: np.ndarray) -> None:
    for x in (40, 88, 136):
        disc(mask, x, 60, 26)


def apart(mask: np.ndarray) -> None:
    disc(mask, 40, 40, 20)
    disc(mask, 140, 80, 20)


def bar(mask: np.ndarray) -> None:
    mask[50:66, 10:190] = 1


def ring(mask: np.ndarray) -> None:
    cv2.circle(mask, (100, 60), 40, 1, 12)


def corner(mask: np.ndarray) -> None:
    mask[10:110, 20:50] = 1
    mask[80:110, 20:180] = 1


def disc_with_a_knob(mask: np.ndarray) -> None:
    disc(mask, 80, 60, 40)
    disc(mask, 128, 60, 10)


@pytest.mark.parametrize(
    ("draw", "number"),
    [(two_discs, 2), (three_discs, 3), (apart, 2), (bar, 1), (ring, 1), (corner, 1), (disc_with_a_knob, 1)],
)
def test_bodies_are_told_apart_and_single_shapes_stay_whole(draw: Drawing, number: int) -> None:
    mask, parts = parts_of(draw)
    assert sorted(np.unique(parts[mask])) == list(range(1, number + 1)) and not parts[~mask].any()


def test_the_cut_is_at_the_neck() -> None:
    mask, parts = parts_of(two_discs)
    left, right = parts[60, 40], parts[60, 130]
    assert left != right
    columns = np.arange(mask.shape[1])
    assert (parts[mask & (columns < 84)] == left).all() and (parts[mask & (columns > 88)] == right).all()


def test_wide_necks_and_small_bodies_are_kept_as_one() -> None:
    assert parts_of(two_discs, neck=0.3)[1].max() == 1
    assert parts_of(disc_with_a_knob, neck=0.9, least=0.1)[1].max() == 2


def test_no_mask_has_no_part() -> None:
    assert not touching_parts(np.zeros((5, 7), np.float32), 0.7, 0.5).any()


def test_instances_are_cut_at_necks_where_asked() -> None:
    mask = np.zeros((120, 200), np.uint8)
    two_discs(mask)
    disc(mask, 180, 100, 8)
    found = Segmentation(mask > 0, mask.astype(np.float32), 0.5, True)
    assert [part.box for part in found.instances()] == [(30, 30, 143, 91), (172, 92, 189, 109)]
    cut = found.instances(name="coin", cut_necks=True)
    assert len(cut) == 3 and {part.name for part in cut} == {"coin"}
    assert np.array_equal(np.sum([part.mask for part in cut], axis=0), mask), "no pixel is lost or in two parts"
    assert len(found.instances(min_pixels=1000, cut_necks=True)) == 2
    several = LabelMap(mask, mask.astype(np.float32), {"coin": 0.5}, {"coin": None})
    assert (len(several.instances()), len(several.instances(cut_necks=True))) == (2, 3)
    nothing = Segmentation(mask > 1, mask.astype(np.float32), 0.5, False)
    assert nothing.instances() == nothing.instances(cut_necks=True) == []
