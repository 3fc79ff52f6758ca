"""Whether the object is in the image at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shares of the positions whose best logits are averaged: a maximum alone is one position's word, and noisy.
COARSE_SHARES, MASK_SHARES = (0.02, 0.1), (0.01, 0.05)
NUM_STATISTICS = 3 + len(COARSE_SHARES) + 2 + len(MASK_SHARES) + 2


class PresenceHead(nn.Module):
    """Small MLP on the decoder's mask token and the first guess; says "present" until it has learnt otherwise.

    Args:
        dim: width D of the mask token.
        statistics: whether it also sees how the logits of guess and mask are spread; a head trained with absent objects
            (`fsdino.training.presence`) does.
    """

    def __init__(self, dim: int, statistics: bool = False) -> None:
        super().__init__()
        self.statistics = statistics
        self.hidden = nn.Linear(dim + (NUM_STATISTICS if statistics else 2), max(8, dim // 4))
        self.out = nn.Linear(self.hidden.out_features, 1)
        # sigmoid(2) = 0.88: until the head is trained, a mask is believed.
        nn.init.trunc_normal_(self.out.weight, std=0.02)
        nn.init.constant_(self.out.bias, 2.0)

    def evidence(self, mask_token: Tensor, coarse_logits: Tensor, mask_logits: Tensor) -> Tensor:
        """What is judged, (B, E).

        Args:
            mask_token: (B, D) the decoder's output token of the mask.
            coarse_logits: (B, 1, h, w).
            mask_logits: (B, 1, 4h, 4w).
        """
        # Logits are taken by a tenth: that brings them to the scale of the token's normalised entries.
        guess = coarse_logits.flatten(1)
        if not self.statistics:
            summary = torch.stack([guess.amax(-1), guess.mean(-1)], dim=-1).to(mask_token.dtype)
            return torch.cat([mask_token, 0.1 * summary], dim=-1)
        mask = mask_logits.flatten(1)
        probs = mask.sigmoid()
        area = probs.mean(-1)
        logits = [guess.amax(-1), guess.mean(-1), guess.std(-1), *_top_means(guess, COARSE_SHARES)]
        logits += [mask.amax(-1), mask.mean(-1), *_top_means(mask, MASK_SHARES)]
        sureness = probs.square().mean(-1) / area.clamp_min(1e-6)  # mean probability where there is a mask at all
        summary = torch.cat([0.1 * torch.stack(logits, -1), torch.stack([area, sureness], -1)], dim=-1)
        return torch.cat([mask_token, summary.to(mask_token.dtype)], dim=-1)

    def forward(self, evidence: Tensor) -> Tensor:
        """Logits (B, 1) of evidence (B, E), above 0 where the object is present."""
        return self.out(F.gelu(self.hidden(evidence)))


def _top_means(values: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Means (B,) of the largest values (B, Q), for each share of them."""
    # One `topk` for the largest share serves all: its values come sorted.
    counts = [max(1, round(share * values.shape[-1])) for share in shares]
    best = values.topk(max(counts), dim=-1).values
    return [best[:, :count].mean(-1) for count in counts]
