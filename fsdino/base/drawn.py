"""Telling the bundled model's drawn world from photographs, so that nobody takes its masks of them for good ones."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice

import cv2
import numpy as np

from fsdino.base.bundled import BUNDLED, bundled_fingerprint

SIDE = 112  # pixels: of the drawn world's images, so that fine detail is as fine in any image
CUT = 0.68  # chosen and checked by benchmarks/accuracy/drawn.py
ENOUGH = 5  # images that are looked at


def shared_detail(image: np.ndarray) -> float:
    """How much the fine detail of an image's colours goes together, as a correlation in [-1, 1].

    Light and shade change all three channels of a photograph alike, and a grey image has but one; the drawn world
    paints every texture in two colours drawn at random. Images without any detail give -1: nothing is known of them.

    Args:
        image: (H, W, 3) uint8.
    """
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = (small - cv2.blur(small, (3, 3))).reshape(-1, 3)
    if float(detail.std(axis=0).min()) < 1e-3:
        return -1.0
    return float(np.corrcoef(detail.T)[np.triu_indices(3, 1)].mean())


def look_drawn(images: Iterable[np.ndarray]) -> bool:
    """Whether images (H, W, 3) uint8, judged by the first few, are like those of the drawn world; also without any."""
    found = [shared_detail(image) for image in islice(images, ENOUGH)]
    return not found or float(np.median(found)) < CUT


def bundled_name(fingerprint: str) -> str | None:
    """The name of the bundled model of a fingerprint; None for other models."""
    # A checkout whose weights are not made yet has none.
    with suppress(FileNotFoundError):
        return next((name for name in BUNDLED if bundled_fingerprint(name) == fingerprint), None)
    return None


def caution(fingerprint: str, images: Iterable[np.ndarray]) -> str | None:
    """A sentence where a bundled model meets images that it was not made for; None for others and other models.

    Args:
        fingerprint: of the model.
        images: (H, W, 3) uint8; no more are taken than it needs.
    """
    name = bundled_name(fingerprint)
    if name is None or look_drawn(images):
        return None
    return (
        f"the bundled model '{name}' knows drawn shapes and textures alone, and these images are not of that kind, "
        "photographs most likely: expect poor masks. --model dinov2-s14 takes a model for photographs, "
        "--encoder-weights FILE its weights from a file, and `fsdino models` lists others."
    )
