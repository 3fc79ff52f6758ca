"""What becomes of an answer before it is a mask: own cuts, presence gate, edges of the image. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fsdino.base.gate import MinPresence, checked_presence, gated, least_presences
from fsdino.base.result import Segmentation
from fsdino.base.sharpen import SHARPENED, all_sharpened
from fsdino.predict.cut import with_cuts
from fsdino.predict.engines import Engine


@dataclass(frozen=True)
class Finish:
    """What becomes of an answer before it is a mask.

    Args:
        min_presence: classes whose probability to be in an image is not above, in [0, 1], get no mask; 0 leaves every
            mask. auto: one half where the model learnt what absent means, on those classes or in its drawn world, and 0
            elsewhere, where that probability is a guess.
        refine_edges: move the masks' edges to where the image has them (a guided filter); left out: for the
            training-free chain alone, whose masks of photographs gain by it.
    """

    min_presence: MinPresence = "auto"
    refine_edges: bool | None = None

    def __post_init__(self) -> None:
        checked_presence(self.min_presence)

    def least(
        self, engine: Engine, fingerprint: str, names: Sequence[str], images: Iterable[np.ndarray]
    ) -> list[float]:
        """The presence that each class needs, see `fsdino.base.gate`."""
        return least_presences(engine, fingerprint, names, images, checked_presence(self.min_presence))

    def refines(self, engine: Engine) -> bool:
        """Whether edges are moved."""
        return engine.name in SHARPENED if self.refine_edges is None else self.refine_edges


AS_MEASURED = Finish()


def finished(
    found: Iterable[Segmentation],
    image: np.ndarray,
    threshold: float,
    least: Sequence[float] = (),
    refine_edges: bool = False,
    cuts: Sequence[float | None] = (),
) -> Iterable[Segmentation]:
    """Results of an image's classes, one after the other, as a `Finish` has them.

    Args:
        found: what an engine found, class by class.
        image: (H, W, 3) uint8, that they were found in.
        threshold: probability above which a pixel belongs to a class.
        least: the presence that each class needs; empty: one half.
        cuts: of the classes' own, or None, see `fsdino.predict.cut`; empty: none has one.
    """
    kept: Iterator[Segmentation] = iter(found)
    if any(cuts):
        kept = with_cuts(kept, cuts, threshold)
    if least:
        kept = (gated(one, limit, threshold) for one, limit in zip(kept, least))
    return all_sharpened(kept, image, threshold) if refine_edges else kept
