"""A class's own cut: the one at which its references find each other best. No torch here.

The training-free chain cuts part of the way from an image's mean score to its highest. How large a part is right
depends on the class. The references' masks are known: each reference can be searched with the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fsdino.base.reference import Reference, reference_arrays
from fsdino.base.result import Segmentation
from fsdino.predict.engines import Engine

# Methods that find something in every image. Others say by their probabilities that a class is not there, and a cut
# that follows each image would take that from them.
RELATIVE = frozenset({"chain"})
LEAST, MOST = 3, 5  # references that it takes, and that are searched
CUTS = np.linspace(0.06, 0.94, 45)


def check_cuts(engine: Engine) -> None:
    """Check that an engine's classes can have cuts of their own.

    Raises:
        ValueError: if it is no training-free chain.
    """
    if engine.name not in RELATIVE:
        raise ValueError(
            f"threshold references: {engine.name} does not cut relative to each image as the training-free chain does; "
            "give a probability, or name an encoder as the model."
        )


def cut_of(engine: Engine, references: Sequence[Reference]) -> float | None:
    """The part of the way from an image's mean logit to its highest at which a class's references find each other best.

    Up to five references are searched, each with all the others, and the mean of their IoUs decides: this takes a few
    times what `remember` takes.

    Returns:
        In (0, 1), as `ChainMethod.cut`; None with fewer than three references with masks of the object, which say too
        little.

    Raises:
        ValueError: if the engine is no training-free chain.
    """
    check_cuts(engine)
    shown = with_masks(references)
    if len(shown) < LEAST:
        return None
    curves = list[np.ndarray]()
    for searched in shown[:MOST]:
        memory: Any = engine.remember([one for one in references if one is not searched])
        image, mask = reference_arrays(searched)
        (found,) = engine.find(engine.join([memory]), image)
        logits = _logits(found.probs)
        curves.append(ious_above(_level(logits, CUTS), logits, mask))
    return best_cut(np.mean(curves, axis=0))


def with_masks(references: Sequence[Reference]) -> list[Reference]:
    """The references that show the object by a mask."""
    return [one for one in references if one.mask is not None and not one.negative]


def best_cut(ious: np.ndarray) -> float:
    """The cut with the highest IoU; of equal ones the middle one, which is the farthest from where masks get worse."""
    best = np.flatnonzero(ious >= ious.max() - 1e-9)
    return float(CUTS[best[len(best) // 2]])


def with_cuts(found: Iterable[Segmentation], cuts: Iterable[float | None], threshold: float) -> Iterator[Segmentation]:
    """Results, one after the other, of classes that have cuts of their own, as if the common threshold were at them.

    Logits are moved, so that whatever follows compares like with like; None moves nothing.
    """
    for one, cut in zip(found, cuts):
        yield one if cut is None else _moved(one, cut, threshold)


def _moved(found: Segmentation, cut: float, threshold: float) -> Segmentation:
    logits = _logits(found.probs)
    logits += np.float32(np.log(threshold / (1 - threshold)) - _level(logits, np.array([cut]))[0])
    probs = 1 / (1 + np.exp(-logits))
    return replace(found, probs=probs, mask=(probs > np.float32(threshold)) & found.present)


def _logits(probs: np.ndarray) -> np.ndarray:
    limited = probs.clip(1e-6, 1 - 1e-6)
    logits: np.ndarray = np.log(limited / (1 - limited))
    return logits


def _level(logits: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The logits that lie at the cuts of an image's."""
    mean = logits.mean(dtype=np.float64)
    levels: np.ndarray = mean + cuts * (logits.max() - mean)
    return levels


def ious_above(levels: np.ndarray, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """IoU of what is above each of the ascending levels in a map (H, W), with a mask (H, W) bool."""
    # Bucket k holds the pixels above the first k levels; sums from the right count those above each.
    passed = np.searchsorted(levels, values)
    hits, taken = (
        np.bincount(passed[chosen], minlength=len(levels) + 1)[::-1].cumsum()[::-1][1:]
        for chosen in (mask, np.ones_like(mask))
    )
    shares: np.ndarray = hits / (mask.sum() + taken - hits)
    return shares
