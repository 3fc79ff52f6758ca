"""From what is remembered and what is seen to SAM's prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdino.models.correlation import TEMPERATURE, MapReader, cosine_correlation, pool_correlation
from fsdino.models.memory import SupportMemory
from fsdino.models.smoothing import ChainRule, affinity, chain_scores, relative_margin, smooth

RULE = ChainRule()  # what the first guess starts as


class EncodedQuery(NamedTuple):
    """What depends on the image alone, computed once for any number of classes.

    Args:
        embedding: (B, D, h, w) in SAM's space.
        tokens: (B, L, h*w, C) unit-length tokens of the compared blocks.
        similar: (B, h*w, h*w) similarities of the image's own positions, every row sums to 1.
    """

    embedding: Tensor
    tokens: Tensor
    similar: Tensor


@dataclass
class Prompts:
    """Prompts for the mask decoder.

    Args:
        sparse: (B, P, D) tokens.
        dense: (B, D, h, w), added to what SAM's mask stem makes of the coarse logits.
        coarse_logits: (B, 1, h, w) first guess of the mask.
        cosines: (B, 2, L, h*w) with the reference's object and background prototypes.
    """

    sparse: Tensor
    dense: Tensor
    coarse_logits: Tensor
    cosines: Tensor


def similarities(tokens: Tensor) -> Tensor:
    """`EncodedQuery.similar` of its tokens (B, L, Q, C): of the mean of L cosines."""
    wide = tokens.transpose(1, 2).flatten(2)  # (B, Q, L * C)
    return affinity(wide, RULE.smoothing_scale / tokens.shape[1])


class PromptGenerator(nn.Module):
    """Meta-visual prompt generator of FS-DINO (arXiv 2504.15669), started where a training-free chain ends.

    Sparse prompts are the projected prototypes of every layer. The first guess is that of the chain
    (`fsdino.methods.chain`), corrected by a reader of its maps, of the cosines with the foreground and background
    prototypes and, in the full model, of the pooled 4D correlation. The guess gives the image's own prototypes, as SSP
    (Fan et al. 2022) has them, and a second reader corrects it by how the image compares with these. Without training
    the coarse logits are the chain's.

    Args:
        encoder_dim: channels C of the encoder.
        num_layers: number L of layers compared.
        prompt_dim: width D of the prompts.
        reader_dim: channels R of the readers.
        correlation: whether the 4D correlation is read, or prototypes alone (compact model).
        sparse: whether there are sparse prompts.
        channel_match: whether the reader also sees a learnt weighting of the channels in which query and prototypes
            agree; a cosine weighs all channels alike.
        own_prototypes: whether there is the second reader.
    """

    def __init__(
        self,
        encoder_dim: int,
        num_layers: int,
        prompt_dim: int,
        reader_dim: int,
        correlation: bool = True,
        sparse: bool = True,
        channel_match: bool = True,
        own_prototypes: bool = True,
    ) -> None:
        super().__init__()
        self.prompt_dim, self.correlation = prompt_dim, correlation
        self.token_proj = nn.ModuleList(nn.Linear(encoder_dim, prompt_dim) for _ in range(num_layers if sparse else 0))
        if sparse:
            self.kind_embed = nn.Parameter(0.02 * torch.randn(2, prompt_dim))  # foreground, background
        self.sharpness = nn.Parameter(torch.tensor(RULE.sharpness))
        self.cut = nn.Parameter(torch.tensor(RULE.cut))
        num_maps = 2 * num_layers + 2 + 3 * RULE.own_rounds + (4 * num_layers + 2 if correlation else 0)
        self.reader = MapReader(num_maps, reader_dim)
        self.guess = nn.Conv2d(reader_dim, 1, 1)
        self.matchers = nn.ModuleList(
            nn.Linear(2 * encoder_dim, reader_dim) for _ in range(num_layers if channel_match else 0)
        )
        self.own_reader = MapReader(2 * num_layers + 3, reader_dim, (1, 2)) if own_prototypes else None
        self.own_guess = nn.Conv2d(reader_dim, 1, 1) if own_prototypes else None
        self.dense_proj = nn.Conv2d(reader_dim, prompt_dim, 1)
        self._init()

    def _init(self) -> None:
        """Start as the training-free score; the dense prompt starts small so that SAM's own prompts still hold."""
        for head in (self.guess, self.own_guess):
            if head is not None:
                nn.init.zeros_(head.weight)
        nn.init.trunc_normal_(self.dense_proj.weight, std=0.02)
        for bias in (head.bias for head in (self.guess, self.own_guess, self.dense_proj) if head is not None):
            assert bias is not None
            nn.init.zeros_(bias)

    def forward(self, memory: SupportMemory, seen: EncodedQuery) -> Prompts:
        """Make the prompts at the query's grid.

        Args:
            memory: references, of batch B or 1; or of any batch N for one image, N classes at once.
            seen: of B images, or one.
        """
        size = seen.embedding.shape[-2:]
        maps, score, cosines = self.maps(memory, seen)
        hint = self.channel_hint(memory, seen.tokens).unflatten(-1, size) if len(self.matchers) else None
        features = self.reader(maps.unflatten(-1, size), hint)
        start = self.sharpness * relative_margin(score, self.cut)
        coarse = start.unflatten(-1, size)[:, None] + self.guess(features)
        if self.own_reader is not None and self.own_guess is not None:
            own = self.own_maps(coarse, seen.tokens)
            features = self.own_reader(own.unflatten(-1, size), features)
            coarse = coarse + self.own_guess(features)
        sparse = self.tokens(memory, coarse.shape[0])
        return Prompts(sparse, self.dense_proj(features), coarse, cosines)

    def maps(self, memory: SupportMemory, seen: EncodedQuery) -> tuple[Tensor, Tensor, Tensor]:
        """What a reader sees of images and references, (B or N, n, h*w).

        And the chain's score (B or N, h*w), and the cosines of `Prompts`.
        """
        images = seen.tokens.shape[0]
        cosines = _by_class(cosine_correlation(seen.tokens, _side_by_side(memory.prototypes, images)).float())
        to_object, to_background = cosines.mean(3).unbind(2)  # (images, G, Q): several classes are maps of one image
        score, on_the_way = chain_scores(to_object, to_background, seen.tokens, seen.similar, RULE)
        maps = [cosines.flatten(2, 3), torch.stack(on_the_way, dim=2)]
        found = torch.cat(maps, dim=2).flatten(0, 1)
        if self.correlation:
            found = torch.cat([found, *self.correlation_maps(memory, seen)], dim=1)
        return found, score.flatten(0, 1), cosines.flatten(0, 1)

    def correlation_maps(self, memory: SupportMemory, seen: EncodedQuery) -> list[Tensor]:
        """The 4D correlation, pooled layer by layer, as maps (B or N, ..., h*w)."""
        support, fg, bg = memory.positions()
        groups, images = torch.stack([fg, bg], dim=1), seen.tokens.shape[0]
        layers = zip(seen.tokens.unbind(1), support.unbind(1))
        pooled = torch.stack([pool_correlation(q, s, groups, TEMPERATURE) for q, s in layers], dim=1)
        best = pooled[:, :, :, ::2]  # (B or N, L, 2, 2, Q): smooth maximum and maximum, of object and of background
        # Where both have a good match, their difference tells what a maximum cannot: which one is better.
        contrast = best[:, :, 0] - best[:, :, 1]
        mean = contrast.mean(1)
        spread = smooth(mean.unflatten(0, (images, -1)).flatten(1, 2), seen.similar, 2).reshape(mean.shape)
        return [best[:, :, 0].flatten(1, 2), contrast.flatten(1, 2), spread]

    def own_maps(self, guess: Tensor, tokens: Tensor) -> Tensor:
        """Cosines (B or N, 2L + 3, h*w) with the image's own prototypes under a guess (B or N, 1, h, w).

        Layer by layer with the object's and with the background's, then the means of both and their difference.
        """
        own = own_prototypes(guess.flatten(1).float().sigmoid(), tokens)
        own = _side_by_side(own, tokens.shape[0])
        cosines = _by_class(cosine_correlation(tokens, own).float())
        means = cosines.mean(3)
        contrast = means[:, :, :1] - means[:, :, 1:]
        return torch.cat([cosines.flatten(2, 3), means, contrast], dim=2).flatten(0, 1)

    def channel_hint(self, memory: SupportMemory, query: Tensor) -> Tensor:
        """(B, R, h*w): learnt projections of the products of query and prototype, channel by channel, over layers."""
        hint = torch.zeros((), device=query.device, dtype=query.dtype)
        for i, matcher in enumerate(self.matchers):
            assert isinstance(matcher, nn.Linear)
            # Entries of unit vectors are about 1 / sqrt(C), so products of two of them times C are about 1.
            prototypes = memory.prototypes[:, i] * query.shape[-1]
            kinds = matcher.weight.unflatten(-1, (2, -1))  # (R, 2, C)
            # The prototypes go into the weights, once a class: the products at every position are never formed.
            weight = (kinds * prototypes[:, None]).sum(2)  # (B, R, C)
            hint = hint + query[:, i] @ weight.transpose(-1, -2) + matcher.bias
        return hint.transpose(-1, -2)

    def tokens(self, memory: SupportMemory, num_queries: int) -> Tensor:
        """(B, 2L, D) projected prototypes, or (B, 0, D) without sparse prompts."""
        if len(self.token_proj) == 0:
            return self.sharpness.new_zeros((num_queries, 0, self.prompt_dim))
        scaled = memory.prototypes * math.sqrt(memory.prototypes.shape[-1])  # entries about 1, as layer-normed tokens
        kinds = self.kind_embed
        tokens = [proj(scaled[:, i]) + kinds for i, proj in enumerate(self.token_proj)]  # each (B or 1, 2, D)
        return torch.cat(tokens, dim=1).expand(num_queries, -1, -1)


def own_prototypes(inside: Tensor, tokens: Tensor) -> Tensor:
    """Prototypes (B or N, L, 2, C) of images' object and background under a guess.

    Args:
        inside: (B or N, Q) probabilities that a position is of the object; of N classes where there is one image.
        tokens: (B, L, Q, C) of the images.
    """
    images = tokens.shape[0]
    # Squared, so that positions of which the guess is sure decide.
    weights = torch.stack([inside, 1.0 - inside], dim=1) ** 2
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    weights = weights.unflatten(0, (images, -1)).flatten(1, 2)  # (images, 2 G, Q): an image's classes in one product
    own = F.normalize(weights[:, None].to(tokens.dtype) @ tokens, dim=-1, eps=1e-5)  # (images, L, 2 G, C)
    return own.unflatten(2, (-1, 2)).transpose(1, 2).flatten(0, 1)


def _side_by_side(prototypes: Tensor, images: int) -> Tensor:
    """Prototypes (N, L, 2, C) as (images, L, 2 G, C): an image has a class of its own, or one image all N."""
    if prototypes.shape[0] in (images, 1):
        return prototypes
    return prototypes.transpose(0, 1).flatten(1, 2)[None]


def _by_class(cosines: Tensor) -> Tensor:
    """Cosines (images, L, Q, 2 G) as (images, G, 2, L, Q)."""
    return cosines.permute(0, 3, 1, 2).unflatten(1, (-1, 2))
