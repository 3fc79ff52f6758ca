"""An engine that is right on pictures of one colour an object: it remembers the mean colour and finds it again."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fsdino.base.reference import Reference, reference_arrays
from fsdino.base.result import Segmentation


class ColourEngine:
    """See `fsdino.predict.engines.Engine`; counts how often it remembers."""

    threshold = 0.5
    name = "colours"
    takes_negatives = takes_hints = False

    def __init__(self) -> None:
        self.remembered: list[list[str]] = []

    def fingerprint(self) -> str:
        return "colours"

    def remember(self, references: Sequence[Reference]) -> Any:
        self.remembered.append([one.name for one in references])
        pairs = [reference_arrays(one) for one in references if not one.negative]
        colours = np.concatenate([image[mask] for image, mask in pairs]).astype(float)
        return {"mean": colours.mean(0)[None]}

    def join(self, memories: Sequence[Any]) -> Sequence[Any]:
        return list(memories)

    def find(self, joined: Sequence[Any], image: np.ndarray) -> Iterator[Segmentation]:
        for memory in joined:
            away = np.abs(image.astype(float) - memory["mean"]).max(-1)
            probs = np.where(away < 30, 0.9, 0.1).astype(np.float32)
            yield Segmentation(probs > 0.5, probs, 0.8, bool((probs > 0.5).any()), 0.9 if (probs > 0.5).any() else 0.1)

    def pack(self, memory: Any) -> dict[str, np.ndarray]:
        return dict(memory)

    def unpack(self, arrays: dict[str, np.ndarray]) -> Any:
        return dict(arrays)


class HintedEngine(ColourEngine):
    """The same, that also takes hints: a box is an object as a whole, a point everything of its pixel's colour."""

    takes_negatives = takes_hints = True

    def draw_mask(self, reference: Reference) -> np.ndarray:
        image = np.asarray(reference.image)
        mask = np.zeros(image.shape[:2], bool)
        if reference.box is not None:
            x0, y0, x1, y1 = (round(value) for value in reference.box)
            mask[y0 : y1 + 1, x0 : x1 + 1] = True
        for (x, y), label in zip(reference.points or [], reference.labels or []):
            same = (image == image[round(y), round(x)]).all(-1)
            mask = mask | same if label else mask & ~same
        return mask


def picture(colour: tuple[int, int, int], top: int = 4, left: int = 6, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """A grey picture with a square of 8 pixels in a colour."""
    image = np.full((*size, 3), 128, np.uint8)
    image[top : top + 8, left : left + 8] = colour
    return image


def square(top: int = 4, left: int = 6, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """The mask of its square."""
    mask = np.zeros(size, bool)
    mask[top : top + 8, left : left + 8] = True
    return mask
