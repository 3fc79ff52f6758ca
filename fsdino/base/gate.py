"""The presence gate: an object that is judged absent gets no mask. Nothing here imports torch.

The judgement was learnt on certain classes and images. On others it errs often, in both ways, so there it is told and
not obeyed, unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal

import numpy as np

from fsdino.base.drawn import bundled_name, look_drawn
from fsdino.base.result import ONE_HALF, Segmentation

MinPresence = float | Literal["auto"]


def checked_presence(asked: Any) -> MinPresence:
    """What was asked for; a ValueError if it is neither auto nor a number in [0, 1]."""
    if asked == "auto":
        return "auto"
    if not isinstance(asked, Real) or isinstance(asked, bool) or not 0.0 <= float(asked) <= 1.0:
        raise ValueError(f"min_presence {asked!r:.80} is not a probability; use 0 (no gate) to 1, or auto.")
    return float(asked)


def least_presences(
    engine: Any,
    fingerprint: str,
    names: Sequence[str | None],
    images: Iterable[np.ndarray],
    asked: MinPresence = "auto",
) -> list[float]:
    """The presence above which each class counts as there; 0 where nothing is held back.

    With auto the gate is at one half: for the bundled model, where the images look like its drawn world; for models
    that know on which classes they learnt to miss an object, for those classes; for all others, as they have it.

    Args:
        engine: a `FewShotMethod`, or what runs its graphs.
        fingerprint: the model's, which is costly to ask for.
        names: of the classes; None for a memory without a name, which counts as one that the model knows.
        images: (H, W, 3) uint8, to be searched; no more are taken than auto needs.
        asked: as `checked_presence` gives it.
    """
    if asked != "auto":
        return [float(asked)] * len(names)
    if bundled_name(fingerprint):
        return [ONE_HALF if look_drawn(images) else 0.0] * len(names)
    known = getattr(engine, "missed_classes", None)
    if known is None:
        return [ONE_HALF] * len(names)
    plain = {one.strip().casefold() for one in known}
    return [ONE_HALF if name is None or name.strip().casefold() in plain else 0.0 for name in names]


def class_names(told: Any, where: str) -> tuple[str, ...] | None:
    """The classes that a model's description names as `missed_classes`; a ValueError if they are no names."""
    if told is not None and not (isinstance(told, list | tuple) and all(isinstance(one, str) for one in told)):
        raise ValueError(f"'{where}' names missed_classes {told!r:.80}, expected a list of names; export it again.")
    return None if told is None else tuple(told)


def gated(found: Segmentation, least: float, threshold: float) -> Segmentation:
    """A result that counts as present when its presence is above `least`, or in any case when that is 0.

    Args:
        found: as a method gives it: held back below one half.
        least: in [0, 1].
        threshold: probability above which a pixel belongs to the object.
    """
    if found.presence is None or least == ONE_HALF:
        return found
    present = least == 0 or found.presence > least
    # Compared in float32, as methods do: a pixel exactly at the threshold falls the same way.
    mask = found.probs > np.float32(threshold) if present else np.zeros_like(found.mask)
    return replace(found, mask=mask, present=present)
