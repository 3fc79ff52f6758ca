"""Marks that were drawn in a browser become references."""

from typing import Any

import numpy as np
import pytest

from fsdino.demo.marks import reference_from
from tests.small import refuses

IMAGE = np.zeros((40, 60, 3), np.uint8)


def mark(tool: str, *points: tuple[float, float], **more: Any) -> dict[str, Any]:
    return {"tool": tool, "points": [list(point) for point in points], **more}


def test_outlines_brush_and_eraser_paint_a_mask() -> None:
    square = mark("outline", (10, 5), (29, 5), (29, 24), (10, 24))
    mask = np.asarray(reference_from(IMAGE, [square]).mask)
    assert mask.sum() == 400 and mask[5:25, 10:30].all()
    erased = np.asarray(reference_from(IMAGE, [square, mark("erase", (10, 5), (29, 5), width=3)]).mask)
    assert 0 < erased.sum() < 400 and not erased[5, 10:30].any() and erased[20, 20]
    brushed = np.asarray(reference_from(IMAGE, [mark("brush", (30, 20), width=9)]).mask)
    assert brushed[20, 30] and 40 < brushed.sum() < 90


def test_an_outline_that_goes_round_twice_is_filled() -> None:
    once = [(10, 5), (29, 5), (29, 24), (10, 24)]
    for points in (once, once[::-1]):
        marks = mark("outline", *points), mark("outline", *points, *points)
        single, double = (reference_from(IMAGE, [one]).mask for one in marks)
        assert np.array_equal(single, double)
    eight = reference_from(IMAGE, [mark("outline", (0, 0), (30, 30), (30, 0), (0, 30))]).mask
    assert np.asarray(eight)[15, [3, 27]].all() and not np.asarray(eight)[[3, 27], 15].any()


def test_hints_stay_hints_and_a_mask_wins() -> None:
    hints = [mark("box", (20, 30), (5, 4)), mark("click", (7, 8), on=True), mark("click", (50, 30), on=False),
             mark("scribble", (6, 6), (12, 6))]  # fmt: skip
    found = reference_from(IMAGE, hints, negative=True, name="a.jpg")
    assert found.mask is None and found.negative and found.name == "a.jpg"
    assert found.box == (5, 4, 20, 30) and found.labels == [1, 0]
    assert np.asarray(found.points).tolist() == [[7, 8], [50, 30]] and np.asarray(found.scribble).sum() == 7
    assert reference_from(IMAGE, [*hints, mark("brush", (9, 9), width=3)]).mask is not None


def test_marks_outside_are_moved_to_the_border() -> None:
    found = reference_from(IMAGE, [mark("click", (-5, 99))])
    assert np.asarray(found.points).tolist() == [[0, 39]]


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([], "nothing is drawn"),
        ([mark("erase", (3, 3), width=4)], "nothing is drawn"),
        ("outline", "expected a list"),
        ([mark("click", (1, 1))] * 3000, "at most 2000 marks"),
        ([{"tool": "spray"}], "tool 'spray' is unknown"),
        ([{"tool": "box"}], "has no list of points"),
        ([{"tool": "box", "points": [["a", "b"]]}], "has no list of points"),
        ([{"tool": "box", "points": []}], "no usable point"),
        ([mark("click", (float("nan"), 1))], "no usable point"),
    ],
)
def test_marks_of_another_form_are_refused(marks: Any, message: str) -> None:
    refuses(message, reference_from, IMAGE, marks)
