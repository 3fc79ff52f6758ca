"""Losses on masks and embeddings, as pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, truth: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss per mask (RetinaNet, eq. 5).

    Args:
        logits: (..., S, S).
        truth: (..., S, S) float in [0, 1].
        valid: (..., S, S) float, 0 where a pixel is ignored.
        alpha: weight of the foreground.
        gamma: how much easy pixels are discounted.

    Returns:
        (...) mean over the valid pixels.
    """
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = torch.abs(truth - logits.sigmoid())
    weight = (alpha * truth + (1 - alpha) * (1 - truth)) * wrong**gamma
    return (weight * cross * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)


def bce_loss(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy per mask.

    Args:
        logits: (..., S, S).
        truth: (..., S, S) float in [0, 1].
        valid: (..., S, S) float, 0 where a pixel is ignored.

    Returns:
        (...) mean over the valid pixels.
    """
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (cross * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)


def dice_loss(logits: Tensor, truth: Tensor, valid: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice loss per mask (V-Net).

    Args:
        logits: (..., S, S).
        truth: (..., S, S) float in [0, 1].
        valid: (..., S, S) float, 0 where a pixel is ignored.
        smooth: pixels added to both sides of the quotient, so that empty masks are defined.

    Returns:
        (...) in [0, 1].
    """
    probs = logits.sigmoid() * valid
    truth = truth * valid
    both = (probs * truth).sum((-2, -1))
    return 1 - (2 * both + smooth) / (probs.sum((-2, -1)) + truth.sum((-2, -1)) + smooth)
