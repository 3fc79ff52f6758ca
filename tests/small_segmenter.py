"""A segmenter of the real classes, small enough for any test, and references and images for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fsdino.models.config import SegmenterConfig
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.predict.support import Annotated


def small_config(**overrides: Any) -> SegmenterConfig:
    """56 px, three blocks of 32 channels, a 4 x 4 grid."""
    sizes: dict[str, Any] = {
        "encoder": "vit_small_patch14_dinov2",
        "encoder_kwargs": {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0},
        "img_size": 56,
        "adapter_tap": 0,
        "reader_taps": (1, 2),
        "prompt_dim": 32,
        "adapter_dim": 16,
        "adapter_hidden": 16,
        "adapter_heads": 2,
        "decoder_mlp_dim": 32,
        "decoder_heads": 2,
        "decoder_iou_dim": 16,
        "reader_dim": 16,
    }
    return SegmenterConfig.from_dict({**sizes, **overrides})


def small_segmenter(seed: int = 0, **overrides: Any) -> FewShotSegmenter:
    """Random weights, the same for the same seed, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FewShotSegmenter(small_config(**overrides)).eval()


def scene(height: int = 60, width: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise (H, W, 3) uint8 with a striped box, and the box (H, W) in {0, 1}."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    top, left = (int(rng.integers(1, side // 2)) for side in (height, width))
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + height // 3, left : left + width // 3] = 1
    stripes = (np.arange(width)[None, :, None] % 6 < 3) * 120 + 100
    return np.where(mask[..., None] == 1, stripes, image).astype(np.uint8), mask


def annotated(count: int = 1, seed: int = 0) -> list[Annotated]:
    """References of different sizes."""
    found = [scene(60 + 7 * i, 80 - 9 * i, seed + i) for i in range(count)]
    return [Annotated(f"reference {i}", image, mask) for i, (image, mask) in enumerate(found)]


def write_references(folder: Path, classes: dict[str, int]) -> Path:
    """`<folder>/<class>/<i>.jpg` with masks `<i>.png`, as many per class as asked for."""
    for c, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i, reference in enumerate(annotated(count, seed=10 * c)):
            Image.fromarray(reference.image).save(folder / name / f"{i}.jpg")
            Image.fromarray(reference.mask * np.uint8(255)).save(folder / name / f"{i}.png")
    return folder
