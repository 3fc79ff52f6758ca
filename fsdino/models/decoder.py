"""SAM's mask decoder, for batches: one image with one set of prompts per batch element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from fsdino.models.layers import Mlp

NUM_MASKS = 4  # SAM's: the answer to an unambiguous prompt, and three alternatives


@dataclass
class DecoderOutput:
    """What the mask decoder says.

    Args:
        mask_logits: (B, 4, 4h, 4w) float; 0 is SAM's answer to an unambiguous prompt, 1 to 3 its alternatives.
        iou_pred: (B, 4) float, predicted IoU of each mask.
        tokens: (B, 5, D) float, the output tokens: IoU first, then the masks.
    """

    mask_logits: Tensor
    iou_pred: Tensor
    tokens: Tensor


class MaskDecoder(nn.Module):
    """Two-way transformer between prompt tokens and the embedding (Segment Anything, arXiv 2304.02643, appendix A).

    Parameters have the names of segment-anything's `MaskDecoder`, so SAM's weights load by key; unlike there, a batch
    holds several images, each with its own prompts.

    Args:
        dim: width D of the embedding and the prompts.
        depth: number of two-way blocks.
        mlp_dim: hidden width of the blocks' token MLPs.
        num_heads: attention heads; divides `dim` // 2.
        iou_dim: hidden width of the IoU head.
    """

    def __init__(self, dim: int, depth: int, mlp_dim: int, num_heads: int, iou_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.transformer = TwoWayTransformer(dim, depth, mlp_dim, num_heads)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_MASKS, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp((dim, dim, dim, dim // 8)) for _ in range(NUM_MASKS))
        self.iou_prediction_head = Mlp((dim, iou_dim, iou_dim, NUM_MASKS))

    def forward(self, embedding: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor) -> DecoderOutput:
        """Decode one mask set per batch element.

        Args:
            embedding: (B, D, h, w) images in SAM's space.
            image_pe: (1, D, h, w) position encoding of the grid.
            sparse: (B, P, D) prompt tokens, P may be 0.
            dense: (B, D, h, w) dense prompt, added to the embedding.
        """
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])  # (1 + masks, D)
        tokens = torch.cat([learned.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        src = embedding + dense
        b, d, h, w = src.shape
        tokens, keys = self.transformer(tokens, src.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2))
        upscaled = self.output_upscaling(keys.transpose(1, 2).reshape(b, d, h, w))  # (B, D/8, 4h, 4w)
        tokens = tokens[:, : learned.shape[0]]
        # A mask is the product of its token's kernel with every position: four masks cost one upscaling.
        kernels = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = (kernels @ upscaled.flatten(2)).reshape(b, -1, 4 * h, 4 * w)
        return DecoderOutput(masks, self.iou_prediction_head(tokens[:, 0]), tokens)


class TwoWayTransformer(nn.Module):
    """Tokens and image attend to each other in turn."""

    def __init__(self, dim: int, depth: int, mlp_dim: int, num_heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, mlp_dim, num_heads, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(dim, num_heads, inner_dim=dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, keys: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks on tokens (B, T, D) and an image (B, h*w, D) with its position encoding (1, h*w, D)."""
        # As in SAM, the first tokens serve as their own position encoding: where a click lies must not get lost.
        token_pe = tokens
        for layer in self.layers:
            tokens, keys = layer(tokens, keys, token_pe, key_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, keys + key_pe, keys)
        return self.norm_final_attn(tokens + attended), keys


class TwoWayBlock(nn.Module):
    """Token self-attention, tokens to image, token MLP, image to tokens."""

    def __init__(self, dim: int, mlp_dim: int, num_heads: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, num_heads, inner_dim=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, inner_dim=dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TokenMlp(dim, mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, inner_dim=dim // 2)
        self.norm4 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, keys: Tensor, token_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes as in `TwoWayTransformer.forward`."""
        # As in SAM: at first the tokens are their position encoding, so adding it, or them, would count it twice.
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, keys + key_pe, keys)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        keys = keys + self.cross_attn_image_to_token(keys + key_pe, tokens + token_pe, tokens)
        return tokens, self.norm4(keys)


class TokenMlp(nn.Module):
    """Two linear layers with a ReLU between, under SAM's names."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape."""
        return self.lin2(F.relu(self.lin1(x)))


class Attention(nn.Module):
    """Multi-head attention in a possibly narrower space.

    Raises:
        ValueError: if the heads do not divide the inner width.
    """

    def __init__(self, dim: int, num_heads: int, inner_dim: int) -> None:
        super().__init__()
        if inner_dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the attention width {inner_dim}; use a divisor of it.")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(dim, inner_dim)
        self.v_proj = nn.Linear(dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: (B, Tq, dim), (B, Tk, dim), (B, Tk, dim) to (B, Tq, dim)."""
        q, k, v = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        out = F.scaled_dot_product_attention(q, k, v)  # (B, heads, Tq, inner / heads)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def load_sam_parts_(mask_decoder: MaskDecoder, prompt_encoder: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Fill a decoder and a prompt encoder from the state dict of a whole SAM.

    Raises:
        ValueError: if their keys are missing or shaped for another decoder.
    """
    for name, module in (("mask_decoder", mask_decoder), ("prompt_encoder", prompt_encoder)):
        prefix = f"{name}."
        weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if not weights:
            raise ValueError(f"this checkpoint has no '{name}.*' weights; give the state dict of a whole SAM.")
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"'{name}.*' does not fit this segmenter (prompt_dim {mask_decoder.dim}); set prompt_dim, decoder_* "
                f"and mask_in_chans to the SAM's sizes. {error}"
            ) from error
