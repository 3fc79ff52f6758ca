"""Whether the object is in the image at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdino.models.memory import SupportMemory
from fsdino.models.prompts import EncodedQuery, Prompts, own_prototypes

# Shares of the positions whose best values are averaged: a maximum alone is one position's word, and noisy.
COARSE_SHARES, MASK_SHARES, COSINE_SHARES = (0.02, 0.1), (0.01, 0.05), (0.02, 0.1)
NUM_STATISTICS = 3 + len(COARSE_SHARES) + 2 + len(MASK_SHARES) + 2
NUM_LIKENESS = 6 + 3 + len(COSINE_SHARES)  # of each compared block


class PresenceHead(nn.Module):
    """Small MLP that says "present" until it has learnt otherwise.

    It judges the decoder's mask token and the first guess. One trained with absent objects (`fsdino.training.presence`)
    judges plain numbers instead: how the logits of guess and mask are spread, and block by block how alike the
    reference's object is to what was found and to the image's best positions. Such numbers mean the same for every
    class, and a token has learnt its classes.

    Args:
        dim: width D of the mask token.
        likeness_layers: number L of compared blocks where it judges plain numbers; None: it judges the token.
    """

    def __init__(self, dim: int, likeness_layers: int | None = None) -> None:
        super().__init__()
        self.likeness_layers = likeness_layers
        seen = dim + 2 if likeness_layers is None else NUM_STATISTICS + NUM_LIKENESS * likeness_layers
        self.hidden = nn.Linear(seen, max(8, dim // 4))
        self.out = nn.Linear(self.hidden.out_features, 1)
        # sigmoid(2) = 0.88: until the head is trained, a mask is believed.
        nn.init.trunc_normal_(self.out.weight, std=0.02)
        nn.init.constant_(self.out.bias, 2.0)

    def evidence(
        self, memory: SupportMemory, encoded: EncodedQuery, prompts: Prompts, mask_token: Tensor, mask_logits: Tensor
    ) -> Tensor:
        """What is judged, (B, E).

        Args:
            memory: references, as for the prompts.
            encoded: the images, as for the prompts.
            prompts: what was made of both.
            mask_token: (B, D) the decoder's output token of the mask.
            mask_logits: (B, 1, 4h, 4w).
        """
        guess, mask = prompts.coarse_logits.flatten(1), mask_logits.flatten(1)
        if self.likeness_layers is None:
            # Logits are taken by a tenth: that brings them to the scale of the token's normalised entries.
            summary = torch.stack([guess.amax(-1), guess.mean(-1)], dim=-1).to(mask_token.dtype)
            return torch.cat([mask_token, 0.1 * summary], dim=-1)
        inside = F.avg_pool2d(mask_logits.float().sigmoid(), 4).flatten(1)
        own = own_prototypes(inside, encoded.tokens)
        found = [statistics(guess, mask), likeness(memory.prototypes, own, prompts.cosines[:, 0])]
        return torch.cat(found, dim=-1).to(mask_token.dtype)

    def forward(self, evidence: Tensor) -> Tensor:
        """Logits (B, 1) of evidence (B, E), above 0 where the object is present."""
        return self.out(F.gelu(self.hidden(evidence)))


def statistics(guess: Tensor, mask: Tensor) -> Tensor:
    """How logits of a first guess (B, Q) and of a mask (B, P) are spread, (B, NUM_STATISTICS)."""
    probs = mask.sigmoid()
    area = probs.mean(-1)
    logits = [guess.amax(-1), guess.mean(-1), guess.std(-1), *_top_means(guess, COARSE_SHARES)]
    logits += [mask.amax(-1), mask.mean(-1), *_top_means(mask, MASK_SHARES)]
    sureness = probs.square().mean(-1) / area.clamp_min(1e-6)  # mean probability where there is a mask at all
    return torch.cat([0.1 * torch.stack(logits, -1), torch.stack([area, sureness], -1)], dim=-1)


def likeness(reference: Tensor, own: Tensor, cosines: Tensor) -> Tensor:
    """How much what was found is what was shown, (B, NUM_LIKENESS * L).

    Args:
        reference: (B or 1, L, 2, C) prototypes of object and background in the references.
        own: (B, L, 2, C) the same in the image, under the mask that was found.
        cosines: (B, L, Q) of the image's positions with the reference's object.
    """
    reference = reference.expand_as(own).float()
    own, cosines = own.float(), cosines.float()
    across = (own @ reference.transpose(-1, -2)).flatten(2)  # (B, L, 4)
    apart = [(pair[:, :, 0] * pair[:, :, 1]).sum(-1) for pair in (own, reference)]  # how alike object and rest are
    best = [cosines.amax(-1), *_top_means(cosines, COSINE_SHARES), cosines.mean(-1), cosines.std(-1)]
    return torch.cat([across, torch.stack([*apart, *best], dim=-1)], dim=-1).flatten(1)


def _top_means(values: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Means (...) of the largest values (..., Q), for each share of them."""
    # One `topk` for the largest share serves all: its values come sorted.
    counts = [max(1, round(share * values.shape[-1])) for share in shares]
    best = values.topk(max(counts), dim=-1).values
    return [best[..., :count].mean(-1) for count in counts]
