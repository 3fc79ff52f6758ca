"""What is found in an image, as NumPy arrays: one class, several classes, and their connected parts. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from fsdino.base.parts import parts_at_necks

# One bound for every method and engine: each class needs memory of its own, and an image may be asked for hundreds.
MAX_CLASSES_AT_ONCE = 16
# Images of a pass on a GPU. On a CPU one: more save about a tenth (benchmarks/results/batches.csv), and move last bits.
GPU_BATCH = 8
ONE_HALF = 0.5  # presence above which a class counts as there, see `fsdino.base.gate`


@dataclass
class Instance:
    """One connected part of a mask.

    Args:
        mask: (H, W) bool.
        box: x0, y0, x1, y1 in pixels; x1 and y1 are the first column and row past it.
        score: the class's score times the mean probability of the part's pixels, in [0, 1].
        name: the class.
    """

    mask: np.ndarray
    box: tuple[int, int, int, int]
    score: float
    name: str = ""


@dataclass
class Segmentation:
    """What was found of one class in one image, at the image's own size.

    Args:
        mask: (H, W) bool; all False where the object is absent.
        probs: (H, W) float32 in [0, 1].
        score: the method's own estimate of the mask's IoU, in [0, 1].
        present: whether the object counts as in the image at all: its presence is above one half, or above what was
            asked for instead (`fsdino.base.gate`).
        presence: probability that the object is in the image, in [0, 1]; None from a method that does not say.
    """

    mask: np.ndarray
    probs: np.ndarray
    score: float
    present: bool
    presence: float | None = None

    def instances(self, min_pixels: int = 1, name: str = "", cut_necks: bool = False) -> list[Instance]:
        """The connected parts of at least `min_pixels` of the mask (8 neighbours), the largest first.

        Args:
            min_pixels: parts with fewer are left out.
            name: the class's, for the instances.
            cut_necks: cut parts at their necks as well, so that touching objects come apart, and some single ones too;
                see `fsdino.base.parts`.
        """
        if cut_necks:
            parts = parts_at_necks(self.mask)
        else:
            _, parts = cv2.connectedComponents(self.mask.astype(np.uint8), connectivity=8)
        areas = np.bincount(parts.reshape(-1))
        found = []
        # Part 0 is the background.
        for part in sorted(range(1, len(areas)), key=lambda i: -int(areas[i])):
            if areas[part] < min_pixels:
                continue
            mask = parts == part
            x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
            score = self.score * float(self.probs[mask].mean())
            found.append(Instance(mask, (x, y, x + width, y + height), score, name))
        return found


@dataclass
class LabelMap:
    """What was found of several classes in one image; each pixel belongs to the most probable of them or to none.

    Args:
        labels: (H, W) uint8 (uint16 from 256 classes on), 0 for background and k for the k-th class.
        probs: (H, W) float32, the probability of each pixel's class, 0 on the background.
        scores: class name to its score in [0, 1], 0 where it is absent; in the order of the labels.
        presences: class name to its probability to be in the image, or None.
        present: class name to whether it counts as in the image; left out, presence above one half says so.
    """

    labels: np.ndarray
    probs: np.ndarray
    scores: dict[str, float] = field(default_factory=dict)
    presences: dict[str, float | None] = field(default_factory=dict)
    present: dict[str, bool] = field(default_factory=dict)

    @property
    def classes(self) -> Mapping[str, Segmentation]:
        """Class name to what was found of it; masks do not overlap, probabilities are 0 outside of the mask."""
        return {name: self._of_class(k, name) for k, name in enumerate(self.scores, start=1)}

    def instances(self, min_pixels: int = 1, cut_necks: bool = False) -> list[Instance]:
        """The connected parts of every class, class by class; see `Segmentation.instances`."""
        return [part for name, found in self.classes.items() for part in found.instances(min_pixels, name, cut_necks)]

    def _of_class(self, label: int, name: str) -> Segmentation:
        mask = self.labels == label
        presence = self.presences[name]
        present = self.present.get(name, presence is None or presence > ONE_HALF)
        return Segmentation(mask, np.where(mask, self.probs, np.float32(0)), self.scores[name], present, presence)


class LabelPainter:
    """Gives each pixel to the most probable of the classes that are added, one after the other.

    Args:
        size: (H, W) of the image.
        threshold: probability above which a pixel belongs to a class at all.
    """

    def __init__(self, size: tuple[int, int], threshold: float) -> None:
        # Starting from the threshold makes "above the threshold" and "above the other classes" one comparison.
        self._labels, self._best = np.zeros(size, np.uint16), np.full(size, threshold, np.float32)

    def add(self, label: int, probs: np.ndarray, first_row: int = 0) -> None:
        """Add a class's probabilities (h, W), of the whole image or of h rows of it; of equals the first one wins."""
        rows = slice(first_row, first_row + len(probs))
        wins = probs > self._best[rows]
        self._labels[rows][wins] = label
        self._best[rows][wins] = probs[wins]

    def finish(
        self, scores: dict[str, float], presences: dict[str, float | None], present: dict[str, bool]
    ) -> LabelMap:
        """The map of all that was added; class names in the order of the labels. Adds nothing after this."""
        self._best[self._labels == 0] = 0.0
        labels = self._labels.astype(np.uint8) if len(scores) < 256 else self._labels
        return LabelMap(labels, self._best, scores, presences, present)


def resolve(
    found: Iterable[tuple[str, Segmentation]], size: tuple[int, int], threshold: float, min_score: float = 0.0
) -> LabelMap:
    """Give each pixel to the most probable of the classes, or to the background.

    Args:
        found: name and result of each class, in the order of the labels.
        size: (H, W) of the image.
        threshold: probability above which a pixel belongs to a class at all.
        min_score: classes whose score is below count as absent.
    """
    labels = LabelPainter(size, threshold)
    scores: dict[str, float] = {}
    presences: dict[str, float | None] = {}
    present: dict[str, bool] = {}
    # Taken one after the other, so that the probabilities of one class at a time are held.
    for label, (name, one) in enumerate(found, start=1):
        is_there = one.present and one.score >= min_score
        if is_there:
            labels.add(label, one.probs)
        scores[name] = one.score if is_there else 0.0
        presences[name], present[name] = one.presence, one.present
    return labels.finish(scores, presences, present)
