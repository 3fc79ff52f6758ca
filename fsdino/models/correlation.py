"""4D correlation between query and references, and how it is read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from fsdino.models.memory import SupportMemory

# Query positions at a time. All cosines of 1,369 positions with five references are 37 MB a layer in float32; a chunk
# of them stays near the processor between the passes over it.
CHUNK = 256
TEMPERATURE = 0.1  # of the smooth maximum and of the self-correlation
MASKED = -1e4  # stands for minus infinity, also in half precision


def cosine_correlation(query: Tensor, support: Tensor) -> Tensor:
    """Cosines (..., Q, M) of unit-length tokens (..., Q, C) and (..., M, C); leading dimensions broadcast."""
    return query @ support.transpose(-1, -2)


def pool_correlation(query: Tensor, support: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Pool the correlation over weighted support positions, in three ways; the volume is never held as a whole.

    With cosines c_m and weights w_m: a smooth maximum t log(sum_m w_m exp(c_m / t) / sum_m w_m), the weighted mean, and
    max_m (c_m + t log w_m). The difference of two groups' smooth maxima, divided by t, is the log-ratio of their kernel
    densities around the query token. Positions of weight 0 have no influence; repeating all positions changes nothing.

    Args:
        query: (B, Q, C) unit-length tokens.
        support: (B or 1, M, C) unit-length tokens.
        weights: (B or 1, G, M) float in [0, 1], one row per group (foreground, background).
        temperature: t, at least 0.02: exp(1 / t) has to fit into float32.

    Returns:
        (B, G, 3, Q) float32: smooth maximum, mean, maximum; 0 for a group without weight.
    """
    weights = weights.float()
    total = weights.sum(-1)[:, None]  # (B, 1, G)
    share = (weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)).transpose(-1, -2)  # (B, M, G)
    penalty = torch.where(weights > 0, weights.clamp_min(1e-6).log(), MASKED)  # (B, G, M)
    # The mean of cosines is the cosine to the mean token: no volume is needed for it.
    mean = cosine_correlation(query, share.transpose(-1, -2).to(support.dtype) @ support).float()  # (B, Q, G)
    pooled = []
    for rows in (query / temperature).split(CHUNK, dim=1):  # tokens are divided by t: they are fewer than the cosines
        corr = cosine_correlation(rows, support).float()  # (B, q, M), c / t
        # No maximum is subtracted before exp: c / t is bounded, and the sums over groups become one matrix product.
        smooth = (corr.exp() @ share).clamp_min(1e-12).log()
        # Group by group, since adding all penalties at once would hold G volumes.
        peak = torch.stack([(corr + p[:, None]).amax(-1) for p in penalty.unbind(1)], dim=-1)
        pooled.append(torch.stack([smooth, peak], dim=-1))  # (B, q, G, 2)
    smooth, peak = (temperature * torch.cat(pooled, dim=1)).unbind(-1)
    stats = torch.stack([smooth, mean, peak], dim=-1)
    return torch.where(total[..., None] > 0, stats, 0.0).permute(0, 2, 3, 1)


def propagate(tokens: Tensor, values: Tensor, temperature: float) -> Tensor:
    """Spread maps (B, Q) over the images' own similarities: softmax(cosine / temperature) times the map.

    Args:
        tokens: (B, Q, C) unit-length tokens, or (1, Q, C) for N maps of one image.
        values: (B or N, Q) float.
        temperature: above 0; the smaller, the more each position keeps its own value.
    """
    # The maps of one image, a class each, are columns of one product: its similarities are computed once.
    shared = tokens.shape[0] == 1
    columns = values.transpose(0, 1)[None] if shared else values.unsqueeze(-1)  # (1, Q, N) or (B, Q, 1)
    parts = [
        cosine_correlation(rows, tokens).float().softmax(-1) @ columns
        for rows in (tokens / temperature).split(CHUNK, dim=1)
    ]
    spread = torch.cat(parts, dim=1)
    return spread[0].transpose(0, 1) if shared else spread.squeeze(-1)


class ResidualConv(nn.Module):
    """x + conv(gelu(conv(norm(x)))), 3x3."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, dim, h, w) to the same shape."""
        return x + self.conv2(F.gelu(self.conv1(self.norm(x))))


class PooledReader(nn.Module):
    """Reads the correlation through `pool_correlation` over the foreground and, apart, over the background.

    Only 2D convolutions over the pooled maps learn. Contrastive enhancement (UINO-FSS, arXiv 2504.15669v4) shows them
    foreground minus background as well.

    Args:
        num_layers: number L of encoder layers compared.
        dim: channels R of the result.
        contrastive: whether foreground minus background is read too.
        self_correlation: whether the first guess, spread over the query's own similarities, is read too.
    """

    def __init__(self, num_layers: int, dim: int, contrastive: bool = True, self_correlation: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.contrastive = contrastive
        self.self_correlation = self_correlation
        num_maps = num_layers * (6 if contrastive else 3) + int(self_correlation)
        self.stem = nn.Conv2d(num_maps, dim, 3, padding=1)
        self.blocks = nn.Sequential(ResidualConv(dim), ResidualConv(dim))
        self.norm = LayerNorm2d(dim)

    def forward(
        self, query: Tensor, memory: SupportMemory, size: tuple[int, int], hint: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read the correlation.

        Args:
            query: (B, L, Q, C) unit-length tokens.
            memory: of batch B or 1, with tokens; positions are pooled whatever their place.
            size: (h, w) of the query grid, Q = h * w.
            hint: (B, R, h, w), added before the 2D blocks.

        Returns:
            Features (B, R, h, w) and the training-free score (B, 1, h, w), about in [-1, 1], 0 where foreground and
            background explain a position equally well; 0 everywhere if not contrastive.
        """
        maps, score = self.maps(query, memory)
        maps, score = maps.unflatten(-1, size), score.unflatten(-1, size)
        x = self.stem(maps.to(self.stem.weight.dtype))
        x = x if hint is None else x + hint
        return self.norm(self.blocks(x)), score.unsqueeze(1)

    def maps(self, query: Tensor, memory: SupportMemory) -> tuple[Tensor, Tensor]:
        """The pooled maps (B, maps, Q) before anything learnt, and the score (B, Q)."""
        tokens, fg, bg = memory.positions()
        groups = torch.stack([fg, bg], dim=1) if self.contrastive else fg[:, None]
        layers = [pool_correlation(q, s, groups, TEMPERATURE) for q, s in zip(query.unbind(1), tokens.unbind(1))]
        stats = torch.stack(layers, dim=1)  # (B, L, G, 3, Q)
        # Where both groups have a good match, their difference tells what a maximum alone cannot: which one is better.
        if self.contrastive:
            contrast = stats[:, :, 0] - stats[:, :, 1]
            score = contrast[:, :, 0].mean(1)
            stats = torch.stack([stats[:, :, 0], contrast], dim=2)
        else:
            score = torch.zeros_like(stats[:, 0, 0, 0])
        maps = stats.flatten(1, 3)
        if self.self_correlation:
            guess = score if self.contrastive else stats[:, :, 0, 0].mean(1)
            maps = torch.cat([maps, propagate(query[:, -1], guess, TEMPERATURE)[:, None]], dim=1)
        return maps, score
