"""SAM2's published sizes, and a small one for the embedded world, as `transformers` configurations.

The numbers are those of the SAM2 paper (Ravi et al. 2024, arXiv 2408.00714) and of its released configuration files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers import (
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
    Sam2VisionConfig,
)

Sam2Version = Literal["2.0", "2.1"]
# Four stages at strides 4, 8, 16, 32; the neck adds the map of stride 32, enlarged twofold, to the one of stride 16, so
# both must fit exactly.
SIZE_MULTIPLE = 32


@dataclass(frozen=True)
class HieraSize:
    """What distinguishes the image encoders: stage widths double from `embed_dim`, heads from `num_heads`."""

    embed_dim: int
    num_heads: int
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    background: int = 7
    prompt_dim: int = 256
    decoder_mlp_dim: int = 2048
    decoder_heads: int = 8
    memory_layers: int = 4
    memory_mlp_dim: int = 2048
    dropout: float = 0.1


SIZES: dict[str, HieraSize] = {
    "tiny": HieraSize(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "small": HieraSize(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "base_plus": HieraSize(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14),
    "large": HieraSize(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
    # For the embedded world: real Hiera with four stages at 128 px (8 x 8 map), about 1.2 M parameters in all.
    "mini": HieraSize(
        embed_dim=16,
        num_heads=1,
        blocks=(1, 2, 4, 2),
        global_blocks=(5, 6),
        windows=(8, 4, 4, 4),
        prompt_dim=64,
        decoder_mlp_dim=256,
        decoder_heads=4,
        memory_layers=2,
        memory_mlp_dim=256,
        dropout=0.0,
    ),
}


def check_image_size(image_size: int) -> None:
    """Refuse a side that is not a positive multiple of 32.

    Raises:
        ValueError: for such a side; names the nearest legal ones.
    """
    if image_size < SIZE_MULTIPLE or image_size % SIZE_MULTIPLE:
        low = max(SIZE_MULTIPLE, image_size // SIZE_MULTIPLE * SIZE_MULTIPLE)
        raise ValueError(
            f"image_size {image_size} is not a multiple of SAM2's coarsest stride {SIZE_MULTIPLE}; "
            f"use {low} or {low + SIZE_MULTIPLE}."
        )


def sam2_config(size: str | HieraSize, image_size: int = 1024, version: Sam2Version = "2.1") -> Sam2VideoConfig:
    """Configuration of a SAM2 of a published size, or of `mini`.

    Args:
        size: a name of `SIZES`, or a `HieraSize` of your own.
        image_size: side of the square input in pixels, a multiple of 32.
        version: "2.0" (July 2024) or "2.1" (adds a temporal code for pointers and an occlusion embedding).

    Raises:
        ValueError: for an unknown size or version, or an illegal image size.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"unknown SAM2 size {size!r}; use one of {', '.join(SIZES)}.")
        size = SIZES[size]
    if version not in ("2.0", "2.1"):
        raise ValueError(f"unknown SAM2 version {version!r}; use '2.0' or '2.1'.")
    dims = [size.embed_dim * 2**stage for stage in range(4)]
    backbone = Sam2HieraDetConfig(
        hidden_size=dims[0],
        num_attention_heads=size.num_heads,
        blocks_per_stage=list(size.blocks),
        embed_dim_per_stage=dims,
        num_attention_heads_per_stage=[size.num_heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(size.windows),
        global_attention_blocks=list(size.global_blocks),
        window_positional_embedding_background_size=[size.background, size.background],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=dims[::-1], fpn_hidden_size=size.prompt_dim
    )
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=size.prompt_dim),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=size.prompt_dim,
            mlp_dim=size.decoder_mlp_dim,
            num_attention_heads=size.decoder_heads,
            iou_head_hidden_dim=size.prompt_dim,
        ),
        enable_temporal_pos_encoding_for_object_pointers=version == "2.1",
        enable_occlusion_spatial_embedding=version == "2.1",
        memory_attention_hidden_size=size.prompt_dim,
        memory_attention_num_layers=size.memory_layers,
        memory_attention_feed_forward_hidden_size=size.memory_mlp_dim,
        memory_attention_dropout=size.dropout,
        memory_attention_rope_dropout=size.dropout,
        memory_encoder_hidden_size=size.prompt_dim,
        mask_downsampler_embed_dim=size.prompt_dim,
        memory_fuser_embed_dim=size.prompt_dim,
        memory_fuser_intermediate_dim=4 * size.prompt_dim,
    )
    return with_image_size(config, image_size)


def with_image_size(config: Sam2VideoConfig, image_size: int) -> Sam2VideoConfig:
    """Set every derived size of a configuration, in place, for another square input; returns the configuration.

    Raises:
        ValueError: when the side is not a multiple of 32.
    """
    check_image_size(image_size)
    # Each of these is computed once, in the configuration's constructor: setting `image_size` alone would leave the
    # others behind. Weights do not depend on any of them.
    config.image_size = image_size
    prompt: Any = config.prompt_encoder_config
    vision: Any = config.vision_config
    prompt.image_size = image_size
    vision.backbone_config.image_size = [image_size, image_size]
    vision.backbone_feature_sizes = [[image_size // stride] * 2 for stride in (4, 8, 16)]
    config.memory_attention_rope_feat_sizes = [image_size // 16] * 2
    return config


def size_and_version(config: Sam2VideoConfig) -> tuple[str, Sam2Version]:
    """The name in `SIZES` and the version of a configuration.

    Raises:
        ValueError: when no known size fits.
    """
    vision: Any = config.vision_config
    shape = (vision.backbone_config.hidden_size, tuple(vision.backbone_config.blocks_per_stage))
    version: Sam2Version = "2.1" if config.enable_temporal_pos_encoding_for_object_pointers else "2.0"
    for name, size in SIZES.items():
        if (size.embed_dim, size.blocks) == shape:
            return name, version
    raise ValueError(
        f"a SAM2 {shape[0]} wide with blocks {shape[1]} is of no known size; known are {', '.join(SIZES)}."
    )
