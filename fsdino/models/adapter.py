"""The bridge from early encoder features to SAM's embedding space."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SamAdapter(nn.Module):
    """Bottleneck adapter of FS-DINO (arXiv 2504.15669): three convolutions, two attention blocks, one convolution.

    Early features of DINOv2 are distributed much as SAM's image embedding, so that 1.25 M parameters (768 to 256)
    suffice.

    Args:
        in_dim: channels of the encoder.
        out_dim: channels of SAM's embedding.
        mid_dim: channels of the convolutions.
        hidden_dim: channels of the attention blocks.
        num_heads: attention heads; divides `hidden_dim`.
    """

    def __init__(self, in_dim: int, out_dim: int, mid_dim: int, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        # Norms are over channels, position by position: statistics over a batch would tie an image's embedding to its
        # neighbours, and the distilled student must give what the teacher gives, image by image.
        self.stem = nn.Sequential(
            nn.Conv2d(in_dim, mid_dim, 1),
            LayerNorm2d(mid_dim),
            nn.GELU(),
            nn.Conv2d(mid_dim, mid_dim, 3, padding=1),
            LayerNorm2d(mid_dim),
            nn.GELU(),
            nn.Conv2d(mid_dim, hidden_dim, 1),
        )
        self.blocks = nn.Sequential(*(AttentionBlock(hidden_dim, num_heads, 4 * hidden_dim) for _ in range(2)))
        self.head = nn.Conv2d(hidden_dim, out_dim, 1)

    def forward(self, feats: Tensor) -> Tensor:
        """Map layer-normed encoder features (N, in_dim, h, w) into SAM's space (N, out_dim, h, w)."""
        x = self.stem(feats)  # (N, hidden, h, w)
        n, c, h, w = x.shape
        tokens = self.blocks(x.flatten(2).transpose(1, 2))  # (N, h*w, hidden)
        return self.head(tokens.transpose(1, 2).reshape(n, c, h, w))


class AttentionBlock(nn.Module):
    """Pre-norm self-attention and feed-forward block.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the width {dim}; use a divisor of it.")
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, dim) to the same shape."""
        n, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, t, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, c / heads)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm2(x))
