"""4D correlation between query and references, and the two ways to read it."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdino.models.layers import LayerNorm2d

CHUNK = 256  # query positions at a time: bounds the volume held at once and keeps it near the processor
MASKED = -1e4  # stands for minus infinity, also in half precision


def unit_tokens(feats: Tensor) -> Tensor:
    """Feature maps as tokens of unit length.

    Args:
        feats: (N, C, h, w).

    Returns:
        (N, h*w, C), the rows of the grid one after the other.
    """
    return F.normalize(feats.flatten(2).transpose(1, 2), dim=-1, eps=1e-5)


def cosine_correlation(query: Tensor, support: Tensor) -> Tensor:
    """Cosine of every query position with every support position.

    Args:
        query: (..., Q, C) unit-length tokens.
        support: (..., M, C) unit-length tokens; leading dimensions broadcast.

    Returns:
        (..., Q, M) float in [-1, 1].
    """
    return query @ support.transpose(-1, -2)


def pool_correlation(query: Tensor, support: Tensor, weights: Tensor, temperature: float = 0.1) -> Tensor:
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
    mean = cosine_correlation(query, share.transpose(-1, -2).to(support.dtype) @ support).float()  # (B, Q, G)
    pooled = []
    for rows in (query / temperature).split(CHUNK, dim=1):  # the division by t is of tokens, not of the volume
        corr = cosine_correlation(rows, support).float()  # (B, q, M), c / t
        smooth = (corr.exp() @ share).clamp_min(1e-12).log()
        peak = torch.stack([(corr + p[:, None]).amax(-1) for p in penalty.unbind(1)], dim=-1)
        pooled.append(torch.stack([smooth, peak], dim=-1))  # (B, q, G, 2)
    smooth, peak = (temperature * torch.cat(pooled, dim=1)).unbind(-1)
    stats = torch.stack([smooth, mean, peak], dim=-1)
    return torch.where(total[..., None] > 0, stats, 0.0).permute(0, 2, 3, 1)


def propagate(tokens: Tensor, values: Tensor, temperature: float = 0.1) -> Tensor:
    """Spread a map over an image's own similarities: softmax(cosine / temperature) times the map.

    Args:
        tokens: (B, Q, C) unit-length tokens, or (1, Q, C) for N maps of one image.
        values: (B or N, Q) float.
        temperature: Above 0; the smaller, the more each position keeps its own value.

    Returns:
        (B or N, Q) float.
    """
    shared = tokens.shape[0] == 1  # one image, whatever the number of maps: its similarities are computed once
    columns = values.transpose(0, 1)[None] if shared else values.unsqueeze(-1)  # (1, Q, N) or (B, Q, 1)
    parts = [
        cosine_correlation(rows, tokens).float().softmax(-1) @ columns
        for rows in (tokens / temperature).split(CHUNK, dim=1)
    ]
    spread = torch.cat(parts, dim=1)
    return spread[0].transpose(0, 1) if shared else spread.squeeze(-1)


class ResidualConv(nn.Module):
    """x + conv(gelu(conv(norm(x)))), 3x3.

    Args:
        dim: Channels.
    """

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

    The volume itself needs no gradient, since it comes from frozen features; only 2D convolutions over the pooled maps
    learn. Contrastive enhancement (UINO-FSS, arXiv 2504.15669v4) shows them foreground minus background as well.

    Args:
        num_layers: Number L of encoder layers compared.
        dim: Channels R of the result.
        contrastive: Whether foreground minus background is read too.
        self_correlation: Whether the first guess, spread over the query's own similarities, is read too.
        temperature: Of the smooth maximum and of the self-correlation.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int = 64,
        contrastive: bool = True,
        self_correlation: bool = True,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.contrastive = contrastive
        self.self_correlation = self_correlation
        self.temperature = temperature
        num_maps = num_layers * (6 if contrastive else 3) + int(self_correlation)
        self.stem = nn.Conv2d(num_maps, dim, 3, padding=1)
        self.blocks = nn.Sequential(ResidualConv(dim), ResidualConv(dim))
        self.norm = LayerNorm2d(dim)

    def forward(
        self, query: Tensor, support: Tensor, fg: Tensor, bg: Tensor, size: tuple[int, int], grid: tuple[int, int, int],
        hint: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Read the correlation.

        Args:
            query: (B, L, Q, C) unit-length tokens.
            support: (B or 1, L, M, C) unit-length tokens.
            fg: (B or 1, M) foreground weights in [0, 1].
            bg: (B or 1, M) background weights in [0, 1].
            size: (h, w) of the query grid, Q = h * w.
            grid: (K, h, w) of the support; unused, positions are pooled whatever their place.
            hint: (B, R, h, w), added before the 2D blocks.

        Returns:
            Features (B, R, h, w) and the training-free score (B, 1, h, w), about in [-1, 1], 0 where foreground and
            background explain a position equally well; 0 everywhere if not contrastive.
        """
        maps, score = self.maps(query, support, fg, bg)
        maps, score = maps.unflatten(-1, size), score.unflatten(-1, size)
        x = self.stem(maps.to(self.stem.weight.dtype))
        x = x if hint is None else x + hint
        return self.norm(self.blocks(x)), score.unsqueeze(1)

    def maps(self, query: Tensor, support: Tensor, fg: Tensor, bg: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled maps (B, maps, Q) before anything learnt, and the score (B, Q)."""
        groups = torch.stack([fg, bg], dim=1) if self.contrastive else fg[:, None]
        layers = [pool_correlation(q, s, groups, self.temperature) for q, s in zip(query.unbind(1), support.unbind(1))]
        stats = torch.stack(layers, dim=1)  # (B, L, G, 3, Q)
        if self.contrastive:
            contrast = stats[:, :, 0] - stats[:, :, 1]
            score = contrast[:, :, 0].mean(1)
            stats = torch.stack([stats[:, :, 0], contrast], dim=2)
        else:
            score = torch.zeros_like(stats[:, 0, 0, 0])
        maps = stats.flatten(1, 3)
        if self.self_correlation:
            guess = score if self.contrastive else stats[:, :, 0, 0].mean(1)
            maps = torch.cat([maps, propagate(query[:, -1], guess, self.temperature)[:, None]], dim=1)
        return maps, score


class PivotReader(nn.Module):
    """Reads the correlation by centre-pivot 4D convolutions over a coarse support grid (HSNet's lineage).

    The support is averaged early to at most 8x8 cells, foreground and background apart, so the volume stays small. A
    centre-pivot convolution is one 2D convolution over the query grid plus one over the support grid.

    Args:
        num_layers: Number L of encoder layers compared.
        dim: Channels R of the result.
        contrastive: Whether foreground minus background is read too.
        max_cells: Largest side of the support grid.
    """

    def __init__(self, num_layers: int, dim: int = 64, contrastive: bool = True, max_cells: int = 8) -> None:
        super().__init__()
        self.contrastive = contrastive
        self.max_cells = max_cells
        widths = (num_layers * (2 if contrastive else 1), max(4, dim // 8), dim // 2, dim)
        self.squeeze = nn.ModuleList(PivotConv(a, b, stride=2) for a, b in pairwise(widths))
        self.mix = nn.ModuleList(PivotConv(dim, dim) for _ in range(2))
        self.refine = ResidualConv(dim)
        self.norm = LayerNorm2d(dim)

    def forward(
        self, query: Tensor, support: Tensor, fg: Tensor, bg: Tensor, size: tuple[int, int], grid: tuple[int, int, int],
        hint: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Read the correlation; arguments and result as in `PooledReader.forward`, with `grid` used."""
        volumes = self.volumes(query, support, fg, bg, grid)
        k = grid[0]
        has_object = (fg.unflatten(-1, (k, -1)).amax(-1) > 0).float()  # (B or 1, K)
        share = has_object / has_object.sum(-1, keepdim=True).clamp_min(1.0)
        peaks = [(volume.amax((-1, -2)).mean(2) * share[..., None]).sum(1) for volume in volumes]  # each (B, Q)
        score = (peaks[0] - peaks[-1]).unflatten(-1, size).unsqueeze(1)
        if self.contrastive:
            volumes[1] = volumes[0] - volumes[1]
        corr = torch.cat(volumes, dim=2)  # (B, K, maps, Q, cells, cells)
        x = corr.flatten(0, 1).unflatten(2, size).to(self.norm.weight.dtype)  # (B*K, maps, h, w, cells, cells)
        for block in self.squeeze:
            x = block(x)
        for block in self.mix:
            x = x + block(x)
        x = x.mean((-1, -2)).unflatten(0, (-1, k))  # (B, K, R, h, w)
        x = (x * share[..., None, None, None].to(x.dtype)).sum(1)
        x = x if hint is None else x + hint
        return self.norm(self.refine(x)), score

    def volumes(
        self, query: Tensor, support: Tensor, fg: Tensor, bg: Tensor, grid: tuple[int, int, int]
    ) -> list[Tensor]:
        """Correlation with each reference's foreground cells and, if contrastive, background cells.

        Each is (B, K, L, Q, cells, cells).
        """
        cells = min(self.max_cells, *grid[1:])
        volumes = []
        for weights in (fg, bg) if self.contrastive else (fg,):
            means, share = cell_means(support, weights, grid, cells)  # (B, L, K, cells^2, C), (B, K, cells^2)
            corr = cosine_correlation(query[:, :, None], means).float().clamp_min(0.0)  # (B, L, K, Q, cells^2)
            volumes.append((corr * share[:, None, :, None]).transpose(1, 2).unflatten(-1, (cells, cells)))
        return volumes


def cell_means(support: Tensor, weights: Tensor, grid: tuple[int, int, int], cells: int) -> tuple[Tensor, Tensor]:
    """Average the support tokens of each reference inside the cells of a coarse grid.

    Args:
        support: (B, L, M, C) unit-length tokens, M = K * h * w.
        weights: (B, M) float in [0, 1].
        grid: (K, h, w).
        cells: Side of the coarse grid.

    Returns:
        Unit-length means (B, L, K, cells^2, C), 0 for cells without weight, and how much each cell counts
        (B, K, cells^2) in [0, 1], 1 for the best covered cell of a reference.
    """
    b, num_layers, _, c = support.shape
    w = weights.to(support.dtype)
    weighted = (support * w[:, None, :, None]).unflatten(2, grid)  # (B, L, K, h, w, C)
    pooled = F.adaptive_avg_pool2d(weighted.flatten(0, 2).permute(0, 3, 1, 2), cells)  # (B*L*K, C, cells, cells)
    means = F.normalize(pooled.flatten(2).transpose(1, 2), dim=-1, eps=1e-5)
    share = F.adaptive_avg_pool2d(w.unflatten(1, grid), cells).flatten(2)  # (B, K, cells^2)
    share = share / share.amax(-1, keepdim=True).clamp_min(1e-6)
    return means.reshape(b, num_layers, grid[0], cells * cells, c), share


class PivotConv(nn.Module):
    """Centre-pivot 4D convolution, 3 in each dimension, with GroupNorm(4) and ReLU.

    Args:
        in_dim: Channels in.
        out_dim: Channels out, a multiple of 4.
        stride: Stride over the support grid.
    """

    def __init__(self, in_dim: int, out_dim: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.over_query = nn.Conv2d(in_dim, out_dim, 3, padding=1)
        self.over_support = nn.Conv2d(in_dim, out_dim, 3, padding=1, stride=stride, bias=False)
        self.norm = nn.GroupNorm(4, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_dim, hq, wq, hs, ws) to (N, out_dim, hq, wq, hs / stride, ws / stride)."""
        n, _, hq, wq, hs, ws = x.shape
        kept = x[..., :: self.stride, :: self.stride]
        ho, wo = kept.shape[-2:]
        q = self.over_query(kept.permute(0, 4, 5, 1, 2, 3).flatten(0, 2))  # (N*ho*wo, out, hq, wq)
        s = self.over_support(x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))  # (N*hq*wq, out, ho, wo)
        q = q.reshape(n, ho, wo, -1, hq, wq).permute(0, 3, 4, 5, 1, 2)
        s = s.reshape(n, hq, wq, -1, ho, wo).permute(0, 3, 1, 2, 4, 5)
        out = (q + s).flatten(2)  # GroupNorm takes any number of trailing positions
        return F.relu(self.norm(out)).reshape(n, -1, hq, wq, ho, wo)
