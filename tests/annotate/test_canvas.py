"""Label Studio's configurations and regions, as masks and hints, and answers as regions."""

import numpy as np
import pytest

from fsdino.annotate.label_studio.canvas import answer, drawn, labels_of, read_canvas
from fsdino.base.result import LabelMap
from tests.annotate.colour_engine import square
from tests.annotate.fake_label_studio import CONFIG, brushed, region
from tests.annotate.world import iou
from tests.small import refuses

CANVAS, SIZE = read_canvas(CONFIG), (24, 32)


def found(mask: np.ndarray, name: str, score: float = 0.75) -> LabelMap:
    return LabelMap(mask.astype(np.uint8), mask.astype(np.float32), {name: score}, {name: 0.9})


def test_a_configuration_is_read() -> None:
    assert (CANVAS.image, CANVAS.field) == ("image", "image")
    assert CANVAS.labels == ["boxed", "other", "outlined", "thing"]


def test_an_alias_is_the_label() -> None:
    brush = '<BrushLabels name="b" toName="i"><Label value="x" alias="y"/></BrushLabels>'
    text = f'<View><Image name="i" value="$u"/>{brush}</View>'
    assert read_canvas(text).labels == ["y"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("<View>", "not XML"),
        ("<View><Text name='t' value='$t'/></View>", "no image with BrushLabels"),
        ('<!DOCTYPE x [<!ENTITY a "aa">]><View/>', "declares entities"),
        ("<View><Image name='i' value='$i'/><Choices name='c' toName='i'/></View>", "no image with BrushLabels"),
    ],
)
def test_other_configurations_are_one_sentence(config: str, words: str) -> None:
    refuses(words, read_canvas, config)


def test_a_brush_is_its_mask() -> None:
    mask = square()
    assert (drawn(CANVAS, [brushed(mask)])["thing"].mask == mask).all()


def test_regions_of_a_label_add_up() -> None:
    a, b = square(), square(14, 20)
    assert (drawn(CANVAS, [brushed(a), brushed(b)])["thing"].mask == (a | b)).all()


def test_a_polygon_is_in_percent() -> None:
    points = [[25, 25], [75, 25], [75, 75], [25, 75]]
    mask = drawn(CANVAS, [region("polygonlabels", "outlined", SIZE, points=points)])["outlined"].mask
    expected = np.zeros(SIZE, bool)
    expected[6:18, 8:24] = True
    assert mask is not None and (mask == expected).all()


def test_an_ellipse_is_a_mask() -> None:
    value = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25, "rotation": 0}
    mask = drawn(CANVAS, [region("ellipselabels", "thing", SIZE, **value)])["thing"].mask
    rows, columns = np.mgrid[:24, :32]
    assert mask is not None and iou(mask, ((columns - 15.5) / 8) ** 2 + ((rows - 11.5) / 6) ** 2 <= 1) > 0.93


def test_a_rectangle_and_a_point_are_hints() -> None:
    box = region("rectanglelabels", "thing", SIZE, x=25, y=25, width=50, height=50, rotation=0)
    on = region("keypointlabels", "thing", SIZE, x=50, y=50, width=1)
    off = {**region("keypointlabels", "thing", SIZE, x=0, y=0, width=1), "is_positive": False}
    hints = drawn(CANVAS, [box, on, off])["thing"]
    assert hints.mask is None and hints.boxes == [(7.5, 5.5, 23.5, 17.5)]
    assert hints.points == [(15.5, 11.5, True), (-0.5, -0.5, False)]


def test_a_turned_rectangle_has_an_upright_box() -> None:
    box = region("rectanglelabels", "thing", (100, 100), x=50, y=50, width=20, height=10, rotation=90)
    assert np.allclose(drawn(CANVAS, [box])["thing"].boxes[0], (39.5, 49.5, 49.5, 69.5))


def test_regions_of_other_tags_are_left_out() -> None:
    other = {**brushed(square()), "to_name": "another"}
    choice = {"type": "choices", "to_name": "image", "value": {"choices": ["thing"]}}
    assert drawn(CANVAS, [other, choice]) == {} and labels_of(CANVAS, [other, choice, {}]) == frozenset()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_rotation": 90}, "turned in the editor"),
        ({"original_width": 0}, "0x24 pixels"),
        ({"original_width": 10**9}, "1000000000x24 pixels"),
        ({"value": {"brushlabels": ["thing"]}}, "not of Label Studio's form"),
    ],
)
def test_damaged_regions_are_one_sentence(change: dict, words: str) -> None:
    refuses(words, drawn, CANVAS, [{**brushed(square()), **change}])


def test_an_answer_is_read_as_it_was_found() -> None:
    mask = square() | square(14, 20)
    given = answer(CANVAS, found(mask, "thing"))
    assert len(given["result"]) == 1 and given["score"] == given["result"][0]["score"] == 0.75
    assert (drawn(CANVAS, given["result"])["thing"].mask == mask).all()


def test_an_answer_can_be_split() -> None:
    given = answer(CANVAS, found(square() | square(14, 20), "thing"), split_instances=True)
    assert len(given["result"]) == 2 and len({one["id"] for one in given["result"]}) == 2


def test_a_label_is_answered_with_what_draws_it() -> None:
    mask = square()
    polygon = answer(CANVAS, found(mask, "outlined"))["result"]
    assert [one["type"] for one in polygon] == ["polygonlabels"]
    again = drawn(CANVAS, polygon)["outlined"].mask
    assert again is not None and iou(mask, again) > 0.98
    box = answer(CANVAS, found(mask, "boxed"))["result"][0]
    assert (box["type"], box["from_name"]) == ("rectanglelabels", "box")
    assert np.allclose(drawn(CANVAS, [box])["boxed"].boxes, (5.5, 3.5, 13.5, 11.5))


def test_nothing_found_is_an_empty_answer() -> None:
    assert answer(CANVAS, found(np.zeros(SIZE, bool), "thing", 0.0)) == {"result": [], "score": 0.0}
