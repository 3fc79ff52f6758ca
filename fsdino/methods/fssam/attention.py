"""SAM2's memory attention with FSSAM's support calibration in every cross-attention; no weight of its own.

The layers, projections and norms are those of `transformers`; only the cross-attention's softmax is written out here,
because a bias on some of its columns has no place in the original. With strength 0 it equals the original.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.methods.fssam.formulas import calibration_bias
from fsdino.methods.sam2.net import Frame, Sam2


def rope_angles(grid: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of SAM2's axial rotation: the first half of the channels turns with x, the second with y.

    Args:
        grid: side of the square map.
        head_dim: channels of a head, a multiple of 4.
        theta: base of the frequencies.
        device: where to.

    Returns:
        Two tensors (grid*grid, head_dim); neighbouring channels share an angle.
    """
    half = head_dim // 2
    frequency = theta ** (-torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    index = torch.arange(grid * grid, device=device)
    x, y = ((coordinate.float()[:, None] * frequency) for coordinate in (index % grid, index // grid))
    angles = torch.cat([x, y], dim=1).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of neighbouring channels of (..., n*T, d), n maps of T tokens, by angles (T, d)."""
    cosine, sine = angles
    # In float32, as SAM2 does: at the far corner of the map, bfloat16 could not tell neighbours apart.
    maps = x.float().unflatten(-2, (-1, len(cosine)))  # (..., n, T, d)
    even, odd = maps[..., 0::2], maps[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (maps * cosine + turned * sine).flatten(-3, -2).to(x.dtype)


def calibrated_attention(
    sam2: Sam2,
    frame: Frame,
    tokens: Tensor,
    positions: Tensor,
    support_weights: Tensor,
    *,
    num_pointer_tokens: int,
    strength: float,
) -> Tensor:
    """Condition a frame on a support memory and on the query's own pseudo memory, the latter calibrated.

    Args:
        sam2: its memory attention is used.
        frame: B query images.
        tokens: (B, 2*T + P, memory_dim): support map of T = h*w tokens, query map of T tokens, P pointer tokens.
        positions: (2*T + P, memory_dim).
        support_weights: (B, T) in [0, 1], how much of a support position is object.
        num_pointer_tokens: P; pointers are not rotated, since they have no place in the image.
        strength: of the bias; 0 is SAM2's own attention.

    Returns:
        The conditioned embedding (B, D, h, w).
    """
    attention: Any = sam2.net.memory_attention
    config = sam2.net.config
    width = config.memory_attention_hidden_size // config.memory_attention_downsample_rate
    # Early versions 5 of transformers have the number itself, later ones a table.
    table = getattr(config, "rope_parameters", {"rope_theta": getattr(config, "memory_attention_rope_theta", 10000.0)})
    theta = float((table or {}).get("rope_theta", 10000.0))
    angles = rope_angles(sam2.grid, width // config.memory_attention_num_attention_heads, theta, frame.embedding.device)
    # A tenth of the position, as in SAM2, whose attention rotates queries and keys by their place as well.
    x = (frame.embedding + 0.1 * frame.position).flatten(2).transpose(1, 2)  # (B, T, D)
    for layer in attention.layers:
        normed = layer.layer_norm1(x)
        x = x + layer.dropout1(_attend(layer.self_attn, normed, normed, normed, angles=angles))
        # Values carry no position: where to read depends on the place, what is read does not.
        crossed = _attend(
            layer.cross_attn_image,
            layer.layer_norm2(x),
            tokens + positions,
            tokens,
            angles=angles,
            num_pointer_tokens=num_pointer_tokens,
            support_weights=support_weights,
            strength=strength,
        )
        x = x + layer.dropout2(crossed)
        hidden = layer.dropout(layer.activation(layer.linear1(layer.layer_norm3(x))))
        x = x + layer.dropout3(layer.linear2(hidden))
    return attention.layer_norm(x).transpose(1, 2).unflatten(2, (sam2.grid, sam2.grid))


def _attend(
    attention: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    angles: tuple[Tensor, Tensor],
    num_pointer_tokens: int = 0,
    support_weights: Tensor | None = None,
    strength: float = 0.0,
) -> Tensor:
    """One rotary attention (B, N, D) x (B, M, C) -> (B, N, D); calibrated when support weights are given."""
    heads = attention.num_attention_heads
    q, k, v = (
        project(x).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, tokens, d)
        for project, x in ((attention.q_proj, query), (attention.k_proj, key), (attention.v_proj, value))
    )
    num_rotated = k.shape[2] - num_pointer_tokens
    turned_q = rotate(q, angles)
    turned_k = torch.cat([rotate(k[:, :, :num_rotated], angles), k[:, :, num_rotated:]], dim=2)
    bias = None
    if support_weights is not None and strength > 0:
        side = num_rotated // 2  # support columns first, query columns second
        columns = turned_q @ turned_k[:, :, side:num_rotated].transpose(2, 3)
        # Compared after the rotation, as published: an object's mean key holds places as well as contents.
        own, support = turned_k[:, :, side:num_rotated].float(), turned_k[:, :, :side].float()
        calibration = calibration_bias(columns.float(), own, support, support_weights, strength)
        bias = F.pad(calibration, (side, num_pointer_tokens)).to(q.dtype)
    dropout = attention.dropout_p if attention.training else 0.0
    out = F.scaled_dot_product_attention(
        turned_q, turned_k, v, attn_mask=bias, dropout_p=dropout, scale=attention.scaling
    )
    return attention.o_proj(out.transpose(1, 2).flatten(2))
