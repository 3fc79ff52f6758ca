"""What the Python API is given by mistake: one sentence each, and nothing is taken that changes the answer."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.registry import build
from fsdino.base.storage import load
from tests.small import refuses, small_segmenter

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (40, 60, 3)).astype(np.uint8)
MASK = np.zeros((40, 60), np.uint8)
MASK[10:30, 20:40] = 1
SHOWN = Reference(IMAGE, mask=MASK)


@pytest.fixture(scope="module")
def model() -> FewShotMethod:
    return small_segmenter(seed=1, variant="full", promptable=True)


WRONG: dict[str, tuple[Callable, str]] = {
    "a reference without a list": (lambda m, one: m.remember(SHOWN), "expected a list of references, got Reference"),
    "nothing": (lambda m, one: m.remember(None), "expected a list of references, got NoneType"),
    "an empty list": (lambda m, one: m.remember([]), "got no reference"),
    "a picture among references": (lambda m, one: m.remember([IMAGE]), "expected references, got ndarray among them"),
    "arguments swapped": (lambda m, one: m.segment(IMAGE, one), "expected a memory first, .* got ndarray"),
    "a list of memories": (lambda m, one: m.segment([one], IMAGE), "for several classes give {'cat': memory"),
    "classes for a batch": (lambda m, one: m.segment_batch({"a": one}, [IMAGE]), "expected a memory first, .* dict"),
    "one picture for a batch": (lambda m, one: m.segment_batch(one, IMAGE), r"image 0: .* got uint8 \(60, 3\)"),
    "classes to refine": (lambda m, one: m.refine({"a": one}, IMAGE, [[1, 1]]), "expected a memory first"),
    "no clicks": (lambda m, one: m.refine(one, IMAGE, None), r"refine\(\): points: expected numbers, got None"),
    "clicks as words": (lambda m, one: m.refine(one, IMAGE, [["a", 1]]), "expected numbers, got"),
    "a box as text": (lambda m, one: m.remember([Reference(IMAGE, box="1,2,3,4")]), "box: expected numbers, got '1,2,"),
    "points of unequal length": (lambda m, one: m.remember([Reference(IMAGE, points=[[1, 2], [3]])]), "numbers"),
    "a scribble as text": (lambda m, one: m.remember([Reference(IMAGE, scribble="x")]), "scribble: expected numbers"),
    "a threshold above 1": (lambda m, one: setattr(m, "threshold", 7), "threshold 7 is not a probability"),
    "a threshold as text": (lambda m, one: setattr(m, "threshold", "0.5"), "threshold '0.5' is not a probability"),
    "a threshold that is none": (lambda m, one: setattr(m, "threshold", float("nan")), "is not a probability"),
    "an unknown device": (
        lambda m, one: load("tiny", device="tpu9"),
        r"device 'tpu9' is not available here, where torch finds \d+ GPU.s.; use cpu",
    ),
    "no name of a model": (lambda m, one: load(None), "expected a model's name or path, got NoneType"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
def test_a_slip_is_one_sentence(model: FewShotMethod, case: str) -> None:
    call, message = WRONG[case]
    refuses(message, call, model, model.remember([SHOWN]))
    assert model.threshold == 0.5


def test_another_models_memory_is_refused(model: FewShotMethod) -> None:
    other, prototype = small_segmenter(seed=2, variant="full", promptable=True), build("all_foreground", img_size=56)
    memory = model.remember([SHOWN])
    refuses("remembered by model .*, this is model .*; remember the class again", other.segment, memory, IMAGE)
    refuses("remembered by model", other.segment, {"cat": memory}, IMAGE)
    refuses("remembered by model", other.refine, memory, IMAGE, [[1, 1]])
    refuses("is of another method .SupportMemory, expected EmptyMemory", prototype.segment, memory, IMAGE)
    # The model's own weights may change too
    with torch.no_grad():
        other.decoder.iou_token.weight.add_(0.5)
    mine = other.remember([SHOWN])
    assert other.segment(mine, IMAGE).probs.shape == (40, 60)
    with torch.no_grad():
        other.decoder.iou_token.weight.add_(0.5)
    refuses("remembered by model", other.segment, mine, IMAGE)


def test_packed_arrays_are_checked(model: FewShotMethod) -> None:
    arrays = model.pack(model.remember([SHOWN]))
    assert model.unpack(arrays).made_by == "" and model.unpack({**arrays, "more": arrays["fg"]})
    for changed, message in (
        ({"prototypes": arrays["prototypes"] * np.nan}, "the memory's 'prototypes' holds NaN or infinity"),
        ({"prototypes": arrays["prototypes"][..., :5]}, r"'prototypes' has shape .*, this model's are \(1, "),
        ({"tokens": np.repeat(arrays["tokens"], 2, 0)}, "'tokens' has shape"),
        ({"fg": arrays["fg"][:, 1:]}, r"'fg' has shape \(1, \d+\), this model's are \(1, M\)"),
        ({"fg": 3}, "expected NumPy arrays, got int as 'fg'"),
    ):
        refuses(message, model.unpack, {**arrays, **changed})
    refuses("the memory has no 'prototypes': another kind of model made it", model.unpack, {})
