"""References that are pointed at: points, boxes and scribbles as SAM2 points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsdino.models.contract import Reference


@dataclass
class PromptedReference(Reference):
    """A reference whose object is pointed at in place of (or in the absence of) a mask.

    Args:
        points: (P, 2), x and y in pixels of the picture.
        labels: P numbers, 1 on the object and 0 off it; None means all on it.
        box: x0, y0, x1, y1 in pixels.
        scribble: (H, W), anything but 0 is a stroke; every pixel of the strokes is a point.
    """

    points: Any = None
    labels: Any = None
    box: Sequence[float] | None = None
    scribble: Any = None


def prompt_points(reference: PromptedReference) -> tuple[Tensor, Tensor]:
    """All that a reference points at, as SAM2's points.

    Args:
        reference: With points, a box or a scribble.

    Returns:
        Points (P, 2) float32 in pixels of the picture, labels (P,) int64.

    Raises:
        ValueError: When nothing is given, a scribble is empty, or shapes are wrong.
    """
    points, labels = [np.zeros((0, 2), dtype=np.float32)], [np.zeros(0, dtype=np.int64)]
    if reference.points is not None:
        given = np.asarray(reference.points, dtype=np.float32)
        marks = np.ones(len(given)) if reference.labels is None else np.asarray(reference.labels)
        if given.ndim != 2 or given.shape[1] != 2 or marks.shape != (len(given),):
            raise ValueError(
                f"{reference.name}: expected points (P, 2) and P labels, got {given.shape} and {marks.shape}."
            )
        points.append(given)
        labels.append(marks.astype(np.int64))
    if reference.scribble is not None:
        rows, cols = np.nonzero(np.asarray(reference.scribble))
        points.append(np.stack([cols, rows], axis=1).astype(np.float32))
        labels.append(np.ones(len(rows), dtype=np.int64))
    if reference.box is not None:
        points.append(np.asarray(reference.box, dtype=np.float32).reshape(2, 2))
        labels.append(np.array([2, 3]))
    if not sum(map(len, points)):
        raise ValueError(f"{reference.name}: a reference needs a mask, points, a box or a scribble with a stroke.")
    return torch.from_numpy(np.concatenate(points)), torch.from_numpy(np.concatenate(labels))
