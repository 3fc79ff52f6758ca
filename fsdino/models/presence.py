"""Whether the object is in the picture at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PresenceHead(nn.Module):
    """Small MLP on the decoder's mask token and the first guess; says "present" until it has learnt otherwise.

    Args:
        dim: Width D of the mask token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim + 2, max(8, dim // 4))
        self.out = nn.Linear(self.hidden.out_features, 1)
        nn.init.trunc_normal_(self.out.weight, std=0.02)
        nn.init.constant_(self.out.bias, 2.0)

    def forward(self, mask_token: Tensor, coarse_logits: Tensor) -> Tensor:
        """Judge presence.

        Args:
            mask_token: (B, D) the decoder's output token of the mask.
            coarse_logits: (B, 1, h, w).

        Returns:
            (B, 1) logit, above 0 where the object is present.
        """
        guess = coarse_logits.flatten(1)
        summary = torch.stack([guess.amax(-1), guess.mean(-1)], dim=-1).to(mask_token.dtype)
        # a tenth brings logits to the scale of the token's normalised entries
        return self.out(F.gelu(self.hidden(torch.cat([mask_token, 0.1 * summary], dim=-1))))
