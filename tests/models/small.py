"""Small segmenters of the real classes, and images for them."""

from __future__ import annotations

from typing import Any

import torch

from fsdino.models.config import SegmenterConfig
from fsdino.models.segmenter import FewShotSegmenter

SMALL: dict[str, Any] = {
    "encoder": "vit_small_patch14_dinov2",
    "encoder_kwargs": {"patch_size": 7, "embed_dim": 32, "depth": 4, "num_heads": 2, "init_values": 1.0},
    "img_size": 56,
    "adapter_tap": 1,
    "reader_taps": (2, 3),
    "prompt_dim": 32,
    "adapter_dim": 16,
    "adapter_hidden": 16,
    "adapter_heads": 2,
    "decoder_mlp_dim": 32,
    "decoder_heads": 2,
    "decoder_iou_dim": 16,
    "mask_in_chans": 8,
    "reader_dim": 16,
}


def small_config(**overrides: Any) -> SegmenterConfig:
    """An 8 x 8 grid at 56 pixels."""
    return SegmenterConfig(**{**SMALL, **overrides})


def small_segmenter(seed: int = 0, **overrides: Any) -> FewShotSegmenter:
    """A segmenter of 0.1 M parameters with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FewShotSegmenter(small_config(**overrides)).eval()


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform numbers in [0, 1) from their own seed."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers from their own seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
