"""Ways to bring a coarse map of logits to the image's pixels, for `accuracy.edges`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from fsdino.base.sharpen import Guide

Refinement = Callable[[np.ndarray, np.ndarray], np.ndarray]  # logits (s, s), image (H, W, 3) uint8 -> logits (H, W)
LIMIT = 12.0  # of the logits that a probability is turned back into


def enlarge(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A square map at another size (H, W); pixels' centres stay where they are."""
    return cv2.resize(logits, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def _probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _logit(probs: np.ndarray) -> np.ndarray:
    probs = probs.clip(1e-5, 1 - 1e-5)
    return np.log(probs / (1 - probs)).clip(-LIMIT, LIMIT)


def reduced(image: np.ndarray, side: int = 320) -> np.ndarray:
    """An image with its longer side at so many pixels, where the slow ways work."""
    factor = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def bilinear(logits: np.ndarray, image: np.ndarray) -> np.ndarray:
    """As `Resize.invert` does."""
    return enlarge(logits, image.shape[:2])


def guided(logits: np.ndarray, image: np.ndarray, cells: float) -> np.ndarray:
    """The guided filter of the package, with a window of so many cells of the map to each side."""
    return _logit(Guide(image, radius=cells / logits.shape[-1]).filtered(_probability(bilinear(logits, image))))


def joint_bilateral(logits: np.ndarray, image: np.ndarray, colour: float, reach: int = 2) -> np.ndarray:
    """Kopf et al., 2007: a pixel takes the logits of near cells whose mean colour is like its own.

    Args:
        colour: standard deviation of colour differences in [0, 1] that count as alike.
        reach: cells in each direction.
    """
    size, image = image.shape[:2], reduced(image)
    height, width = image.shape[:2]
    grid = logits.shape[-1]
    pixels = image.astype(np.float32) / 255
    cells = cv2.resize(pixels, (grid, grid), interpolation=cv2.INTER_AREA)
    rows, columns = (np.arange(height) + 0.5) / height * grid - 0.5, (np.arange(width) + 0.5) / width * grid - 0.5
    row, column = np.rint(rows).astype(int), np.rint(columns).astype(int)
    total, weights = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            y, x = (row + dy).clip(0, grid - 1), (column + dx).clip(0, grid - 1)
            near = np.exp(-(((rows - row - dy)[:, None] ** 2 + (columns - column - dx)[None] ** 2) / 2))
            like = np.exp(-((pixels - cells[y][:, x]) ** 2).sum(-1) / (2 * colour**2)) + 1e-6
            weight = (near * like).astype(np.float32)
            total += weight * logits[y][:, x]
            weights += weight
    return enlarge(total / weights, size)


def random_walk(logits: np.ndarray, image: np.ndarray, steps: int, colour: float) -> np.ndarray:
    """Araslanov and Roth, 2020: a probability is averaged over dilated neighbours of like colour, again and again.

    Args:
        steps: how often.
        colour: distance in units of the local standard deviation that counts as alike.
    """
    height, width = image.shape[:2]
    image = reduced(image)
    small = (image.shape[1], image.shape[0])
    pixels = image.astype(np.float32) / 255
    p = _probability(enlarge(logits, (small[1], small[0])))
    pad = 12
    padded = cv2.copyMakeBorder(pixels, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    offsets = [(dy * far, dx * far) for far in (1, 2, 4, 8, 12) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]

    def shifted(x: np.ndarray, dy: int, dx: int) -> np.ndarray:
        return x[pad + dy : pad + dy + small[1], pad + dx : pad + dx + small[0]]

    local = np.stack([shifted(padded, dy, dx) for dy, dx in offsets]).std(0).mean(-1) + 1e-2
    like = [np.exp(-np.abs(shifted(padded, dy, dx) - pixels).mean(-1) / (colour * local)) for dy, dx in offsets]
    norm = np.sum(like, axis=0)
    for _ in range(steps):
        around = cv2.copyMakeBorder(p, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        p = sum(weight * shifted(around, dy, dx) for weight, (dy, dx) in zip(like, offsets)) / norm
    return enlarge(_logit(p).astype(np.float32), (height, width))


REFINEMENTS: dict[str, Refinement] = {
    "bilinear": bilinear,
    "guided filter, half a cell": partial(guided, cells=0.5),
    "guided filter, one cell": partial(guided, cells=1.0),
    "joint bilateral 0.1": partial(joint_bilateral, colour=0.1),
    "random walk, 10 steps": partial(random_walk, steps=10, colour=0.3),
}
