"""A class's own threshold: the one at which its references find each other best. No torch here.

How far an object's scores stand out depends on the object, above all on its size, so one threshold for all classes is
right for few. The references' masks are known, so one can be searched with another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from fsdino.base.reference import Reference, reference_arrays
from fsdino.base.result import Segmentation
from fsdino.predict.engines import Engine

LEAST = 3  # references; two say too little
STEPS = np.arange(-24, 25) / 4  # logits beside the model's own threshold


def threshold_of(engine: Engine, references: Sequence[Reference]) -> float | None:
    """The probability above which a class's references find each other best, by their mean IoU.

    Each is searched with the one before it alone, which chooses as well as all the others do and takes but little more
    than `remember` takes.

    Returns:
        In (0, 1); None with fewer than three references with masks of the object.
    """
    shown = [one for one in references if one.mask is not None and not one.negative]
    if len(shown) < LEAST:
        return None
    own = _logit(engine.threshold)
    shares = np.zeros(len(STEPS))
    for before, searched in zip([shown[-1], *shown], shown):
        image, mask = reference_arrays(searched)
        (found,) = engine.find(engine.join([engine.remember([before])]), image)
        shares += _ious(found.probs, mask, own + STEPS)
    # Of equal ones the middle one: it is the farthest from where the masks get worse.
    best = np.flatnonzero(shares >= shares.max() - 1e-9)
    return float(1 / (1 + np.exp(-(own + STEPS[best[len(best) // 2]]))))


def with_thresholds(
    found: Iterable[Segmentation], own: Iterable[float | None], threshold: float
) -> Iterator[Segmentation]:
    """Results, one after the other, whose classes have thresholds of their own, as if all had the common one.

    Logits are moved by the difference, so that whatever follows compares like with like; None moves nothing.
    """
    for one, limit in zip(found, own):
        yield one if limit is None else _moved(one, limit, threshold)


def _moved(found: Segmentation, own: float, threshold: float) -> Segmentation:
    odds = np.float32(np.exp(_logit(threshold) - _logit(own)))
    probs = found.probs * odds
    probs /= probs + (1 - found.probs)
    return replace(found, probs=probs, mask=(probs > np.float32(threshold)) & found.present)


def _ious(probs: np.ndarray, mask: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """IoU with a mask (H, W) bool at each of the ascending thresholds."""
    # Bucket k holds the pixels above the first k thresholds; sums from the right count those above each.
    passed = np.searchsorted(1 / (1 + np.exp(-logits)), probs)
    hits, taken = (
        np.bincount(passed[chosen], minlength=len(logits) + 1)[::-1].cumsum()[::-1][1:]
        for chosen in (mask, np.ones_like(mask))
    )
    shares: np.ndarray = hits / (mask.sum() + taken - hits)
    return shares


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
