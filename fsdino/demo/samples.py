"""A first try without any image of one's own: a novel class of the embedded world."""

from __future__ import annotations

import numpy as np

from fsdino.base.reference import Reference
from fsdino.data.world.index import SyntheticWorld

NUM_WITH, NUM_WITHOUT = 4, 2
CLASSES = (7, 23, 36, 2, 24)  # whose first scene shows them whole


def embedded_world(turn: int = 0) -> tuple[Reference, list[tuple[str, np.ndarray]]]:
    """A reference with a mask, and name and image (H, W, 3) uint8 of scenes with and without its class."""
    # Novel classes: bundled models were trained on base classes, and a sample should not flatter them.
    index = SyntheticWorld("novel", NUM_WITH + 1)
    class_id = CLASSES[turn % len(CLASSES)]
    first, *others = index.images(class_id)
    mask = (index.load_mask(first, class_id) == 1).astype(np.uint8)
    reference = Reference(index.load_image(first), mask=mask, name=index.class_names[class_id])
    lacking = [
        image
        for other in index.class_names
        if other != class_id
        for image in index.images(other)[:1]
        if class_id not in index.classes_in(image)
    ][:NUM_WITHOUT]
    images = [(f"scene {i}", index.load_image(p)) for i, p in enumerate(others, start=1)]
    return reference, images + [(f"scene without it {i}", index.load_image(p)) for i, p in enumerate(lacking, start=1)]
