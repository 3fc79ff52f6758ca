"""Losses on masks and embeddings, as pure functions.

Losses per mask take logits and truths in [0, 1], both (..., S, S), and `valid`, 0 where a pixel is ignored; they return
one value a mask, (...).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, truth: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (RetinaNet, eq. 5), the mean over valid pixels; `alpha` is the weight of the foreground."""
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = torch.abs(truth - logits.sigmoid())
    weight = (alpha * truth + (1 - alpha) * (1 - truth)) * wrong**gamma
    return (weight * cross * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)


def bce_loss(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over valid pixels."""
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    # A mask that is ignored altogether has loss 0, not 0 / 0.
    return (cross * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1)


def dice_loss(logits: Tensor, truth: Tensor, valid: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice loss (V-Net), in [0, 1]."""
    # Ignored pixels leave both sides of the quotient, so they neither reward nor punish; `smooth` on both sides lets
    # an empty mask of an empty truth be perfect.
    probs = logits.sigmoid() * valid
    truth = truth * valid
    both = (probs * truth).sum((-2, -1))
    return 1 - (2 * both + smooth) / (probs.sum((-2, -1)) + truth.sum((-2, -1)) + smooth)


def resize_embedding(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """An embedding (N, D, h, w) on another grid (h, w) that covers the same square."""
    # Exactly as it is where nothing is to be done: interpolation would round.
    if embedding.shape[-2:] == grid:
        return embedding
    # Antialiasing smooths where the grid shrinks and changes nothing where it grows.
    return F.interpolate(embedding, grid, mode="bilinear", align_corners=False, antialias=True)


def embedding_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of two embeddings (N, D, h, w), the distillation loss of the paper (arXiv 2504.15669)."""
    return F.mse_loss(student, teacher)


def embedding_cosine_smooth_l1(student: Tensor, teacher: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Cosine distance plus smooth L1 on channels standardised by the teacher's own statistics.

    Args:
        student: (N, D, h, w) in the teacher's units.
        teacher: (N, D, h, w).
        mean: (D,) of the teacher's channels.
        std: (D,) of the teacher's channels, above 0.
    """
    # A few teacher channels are much larger than the rest and would be all that a plain distance sees.
    shift, scale = mean[:, None, None], std[:, None, None]
    student, teacher = (student - shift) / scale, (teacher - shift) / scale
    cosine = F.cosine_similarity(student, teacher, dim=1)
    return (1 - cosine).mean() + F.smooth_l1_loss(student, teacher)


def mask_agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy and Dice of masks (N, S, S) against a teacher's soft masks, as logits; a scalar."""
    truth = teacher_logits.sigmoid()
    valid = torch.ones_like(truth)
    return (bce_loss(student_logits, truth, valid) + dice_loss(student_logits, truth, valid)).mean()
