"""The presence gate: on where the model learnt what absent means, off elsewhere, and as it is asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsdino.base.bundled import bundled_fingerprint
from fsdino.base.gate import checked_presence, gated, least_presences
from fsdino.base.reference import Reference
from fsdino.base.result import Segmentation
from fsdino.base.storage import load, save
from tests.base.test_drawn import lit, painted
from tests.small import refuses, scene, small_segmenter

PROBS = np.array([[0.9, 0.5, 0.1]], np.float32)


def found(presence: float | None) -> Segmentation:
    present = presence is None or presence > 0.5
    return Segmentation((PROBS > 0.5) & present, PROBS, 0.7, present, presence)


@pytest.mark.parametrize(
    ("presence", "least", "present"),
    [(0.47, 0.5, False), (0.47, 0.0, True), (0.47, 0.4, True), (0.8, 0.9, False), (0.8, 0.5, True), (0.0, 0.0, True)],
)
def test_a_mask_is_there_above_the_presence_that_is_asked_for(presence: float, least: float, present: bool) -> None:
    one = gated(found(presence), least, 0.5)
    assert one.present is present and one.mask.tolist() == [[present, False, False]]
    assert one.presence == presence and one.score == 0.7 and (one.probs == PROBS).all()


def test_a_method_that_does_not_say_is_not_judged() -> None:
    assert gated(found(None), 0.9, 0.5).mask.any()


def test_the_bundled_model_is_believed_in_its_own_world_alone() -> None:
    tiny = bundled_fingerprint("tiny")
    assert least_presences(None, tiny, ["a", None], [lit(0)]) == [0.0, 0.0]
    assert least_presences(None, tiny, ["a"], painted(3)) == [0.5]
    assert least_presences(None, tiny, ["a"], [lit(0)], 0.3) == [0.3]


def test_a_model_is_believed_on_the_classes_that_it_learnt_to_miss(tmp_path: Path) -> None:
    model = small_segmenter()
    assert least_presences(model, "", ["cat", None], []) == [0.5, 0.5]  # nothing is told
    model.missed_classes = ("cat", "Dog")
    again = load(save(model, tmp_path / "model"))
    assert again.missed_classes == ("cat", "Dog") and again.fingerprint() == model.fingerprint()
    assert least_presences(again, "", ["Cat ", "dog", "cow", None], []) == [0.5, 0.5, 0.0, 0.5]


@pytest.fixture(scope="module")
def doubter() -> Any:
    """A model that says of everything that it is hardly there."""
    model = small_segmenter(seed=1)
    model.threshold = 0.05
    for parameter in model.presence.out.parameters():
        parameter.data.zero_()
    model.presence.out.bias.data -= 1.0
    return model


def test_segment_takes_what_is_asked_for(doubter: Any) -> None:
    image, mask = scene()
    memory = doubter.remember([Reference(image, mask=mask)])
    for named in (False, True):
        what = {"cat": memory} if named else memory
        results = [doubter.segment(what, image, least) for least in ("auto", 0, 0.2, 0.3)]
        ones = [one.classes["cat"] if named else one for one in results]
        assert [one.present for one in ones] == [False, True, True, False]
        assert [bool(one.mask.any()) for one in ones] == [False, True, True, False]
        assert all(one.presence == pytest.approx(0.269, abs=1e-3) for one in ones)
    batch = doubter.segment_batch(memory, [image, image], min_presence=0)
    assert all((one.mask == (one.probs > np.float32(0.05))).all() for one in batch)
    doubter.missed_classes = ("dog",)
    assert doubter.segment({"cat": memory}, image).classes["cat"].present  # of dogs alone it knows
    doubter.missed_classes = None


@pytest.mark.parametrize("asked", [-0.1, 1.1, float("nan"), True, "half", None, [0.5]])
def test_what_is_no_probability_is_refused(asked: Any, doubter: Any) -> None:
    refuses("min_presence .* is not a probability", checked_presence, asked)
    image, mask = scene()
    memory = doubter.remember([Reference(image, mask=mask)])
    refuses("min_presence", doubter.segment, memory, image, asked)
