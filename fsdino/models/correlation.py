"""4D correlation between query and references, and how it is read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

# Query positions at a time. All cosines of 1,369 positions with five references are 37 MB a layer in float32; a chunk
# of them stays near the processor between the passes over it.
CHUNK = 256
TEMPERATURE = 0.1  # of the smooth maximum
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


class ResidualConv(nn.Module):
    """x + conv(gelu(conv(norm(x)))), 3x3; the first of the two may be dilated."""

    def __init__(self, dim: int, dilation: int = 1) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, dim, h, w) to the same shape."""
        return x + self.conv2(F.gelu(self.conv1(self.norm(x))))


class MapReader(nn.Module):
    """Reads maps of how a query's positions compare with the references, by 2D convolutions that see a wide field.

    Each map is shown three times: as it is, less its mean by its spread, and as the distance to its own maximum. What a
    score is worth differs from image to image, so its place among the image's other scores says more than its value.

    Args:
        num_maps: number n of maps.
        dim: channels R of the result.
        dilations: of the blocks' first convolutions.
    """

    SCALE = 5.0  # cosines differ by a few tenths

    def __init__(self, num_maps: int, dim: int, dilations: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3 * num_maps, dim, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualConv(dim, dilation) for dilation in dilations))
        self.norm = LayerNorm2d(dim)

    def forward(self, maps: Tensor, added: Tensor | None = None) -> Tensor:
        """Features (B, R, h, w) of maps (B, n, h, w); `added`, (B, R, h, w), joins them before the blocks."""
        flat = maps.flatten(2)
        spread = (flat - flat.mean(-1, keepdim=True)) / flat.std(-1, keepdim=True).clamp_min(1e-4)
        below = spread - spread.amax(-1, keepdim=True)
        shown = torch.cat([self.SCALE * flat, spread, below], dim=1).unflatten(-1, maps.shape[2:])
        x = self.stem(shown.to(self.stem.weight.dtype))
        return self.norm(self.blocks(x if added is None else x + added))
