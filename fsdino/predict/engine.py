"""What runs a segmenter: one small contract for torch and for ONNX. Nothing here imports torch on import."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdino.predict.support import Annotated

CLASSES_AT_ONCE = 16  # bounds the memory of an image with many classes


@dataclass
class Finding:
    """What was found of one class in one image.

    Args:
        probs: (H, W) float32 in [0, 1], at the image's own size.
        score: The model's estimate of the mask's quality, in [0, 1].
        present: Whether the class is in the image at all.
        presence: Probability that it is, in [0, 1]; None from a model that does not say.
    """

    probs: np.ndarray
    score: float
    present: bool
    presence: float | None = None


@dataclass
class Labelling:
    """All classes of one image; each pixel belongs to one of them or to the background.

    Args:
        labels: (H, W) uint8, 0 for background and k for the k-th class.
        probs: (H, W) float16, the probability of each pixel's class, 0 on the background.
        scores: Each class's score, 0 where it is absent.
        presences: Each class's probability to be in the image, or None.
    """

    labels: np.ndarray
    probs: np.ndarray
    scores: list[float]
    presences: list[float | None]


class Engine(ABC):
    """Remembers classes and finds them; a memory is whatever the engine makes it.

    Attributes:
        fingerprint: Names the model; memories of other models are refused.
        threshold: Probability above which a pixel belongs to a class.
        positional: Whether memories must keep every support position in its place.
    """

    fingerprint: str
    threshold: float
    positional: bool

    @abstractmethod
    def remember(self, references: Sequence[Annotated]) -> Any:
        """Turn the references of one class into a memory."""

    @abstractmethod
    def segment(self, memories: Sequence[Any], image: np.ndarray) -> Iterator[Finding]:
        """Find classes in an image (H, W, 3) uint8: one finding per memory, in order, made when it is asked for."""

    @abstractmethod
    def pack(self, memory: Any) -> dict[str, np.ndarray]:
        """A memory as named arrays with a leading axis of 1, the same for every engine of a model."""

    @abstractmethod
    def unpack(self, arrays: dict[str, np.ndarray]) -> Any:
        """The memory of packed arrays."""


def resolve(findings: Iterator[Finding], size: tuple[int, int], threshold: float, min_score: float = 0.0) -> Labelling:
    """Give each pixel to the most probable of the classes, or to the background.

    Args:
        findings: One per class, in the order of the labels.
        size: (H, W) of the image.
        threshold: Probability above which a pixel belongs to a class at all.
        min_score: Classes whose score is below count as absent.

    Returns:
        The labels, with the probability of each pixel and the score and presence of each class.
    """
    labels, best = np.zeros(size, np.uint8), np.full(size, threshold, np.float32)
    scores: list[float] = []
    presences: list[float | None] = []
    for label, finding in enumerate(findings, start=1):
        is_there = finding.present and finding.score >= min_score
        if is_there:
            wins = finding.probs > best
            labels[wins] = label
            best[wins] = finding.probs[wins]
        scores.append(finding.score if is_there else 0.0)
        presences.append(finding.presence)
    best[labels == 0] = 0.0
    return Labelling(labels, best.astype(np.float16), scores, presences)


def tiles(size: tuple[int, int], tile: int, overlap: float = 0.25) -> list[tuple[int, int, int, int]]:
    """Cover an image with equal, overlapping windows.

    Args:
        size: (H, W) of the image.
        tile: Side of a window in pixels; an image that is smaller in one direction gets windows of its size there.
        overlap: Least share of a window that it shares with its neighbour.

    Returns:
        (top, left, bottom, right) of each window.
    """
    edges = []
    for length in size:
        side = min(tile, length)
        count = 1 if length <= tile else int(np.ceil((length - side) / (side * (1 - overlap)))) + 1
        starts = np.linspace(0, length - side, count).round().astype(int)
        edges.append([(int(start), int(start) + side) for start in starts])
    return [(top, left, bottom, right) for top, bottom in edges[0] for left, right in edges[1]]


def segment_tiled(engine: Engine, memories: Sequence[Any], image: np.ndarray, tile: int) -> list[Finding]:
    """Segment a large image window by window, for objects that would be too small in the whole.

    Where windows overlap the probabilities are averaged with weights that fall towards a window's edges. A class is
    present when it is in any window; its score is the best of those windows, its presence the highest of all windows.

    Args:
        engine: What segments.
        memories: What to look for.
        image: (H, W, 3) uint8.
        tile: Side of a window in pixels.

    Returns:
        One finding per memory.
    """
    size = image.shape[:2]
    sums = np.zeros((len(memories), *size), np.float32)
    weight_sum = np.zeros(size, np.float32)
    scores, present = [0.0] * len(memories), [False] * len(memories)
    presences: list[list[float]] = [[] for _ in memories]
    for top, left, bottom, right in tiles(size, tile):
        window = np.s_[top:bottom, left:right]
        weight = np.minimum.outer(_ramp(bottom - top), _ramp(right - left))
        weight_sum[window] += weight
        for i, finding in enumerate(engine.segment(memories, image[window])):
            if finding.presence is not None:
                presences[i].append(finding.presence)
            if finding.present:  # the probabilities of an absent class count as 0
                sums[i][window] += weight * finding.probs
                present[i], scores[i] = True, max(scores[i], finding.score)
    return [
        Finding(sums[i] / weight_sum, scores[i], present[i], max(presences[i], default=None))
        for i in range(len(memories))
    ]


def _ramp(length: int) -> np.ndarray:
    """Weights that rise linearly over the outer quarter of a window, never 0."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
    return np.minimum(distance / max(1.0, length / 4), 1.0).astype(np.float32)
