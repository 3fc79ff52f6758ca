"""A function for CVAT's automatic annotation, and what was found as shapes of CVAT."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import cvat_sdk.auto_annotation as cvataa
import numpy as np
from cvat_sdk import models
from cvat_sdk.masks import encode_mask
from PIL import Image

from fsdino.annotate.lessons import Lessons, Teaching
from fsdino.annotate.outlines import outlines
from fsdino.base.auto import AUTO
from fsdino.base.image import to_rgb
from fsdino.base.result import Instance, LabelMap
from fsdino.predict.engines.choice import EngineChoice, Runtime

MASK, POLYGON, RECTANGLE = "mask", "polygon", "rectangle"
Answers = Mapping[str, tuple[int, str]]  # class to the number of its label, and the kind of shape to answer with


class Function:
    """What CVAT asks for the objects of an image; see `cvat_sdk.auto_annotation.DetectionFunction`."""

    def __init__(self, lessons: Lessons, split_instances: bool) -> None:
        self.lessons, self.split_instances = lessons, split_instances
        self._numbers = {name: number for number, name in enumerate(lessons.class_names(), start=1)}
        labels = [cvataa.label_spec(name, number, type=MASK) for name, number in self._numbers.items()]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[models.LabeledShapeRequest]:
        """A mask per class that is found, or polygons where CVAT asks for them."""
        kind = POLYGON if context.conv_mask_to_poly else MASK
        found = self.lessons.find(to_rgb(image))
        answers = {name: (number, kind) for name, number in self._numbers.items()}
        return shapes(found, answers, self.split_instances, context.conf_threshold or 0.0)


def create(
    support: str,
    model: str = AUTO,
    runtime: Runtime = "torch",
    device: str = "auto",
    support_images: str | None = None,
    max_references: int = 10,
    min_score: float = 0.0,
    split_instances: bool = False,
) -> Function:
    """What `cvat-cli` makes the function with; each parameter is given as `-p NAME=TYPE:VALUE`.

    Args:
        support: what to look for, in any form that predict takes; its classes are the function's labels.
        model, runtime, device: as for `EngineChoice`.
        support_images, max_references, min_score: as for `Teaching`.
        split_instances: a shape per connected part instead of one per class.
    """
    # The agent's messages are on standard error; those of the model's libraries would stand between them.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    teaching = Teaching(
        support=support, support_images=support_images, max_references=max_references, min_score=min_score
    )
    known = teaching.read()
    return Function(Lessons(EngineChoice(model, runtime, device).open(), known, teaching), split_instances)


def shapes(
    found: LabelMap, answers: Answers, split_instances: bool, min_score: float = 0.0
) -> list[models.LabeledShapeRequest]:
    """What was found as shapes of CVAT, on frame 0; classes without a label are left out.

    Args:
        answers: the classes' labels and kinds of shapes; polygons and rectangles are always one per connected part.
        min_score: lowest score of a shape that is given.
    """
    made: list[models.LabeledShapeRequest] = []
    for name, one in found.classes.items():
        if name not in answers or not one.mask.any():
            continue
        number, kind = answers[name]
        whole = kind == MASK and not split_instances
        parts = [Instance(one.mask, (0, 0, 0, 0), one.score)] if whole else one.instances()
        sure = [part for part in parts if part.score >= min_score]
        made += [
            cvataa.shape(number, type=kind, points=points, score=round(part.score, 4))
            for part in sure
            for points in _points(part, kind)
        ]
    return made


def _points(part: Instance, kind: str) -> Iterable[list[float]]:
    """The numbers of CVAT's shapes: run lengths and a box, or x, y, x, y, ... from the image's corner."""
    if kind == MASK:
        return [encode_mask(np.asarray(part.mask, bool))]
    if kind == RECTANGLE:
        return [[float(value) for value in part.box]]
    return [corners.reshape(-1).tolist() for corners in outlines(part.mask)]
