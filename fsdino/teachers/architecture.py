"""SAM in any size, built from segment-anything's own four parts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from torch import Tensor, nn


@dataclass(frozen=True)
class SamConfig:
    """Sizes of a SAM; the defaults are the small teacher that ships with the package.

    Args:
        img_size: side of the square input in pixels, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        embed_dim: width of the image encoder; `depth`, `num_heads` and `mlp_ratio` are its blocks'.
        window_size: side of the attention window of the local blocks, in patches.
        global_blocks: indices of the blocks that attend over the whole image.
        prompt_dim: width of the embedding, the prompts and the mask decoder.
        mask_dim: hidden channels of the mask-prompt stem.
        decoder_depth: two-way blocks of the mask decoder; `decoder_mlp_dim` and `decoder_heads` are theirs.
        iou_dim: hidden width of the IoU head.
        num_multimask: masks offered for an ambiguous prompt.

    Raises:
        ValueError: if `img_size` is not a multiple of `patch_size`.
    """

    img_size: int = 112
    patch_size: int = 4
    embed_dim: int = 96
    depth: int = 4
    num_heads: int = 3
    mlp_ratio: float = 4.0
    window_size: int = 7
    global_blocks: tuple[int, ...] = (1, 3)
    prompt_dim: int = 64
    mask_dim: int = 16
    decoder_depth: int = 2
    decoder_mlp_dim: int = 256
    decoder_heads: int = 4
    iou_dim: int = 64
    num_multimask: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_blocks", tuple(self.global_blocks))
        if self.img_size % self.patch_size:
            low = self.img_size // self.patch_size * self.patch_size
            raise ValueError(
                f"img_size {self.img_size} is not a multiple of the patch size {self.patch_size}; "
                f"use {low} or {low + self.patch_size}."
            )

    @property
    def grid(self) -> int:
        """Side of the embedding's square grid."""
        return self.img_size // self.patch_size


def _official(embed_dim: int, depth: int, num_heads: int, global_blocks: tuple[int, ...]) -> SamConfig:
    return SamConfig(
        img_size=1024,
        patch_size=16,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        window_size=14,
        global_blocks=global_blocks,
        prompt_dim=256,
        decoder_mlp_dim=2048,
        decoder_heads=8,
        iou_dim=256,
    )


SAM_CONFIGS: dict[str, SamConfig] = {
    "tiny": SamConfig(),
    "vit_b": _official(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": _official(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": _official(1280, 32, 16, (7, 15, 23, 31)),
}


def build_sam(config: SamConfig, seed: int | None = None) -> Sam:
    """segment-anything's `Sam` of the given sizes, in eval mode.

    Args:
        config: the sizes.
        seed: draws the start of a training (`init_sam_`) from this seed; None leaves segment-anything's
            own initialisation, for weights that are loaded afterwards.
    """
    encoder = ImageEncoderViT(
        img_size=config.img_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        out_chans=config.prompt_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window_size,
        global_attn_indexes=config.global_blocks,
    )
    prompts = PromptEncoder(
        embed_dim=config.prompt_dim,
        image_embedding_size=(config.grid, config.grid),
        input_image_size=(config.img_size, config.img_size),
        mask_in_chans=config.mask_dim,
    )
    transformer = TwoWayTransformer(
        depth=config.decoder_depth,
        embedding_dim=config.prompt_dim,
        num_heads=config.decoder_heads,
        mlp_dim=config.decoder_mlp_dim,
    )
    decoder = MaskDecoder(
        transformer_dim=config.prompt_dim,
        transformer=transformer,
        num_multimask_outputs=config.num_multimask,
        iou_head_hidden_dim=config.iou_dim,
    )
    sam = Sam(encoder, prompts, decoder).eval()
    if seed is not None:
        init_sam_(sam, torch.Generator().manual_seed(seed))
    return sam


def init_sam_(sam: Sam, generator: torch.Generator) -> None:
    """Starts a SAM for training from nothing, in place; equal states of the CPU generator give equal weights."""
    # Xavier matrices and a sine-cosine position embedding shorten the plateau that a small ViT trained with masks sits
    # on at first; segment-anything's own start (zero positions) is meant for MAE weights.
    for module in sam.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5, generator=generator)
    # Equal query and key projections let a click look at its own place from the first step on; without that a small
    # model answers "nothing" for hours.
    for attention in _cross_attentions(sam):
        nn.init.orthogonal_(attention.q_proj.weight, gain=1.5, generator=generator)
        with torch.no_grad():
            attention.k_proj.weight.copy_(attention.q_proj.weight)
    position = sam.image_encoder.pos_embed
    if position is not None:
        _, height, width, dim = position.shape
        table = build_sincos2d_pos_embed([height, width], dim=dim)
        with torch.no_grad():
            position.copy_(table.reshape(1, height, width, dim))
    # A buffer, so the loop over modules has not drawn it.
    frequencies = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    frequencies.normal_(generator=generator)


def _cross_attentions(sam: Sam) -> list[Any]:
    """The attentions of the mask decoder between tokens and image."""
    transformer: Any = sam.mask_decoder.transformer
    pairs = [(layer.cross_attn_token_to_image, layer.cross_attn_image_to_token) for layer in transformer.layers]
    return [attention for pair in pairs for attention in pair] + [transformer.final_attn_token_to_image]


def config_from_state_dict(state: dict[str, Tensor]) -> SamConfig:
    """Reads the sizes of a SAM off the shapes of its weights, under segment-anything's names.

    Raises:
        KeyError: if a key that the sizes are read from is missing.
    """
    patch = state["image_encoder.patch_embed.proj.weight"]
    embed_dim, _, patch_size, _ = patch.shape
    grid = state["image_encoder.pos_embed"].shape[1]
    depth = _count(state, r"image_encoder\.blocks\.(\d+)\.")
    # A table of relative positions has 2 n - 1 rows for attention over n patches: n is the whole grid in a global block
    # and the window in a local one.
    spans = [(state[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape[0] + 1) // 2 for i in range(depth)]
    local = [span for span in spans if span != grid]
    prompt_dim = state["mask_decoder.iou_token.weight"].shape[1]
    # The decoder's head count leaves no trace in the shapes: 8 at the official width, one per 16 channels below it.
    decoder_heads = 8 if prompt_dim == 256 else max(1, prompt_dim // 16)
    return SamConfig(
        img_size=grid * patch_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // state["image_encoder.blocks.0.attn.rel_pos_h"].shape[1],
        mlp_ratio=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / embed_dim,
        window_size=local[0] if local else 0,
        global_blocks=tuple(i for i, span in enumerate(spans) if span == grid),
        prompt_dim=prompt_dim,
        mask_dim=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        decoder_depth=_count(state, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        decoder_mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        decoder_heads=decoder_heads,
        iou_dim=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        num_multimask=state["mask_decoder.mask_tokens.weight"].shape[0] - 1,  # without the single mask's token
    )


def _count(state: dict[str, Tensor], pattern: str) -> int:
    """1 + the largest index that the pattern's group takes among the keys."""
    found = [int(match.group(1)) for key in state if (match := re.match(pattern, key))]
    if not found:
        raise KeyError(pattern.replace("\\", ""))  # as a key, for the message
    return 1 + max(found)


def load_prompting_(sam: Sam, state: dict[str, Tensor]) -> None:
    """Starts the prompt encoder and the mask decoder from another SAM's, in place: how to use a click is known then.

    Raises:
        ValueError: if those parts are missing from `state` or of other sizes.
    """
    for part, module in (("prompt_encoder", sam.prompt_encoder), ("mask_decoder", sam.mask_decoder)):
        prefix = f"{part}."
        weights = {key[len(prefix) :]: value.float() for key, value in state.items() if key.startswith(prefix)}
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"'{part}.*' of that SAM does not fit; give this one the same prompt_dim, mask_dim and decoder sizes. "
                f"{error}"
            ) from error


def load_vit_(sam: Sam, state: dict[str, Tensor], mean: float = 0.5, std: float = 0.5) -> None:
    """Starts the image encoder from the first blocks of a plain ViT, in place, as SAM started from MAE.

    Args:
        sam: of the ViT's width and patch size; it may have fewer blocks and another grid.
        state: the ViT's weights under timm's names.
        mean: what the ViT subtracts from pixels in [0, 1].
        std: what it divides them by after that.

    Raises:
        ValueError: if a shape does not fit.
    """
    encoder = sam.image_encoder
    own = encoder.state_dict()
    # The ViT sees (p - mean) / std, SAM's encoder (p - shift) / scale: the difference goes into the patch embedding, as
    # w (p - mean) / std + b = (w scale / std) (p - shift) / scale + b + w (shift - mean) / std.
    shift, scale = sam.pixel_mean.view(3) / 255, sam.pixel_std.view(3) / 255
    kernel = state["patch_embed.proj.weight"]
    found = {
        "patch_embed.proj.weight": kernel * (scale / std).view(1, 3, 1, 1),
        "patch_embed.proj.bias": state["patch_embed.proj.bias"]
        + (kernel * ((shift - mean) / std).view(1, 3, 1, 1)).sum((1, 2, 3)),
    }
    table = state["pos_embed"]
    side = int(table.shape[1] ** 0.5)
    table = table[:, table.shape[1] - side * side :]  # SAM has no class token: its row comes first and is dropped
    grid = list(own["pos_embed"].shape[1:3])
    table = resample_abs_pos_embed(table, grid, [side, side], num_prefix_tokens=0)
    found["pos_embed"] = table.reshape(own["pos_embed"].shape)
    for key in own:
        theirs = key.replace("mlp.lin1", "mlp.fc1").replace("mlp.lin2", "mlp.fc2")
        # SAM adds relative positions in its attention, which a plain ViT does not have: they keep their start.
        if key.startswith("blocks.") and "rel_pos" not in key:
            found[key] = state[theirs]
    for key, value in found.items():
        if own[key].shape != value.shape:
            raise ValueError(
                f"{key} is {tuple(own[key].shape)} in the SAM, {tuple(value.shape)} in the ViT; use the ViT's sizes."
            )
    encoder.load_state_dict({**own, **found})
