"""Pictures of one novel class of the embedded world with their masks: the bundled model finds it well."""

from functools import cache

import numpy as np

from fsdino.data.world.index import SyntheticWorld

CLASS_ID = 7


@cache
def pictures(count: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Image (H, W, 3) uint8 and mask (H, W) bool of so many scenes."""
    index = SyntheticWorld("novel", count)
    names = index.images(CLASS_ID)[:count]
    return tuple((index.load_image(name), index.load_mask(name, CLASS_ID) == 1) for name in names)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks (H, W)."""
    return float((a & b).sum() / max(1, (a | b).sum()))
