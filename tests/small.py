"""Small models of the real classes with random weights, and images, references and numbers for them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsdino.base.reference import Reference
from fsdino.methods.sam2.net import Sam2
from fsdino.methods.sam2.sizes import SIZES, HieraSize, Sam2Version, sam2_config
from fsdino.models.config import SegmenterConfig
from fsdino.models.encoder import FeatureEncoder
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.teachers.architecture import SamConfig

SAM_SIZES: dict[str, Any] = {
    "img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "window_size": 4,
    "global_blocks": (1,), "prompt_dim": 32, "decoder_mlp_dim": 32, "decoder_heads": 2, "iou_dim": 16,
}  # fmt: skip
SAM = SamConfig(**SAM_SIZES)
TINY_VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2}
SEGMENTER: dict[str, Any] = {
    "encoder": "vit_small_patch14_dinov2", "encoder_kwargs": {**TINY_VIT, "patch_size": 7, "init_values": 1.0},
    "img_size": 56, "adapter_tap": 1, "reader_taps": (2, 3), "prompt_dim": 32, "adapter_dim": 16, "adapter_hidden": 16,
    "adapter_heads": 2, "decoder_mlp_dim": 32, "decoder_heads": 2, "decoder_iou_dim": 16, "mask_in_chans": 8,
    "reader_dim": 16,
}  # fmt: skip
SIDE = 64  # pixels of a small SAM2's images: a 4 x 4 map
# Arguments of `build` that make every method of the registry small.
VIT = {"encoder": "vit_small_patch14_dinov2", "encoder_kwargs": TINY_VIT}
METHOD_ARGS: dict[str, dict[str, Any]] = {
    "fsdino": SEGMENTER,
    "all_foreground": {"img_size": 28},
    "prototype": {**VIT, "img_size": 56, "tap": (1, 3), "score_threshold": 0.1},
    "chain": {**VIT, "img_size": 56, "taps": (1, 3)},
    "persam": {"config": SAM_SIZES},
    "refined": {
        "coarse": {"method": "prototype", **VIT, "img_size": 56, "tap": 3, "score_threshold": 0.0},
        "config": SAM_SIZES,
    },
    "sansa": {"size": "mini", "img_size": SIDE, "memory_order": "video"},
    "fssam": {**VIT, "size": "mini", "img_size": SIDE, "encoder_img_size": 70, "tap": 3, "rounds": 2},
}


def refuses(words: str, call: Callable, *args: Any, kind: type[Exception] = ValueError, **kwargs: Any) -> None:
    """Expects the call to raise an error whose text has these words, a regular expression."""
    with pytest.raises(kind, match=words):
        call(*args, **kwargs)


def small_config(**overrides: Any) -> SegmenterConfig:
    """An 8 x 8 grid at 56 pixels."""
    return SegmenterConfig(**{**SEGMENTER, **overrides})


def small_segmenter(seed: int = 0, **overrides: Any) -> FewShotSegmenter:
    """A segmenter of 0.1 M parameters; the same weights for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FewShotSegmenter(small_config(**overrides)).eval()


def small_encoder(side: int = 70, taps: tuple[int, ...] = (3,)) -> FeatureEncoder:
    """A DINOv2 of 70 thousand parameters; at 70 pixels on a 5 x 5 grid."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return FeatureEncoder("vit_small_patch14_dinov2", side, taps, model_kwargs=TINY_VIT)


def twin(size: str) -> HieraSize:
    """The blocks, windows and global blocks of a size at a fraction of its width."""
    narrow = {"embed_dim": 8, "num_heads": 1, "prompt_dim": 128, "decoder_mlp_dim": 32, "decoder_heads": 2}
    return replace(SIZES[size], **narrow, memory_layers=2, memory_mlp_dim=32)


def small_sam2(size: str = "mini", version: Sam2Version = "2.1", side: int = SIDE, seed: int = 0) -> Sam2:
    """A SAM2 whose codes, embeddings and layer scales are random in place of zero, so that none of them is hidden."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam2 = Sam2(sam2_config("mini" if size == "mini" else twin(size), side, version))
        for parameter in sam2.parameters():
            if not bool(parameter.detach().any()):
                torch.nn.init.normal_(parameter, std=0.3)
        for name, parameter in sam2.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:  # large, so that a wrong input shows in the output
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return sam2.eval()


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform numbers in [0, 1) from their own seed."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers from their own seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scene(height: int = 60, width: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise (H, W, 3) uint8 with a striped box, and the box (H, W) in {0, 1}."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    top, left = (int(rng.integers(1, side // 2)) for side in (height, width))
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + height // 3, left : left + width // 3] = 1
    stripes = (np.arange(width)[None, :, None] % 6 < 3) * 120 + 100
    return np.where(mask[..., None] == 1, stripes, image).astype(np.uint8), mask


def write_image(path: Path, height: int = 30, width: int = 40, seed: int = 0) -> Path:
    """A scene as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(height, width, seed)[0]).save(path)
    return path


def references(count: int = 1, seed: int = 0) -> list[Reference]:
    """References of different sizes."""
    found = [scene(60 + 7 * (i % 5), 80 - 9 * (i % 5), seed + i) for i in range(count)]
    return [Reference(image, mask=mask, name=f"reference {i}") for i, (image, mask) in enumerate(found)]


def write_references(folder: Path, classes: dict[str, int]) -> Path:
    """`<folder>/<class>/<i>.jpg` with masks `<i>.png`, as many per class as asked for."""
    for c, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i, reference in enumerate(references(count, seed=10 * c)):
            Image.fromarray(reference.image).save(folder / name / f"{i}.jpg")
            Image.fromarray(reference.mask * np.uint8(255)).save(folder / name / f"{i}.png")
    return folder
