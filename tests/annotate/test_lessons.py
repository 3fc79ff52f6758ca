"""Memories that follow what is drawn: made once, again where something changed, and of what can be used."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fsdino.annotate.drawn import Drawn, meant
from fsdino.annotate.lessons import Lesson, Lessons, NothingShown, Teaching
from fsdino.base.reference import Reference
from fsdino.predict.support import Support
from tests.annotate.colour_engine import ColourEngine, HintedEngine, picture, square
from tests.small import refuses

RED, BLUE, GREEN = (250, 10, 10), (10, 10, 250), (10, 250, 10)


def lesson(stamp: str, image: Any, name: str = "p", **drawn: Drawn) -> Lesson:
    """A picture, or what fails to read one, with what is drawn in it; `not_x` stands for the label "not x"."""
    read: Callable[[], np.ndarray] = image if callable(image) else lambda: image
    labels = {label.replace("not_", "not "): one for label, one in drawn.items()}
    return Lesson(stamp, frozenset(labels), read, lambda: labels, name)


def started(engine: ColourEngine | None = None, support: Support | None = None, **options: Any) -> Lessons:
    return Lessons(engine or ColourEngine(), support or Support(), Teaching(**options))


def test_what_is_drawn_is_found() -> None:
    lessons = started()
    lessons.put(1, lesson("a", picture(RED), red=Drawn(square())))
    lessons.put(2, lesson("b", picture(BLUE), blue=Drawn(square())))
    image = picture(RED, 14, 20)
    found = lessons.find(image)
    assert (found.classes["red"].mask == square(14, 20)).all() and not found.classes["blue"].mask.any()
    assert list(lessons.find(image, only=["blue"]).scores) == ["blue"]


def test_a_memory_is_made_again_only_where_something_changed() -> None:
    engine = ColourEngine()
    lessons = started(engine)
    lessons.put(1, lesson("a", picture(RED), red=Drawn(square())))
    lessons.put(2, lesson("b", picture(BLUE), blue=Drawn(square())))
    for _ in range(2):
        lessons.find(picture(RED))
    assert len(engine.remembered) == 2
    lessons.put(2, lesson("c", picture(GREEN), blue=Drawn(square())))
    assert lessons.find(picture(GREEN)).classes["blue"].mask.any()
    assert len(engine.remembered) == 3


def test_a_picture_that_is_dropped_is_forgotten() -> None:
    lessons = started()
    lessons.put(1, lesson("a", picture(RED), red=Drawn(square())))
    before = lessons.version()
    lessons.drop(1)
    with pytest.raises(NothingShown, match="draw one of its labels"):
        lessons.find(picture(RED))
    assert lessons.version() != before and lessons.count == 0


def test_large_pictures_can_be_searched_window_by_window() -> None:
    engine = ColourEngine()
    lessons = started(engine, tile=32)
    lessons.put(1, lesson("a", picture(RED), red=Drawn(square())))
    image, sizes = picture(RED, 60, 80, (96, 128)), []
    find = engine.find
    engine.find = lambda joined, part: (sizes.append(part.shape[:2]), find(joined, part))[1]  # type: ignore[method-assign]
    assert (lessons.find(image).classes["red"].mask == square(60, 80, (96, 128))).all()
    assert len(sizes) > 1 and set(sizes) == {(32, 32)}


def test_versions_name_what_was_shown() -> None:
    a, b = started(), started()
    for one in (a, b):
        one.put(1, lesson("a", picture(RED), red=Drawn(square())))
    assert a.version() == b.version() and a.version().startswith("fsdino-")
    b.put(1, lesson("b", picture(RED), red=Drawn(square())))
    assert a.version() != b.version()
    assert started(threshold=0.4).version() != started().version()


def test_the_latest_pictures_are_taken() -> None:
    engine = ColourEngine()
    lessons = started(engine, max_references=2)
    for key, stamp in enumerate("adcb"):
        lessons.put(key, lesson(stamp, picture(RED), f"picture {stamp}", red=Drawn(square())))
    lessons.find(picture(RED))
    assert engine.remembered == [["picture d (red)", "picture c (red)"]]


def test_a_picture_that_is_gone_does_not_take_its_class_away() -> None:
    def gone() -> np.ndarray:
        raise FileNotFoundError("picture 'x' is not there.")

    lessons = started()
    lessons.put(1, lesson("b", gone, "task 1", red=Drawn(square())))
    lessons.put(2, lesson("a", picture(RED), "task 2", red=Drawn(square())))
    assert lessons.find(picture(RED)).classes["red"].mask.any()
    assert lessons.notes == {("task 1", "red"): "picture 'x' is not there."}


def test_hints_alone_teach_a_model_that_takes_them() -> None:
    hints = Drawn(boxes=[(6, 4, 13, 11)], points=[(22, 16, True)])
    image = picture(RED) | picture(RED, 14, 20)
    lessons = started(HintedEngine())
    lessons.put(1, lesson("a", image, red=hints))
    assert (lessons.find(image).classes["red"].mask == square() | square(14, 20)).all()


def test_hints_alone_do_not_teach_another_model_which_says_so() -> None:
    lessons = started()
    lessons.put(1, lesson("a", picture(RED), "task 1", red=Drawn(boxes=[(6, 4, 13, 11)])))
    refuses("'red' in task 1 has no area that this model can learn from", lessons.find, picture(RED))


def test_points_go_with_the_box_that_they_lie_in() -> None:
    engine, hints = HintedEngine(), Drawn(boxes=[(6, 4, 13, 11)], points=[(6, 4, False), (31.5, 23.5, True)])
    seen: list[Reference] = []
    draw = engine.draw_mask
    engine.draw_mask = lambda one: (seen.append(one), draw(one))[1]  # type: ignore[method-assign]
    lessons = started(engine)
    lessons.put(1, lesson("a", picture(RED), red=hints))
    lessons.find(picture(RED))
    assert [(one.box, one.points, one.labels) for one in seen] == [
        ([6, 4, 13, 11], [[6, 4]], [0]),
        (None, [[31, 23]], [1]),
    ]


def test_what_is_not_meant_is_a_negative_reference_where_the_model_takes_it() -> None:
    assert meant("not red") == ("red", True) and meant("not ") == ("not ", False)
    drawn = {"red": Drawn(square()), "not_red": Drawn(square(14, 20))}
    engine = HintedEngine()
    given: list[bool] = []
    remember = engine.remember
    engine.remember = lambda all: (given.extend(one.negative for one in all), remember(all))[1]  # type: ignore[method-assign]
    for one in (engine, ColourEngine()):
        lessons = started(one)
        lessons.put(1, lesson("a", picture(RED), "task 1", **drawn))
        assert lessons.class_names() == ["red"]
        lessons.find(picture(RED))
    assert given == [False, True]
    assert "no use for what is not meant" in lessons.notes["task 1", "red"]


def test_support_is_known_before_anything_is_drawn() -> None:
    support = Support({"red": [Reference(picture(RED), mask=square())]})
    lessons = started(support=support)
    assert lessons.find(picture(RED)).classes["red"].mask.any()


def test_a_mask_of_a_smaller_copy_is_enlarged() -> None:
    lessons = started()
    lessons.put(1, lesson("a", picture(RED).repeat(2, 0).repeat(2, 1), red=Drawn(square())))
    assert lessons.find(picture(RED)).classes["red"].mask.any()


@pytest.mark.parametrize("options", [{"max_references": -1}, {"min_score": 2}, {"threshold": 1.0}, {"tile": 5}])
def test_options_out_of_range_are_one_sentence(options: dict[str, Any]) -> None:
    refuses(next(iter(options)), Teaching, **options)
