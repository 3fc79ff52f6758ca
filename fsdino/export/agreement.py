"""How far the masks of rounded graphs are torch's: on scenes of the embedded world, or on photographs of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.data.world.index import SyntheticWorld
from fsdino.export.onnx_method import OnnxMethod
from fsdino.predict.support import read_support
from fsdino.visualize import mask_iou

SCENES = 6  # of the embedded world
PHOTOS = 24  # of one's own, at most: each is segmented twice
PER_CLASS = 10  # images of a class that are read
Pair = tuple[Reference, np.ndarray]  # what is shown, and an image (H, W, 3) uint8 to find it in


@dataclass(frozen=True)
class Checks:
    """Pairs of a reference and an image, and where they are from, in words."""

    pairs: Sequence[Pair]
    source: str


@dataclass(frozen=True)
class Agreement:
    """IoU of masks with torch's, each in [0, 1]."""

    ious: Sequence[float]
    source: str

    @property
    def mean(self) -> float:
        """Mean over the pairs."""
        return float(np.mean(self.ious))

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % in the mean, {100 * min(self.ious):.1f} % at least, on {self.source}"


def checks(folder: str | None = None) -> Checks:
    """Pairs to compare on: of a folder as `fsdino predict --support` takes it, or of the embedded world.

    In a folder the first image of each class is the reference for the class's others.

    Raises:
        ValueError: if nothing usable is there, or no class has two images with masks.
    """
    if folder is None:
        index = SyntheticWorld("novel", SCENES + 1)
        class_id = min(index.class_names)
        first, *others = index.images(class_id)
        reference = Reference(index.load_image(first), mask=index.load_mask(first, class_id) == 1)
        return Checks(
            [(reference, index.load_image(name)) for name in others], f"{SCENES} scenes of the embedded world"
        )
    support = read_support(folder, max_references=PER_CLASS)
    # A graph takes masks of the object alone.
    usable = [[one for one in of_class if one.mask is not None and not one.negative]
              for of_class in support.references.values()]  # fmt: skip
    # One of each class after the other, so that a bound on the number leaves out no class.
    pairs = [(of_class[0], np.asarray(of_class[k].image)) for k in range(1, PER_CLASS) for of_class in usable
             if k < len(of_class)]  # fmt: skip
    if not pairs:
        raise ValueError(f"no class in '{folder}' has two images with masks; one is shown and found in the other.")
    return Checks(pairs[:PHOTOS], f"{len(pairs[:PHOTOS])} photographs of '{folder}'")


def agreement(model: FewShotMethod, folder: Path, on: Checks) -> Agreement:
    """Compare the masks of a folder's ONNX graphs with torch's."""
    # Masks and not logits: rounding moves every logit, and what matters is how many pixels change sides.
    graphs, ious = OnnxMethod(folder), []
    for reference, image in on.pairs:
        ours, theirs = (
            method.segment(method.remember([reference]), image).probs > model.threshold for method in (model, graphs)
        )
        # The IoU of two empty masks is NaN, but they agree.
        ious.append(float(np.nan_to_num(mask_iou(ours, theirs), nan=1.0)))
    return Agreement(ious, on.source)
