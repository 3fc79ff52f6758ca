"""What is timed: methods with random weights, their bare encoders, and images of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cost import params
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.models.encoder import FeatureEncoder
from fsdino.models.segmenter import FewShotSegmenter

IMAGE_SIZE = (480, 640)


def segmenter(name: str, variant: str = "full", **overrides: Any) -> FewShotSegmenter:
    """FS-DINO of a preset with random weights; overrides are fields of its config."""
    torch.manual_seed(0)
    return params.segmenter(name, variant, **overrides)


def build(method: str, name: str) -> FewShotMethod:
    """A method of `params.entries`, with random weights."""
    torch.manual_seed(0)
    return next(entry for entry in params.entries() if (entry.method, entry.preset) == (method, name)).build().eval()


def bare_encoder(method: FewShotMethod, batch: int = 1) -> Callable[[], Any]:
    """One pass of a method's image encoder(s) on squares that are ready, as the library that made it runs it."""
    passes = []
    for part in params.encoder_parts(method):
        net: nn.Module = part.backbone if isinstance(part, FeatureEncoder) else part
        sam2 = getattr(method, "sam2", None)
        size = part.img_size if isinstance(part, FeatureEncoder) else sam2.img_size if sam2 else method.img_size
        run: Callable[[Tensor], Any] = net.forward_features if isinstance(part, FeatureEncoder) else net  # type: ignore
        squares = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0), device="cpu")
        passes.append((run, squares.to(next(net.parameters()))))
    return lambda: [run(square) for run, square in passes]


def noise(seed: int = 0, size: tuple[int, int] = IMAGE_SIZE) -> np.ndarray:
    """An image (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def reference(seed: int = 0) -> Reference:
    """An image with a box for an object."""
    mask = np.zeros(IMAGE_SIZE, np.uint8)
    mask[100 + 10 * seed : 300, 150:420] = 1
    return Reference(noise(100 + seed), mask=mask, name=f"reference {seed}")
