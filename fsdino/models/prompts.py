"""From what is remembered and what is seen to SAM's prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsdino.models.correlation import PooledReader, cosine_correlation
from fsdino.models.memory import SupportMemory

SCORE_SCALE = 10.0  # cosine differences are a few tenths: this makes logits of a few units


@dataclass
class Prompts:
    """Prompts for the mask decoder.

    Args:
        sparse: (B, P, D) tokens.
        dense: (B, D, h, w), added to what SAM's mask stem makes of the coarse logits.
        coarse_logits: (B, 1, h, w) first guess of the mask.
    """

    sparse: Tensor
    dense: Tensor
    coarse_logits: Tensor


class PromptGenerator(nn.Module):
    """Meta-visual prompt generator of FS-DINO (arXiv 2504.15669).

    Sparse prompts are the projected prototypes of every layer. The dense prompt comes from the cosine maps of the query
    with the foreground and background prototypes (compact) and, in the full model, from a reader of the 4D correlation.
    Without training, the coarse logits are the scaled difference of foreground and background.

    Args:
        encoder_dim: channels C of the encoder.
        num_layers: number L of layers compared.
        prompt_dim: width D of the prompts.
        reader: reader of the 4D correlation with R channels, or None for the compact model.
        sparse: whether there are sparse prompts.
        channel_match: whether the reader also sees a learnt weighting of the channels in which query and prototypes
            agree; a cosine weighs all channels alike. Full model only.
    """

    def __init__(
        self,
        encoder_dim: int,
        num_layers: int,
        prompt_dim: int,
        reader: PooledReader | None = None,
        sparse: bool = True,
        channel_match: bool = True,
    ) -> None:
        super().__init__()
        self.prompt_dim = prompt_dim
        self.reader = reader
        self.token_proj = nn.ModuleList(nn.Linear(encoder_dim, prompt_dim) for _ in range(num_layers if sparse else 0))
        if sparse:
            self.kind_embed = nn.Parameter(0.02 * torch.randn(2, prompt_dim))  # foreground, background
        num_maps = 2 * num_layers
        self.score_head = nn.Conv2d(num_maps, 1, 1)
        self.dense_proj = nn.Conv2d(num_maps, prompt_dim, 1)
        self.matchers: nn.ModuleList | None = None
        self.reader_scale = None  # without contrast, a reader has no training-free score
        if reader is not None:
            if reader.contrastive:
                self.reader_scale = nn.Parameter(torch.full((1,), 0.5 * SCORE_SCALE))
            self.reader_score = nn.Conv2d(reader.dim, 1, 1)
            self.reader_proj = nn.Conv2d(reader.dim, prompt_dim, 1)
            if channel_match:
                self.matchers = nn.ModuleList(nn.Linear(2 * encoder_dim, reader.dim) for _ in range(num_layers))
        self._init(num_layers)

    def _init(self, num_layers: int) -> None:
        """Start as the training-free score; what is learnt starts small so that SAM's own prompts still hold."""
        # Where the reader has a score of its own, the first guess is the mean of both.
        scale = SCORE_SCALE if self.reader_scale is None else 0.5 * SCORE_SCALE
        # Maps come layer by layer, foreground before background: even weights add, odd ones subtract.
        with torch.no_grad():
            weight = torch.zeros(self.score_head.weight.shape[1])
            weight[0 : 2 * num_layers : 2] = scale / num_layers
            weight[1 : 2 * num_layers : 2] = -scale / num_layers
            self.score_head.weight.copy_(weight.view_as(self.score_head.weight))
        heads = [self.dense_proj] if self.reader is None else [self.dense_proj, self.reader_score, self.reader_proj]
        for head in heads:
            nn.init.trunc_normal_(head.weight, std=0.02)
        for bias in (head.bias for head in (self.score_head, *heads)):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, memory: SupportMemory, query: Tensor, size: tuple[int, int]) -> Prompts:
        """Make the prompts at the query's grid.

        Args:
            memory: references, of batch B or 1.
            query: (B, L, h*w, C) unit-length tokens of the reader's layers.
            size: (h, w).
        """
        maps = self.cosine_maps(memory, query).unflatten(-1, size)
        coarse = self.score_head(maps)
        dense = self.dense_proj(maps)
        if self.reader is not None:
            hint = None if self.matchers is None else self.channel_hint(memory, query).unflatten(-1, size)
            features, score = self.reader(query, memory, size, hint)
            coarse = coarse + self.reader_score(features)
            if self.reader_scale is not None:
                coarse = coarse + self.reader_scale * score.to(coarse.dtype)
            dense = dense + self.reader_proj(features)
        return Prompts(self.tokens(memory, coarse.shape[0]), dense, coarse)

    def cosine_maps(self, memory: SupportMemory, query: Tensor) -> Tensor:
        """(B, 2L, h*w): cosines with the foreground and background prototype, layer by layer."""
        maps = cosine_correlation(query, memory.prototypes)  # (B, L, h*w, 2)
        return maps.transpose(-1, -2).flatten(1, 2)

    def channel_hint(self, memory: SupportMemory, query: Tensor) -> Tensor:
        """(B, R, h*w): learnt projections of the products of query and prototype, channel by channel, over layers."""
        assert self.matchers is not None
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
            return self.score_head.weight.new_zeros((num_queries, 0, self.prompt_dim))
        scaled = memory.prototypes * math.sqrt(memory.prototypes.shape[-1])  # entries about 1, as layer-normed tokens
        kinds = self.kind_embed
        tokens = [proj(scaled[:, i]) + kinds for i, proj in enumerate(self.token_proj)]  # each (B or 1, 2, D)
        return torch.cat(tokens, dim=1).expand(num_queries, -1, -1)
