"""SAM2 weights: official ones from the Hub or from Meta's `.pt`, and this package's own `.safetensors`.

Meta's file holds {"model": state dict} with the names of facebookresearch/sam2; the rules below turn them into those of
`transformers`, and both the size and the version follow from the weights themselves. Loading is strict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel

from fsdino.base.digest import file_sha256
from fsdino.methods.sam2.net import Sam2
from fsdino.methods.sam2.published import PublishedState
from fsdino.methods.sam2.sizes import SIZES, HieraSize, Sam2Version, sam2_config, size_and_version, with_image_size

# Meta's name -> transformers' name, applied in this order to every key: later rules see what earlier ones made, so the
# general ones (norms, projections) come last.
_RULES: tuple[tuple[str, str], ...] = (
    # image encoder
    (r"^image_encoder\.trunk\.patch_embed\.proj\.", "vision_encoder.backbone.patch_embed.projection."),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^(vision_encoder\.backbone\.blocks\.\d+\.mlp)\.layers\.0\.", r"\1.proj_in."),
    (r"^(vision_encoder\.backbone\.blocks\.\d+\.mlp)\.layers\.1\.", r"\1.proj_out."),
    # prompt encoder
    (r"^sam_prompt_encoder\.pe_layer\..+$", "prompt_encoder.shared_embedding.positional_embedding"),
    (r"^sam_prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    # mask decoder
    (r"^sam_mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^sam_mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^sam_mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.0\.", r"\1.proj_in."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.1\.", r"\1.proj_out."),
    # memory encoder: the mask stem repeats convolution, norm, activation
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    # the rest
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"\.out_proj\.", ".o_proj."),
    (r"(^|\.)norm(\d?)\.", r"\1layer_norm\2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
)
# MLPs of three layers: the first and last have names of their own.
_MLP3 = re.compile(
    r"^(object_pointer_proj|mask_decoder\.(?:iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+))"
    r"\.layers\.(\d)\."
)
_MLP3_NAMES = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
# What a SAM2 built without object scores lacks.
_SCORES = ("mask_decoder.obj_score_token", "mask_decoder.pred_obj_score_head", "no_object_pointer")
_MASK_STEM = re.compile(r"^memory_encoder\.mask_downsampler\.encoder\.(\d+)\.")
_POINT = re.compile(r"^sam_prompt_encoder\.point_embeddings\.(\d+)\.weight$")


def hub_keys(meta: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's state dict (the names of facebookresearch/sam2) under the names of `transformers.Sam2VideoModel`."""
    # The stem counts convolution, norm and activation in threes and ends in one more convolution, whose number depends
    # on the depth.
    last_stem = max((int(m[1]) for key in meta if (m := _MASK_STEM.match(key))), default=0)
    # Meta has one embedding a kind of point, transformers one table of all of them.
    points = {int(m[1]): value for key, value in meta.items() if (m := _POINT.match(key))}
    renamed = {_rename(key, last_stem): value for key, value in meta.items() if not _POINT.match(key)}
    if points:
        renamed["prompt_encoder.point_embed.weight"] = torch.cat([points[i] for i in sorted(points)])
    code = renamed.get("prompt_encoder.shared_embedding.positional_embedding")
    if code is not None:  # transformers keeps a second reference to the same Fourier matrix
        renamed["shared_image_embedding.positional_embedding"] = code
    return renamed


def _rename(key: str, last_stem: int) -> str:
    if match := _MASK_STEM.match(key):
        index = int(match[1])
        part = "final_conv" if index == last_stem else f"layers.{index // 3}.{('conv', 'layer_norm')[index % 3]}"
        return f"memory_encoder.mask_downsampler.{part}." + key[match.end() :]
    for pattern, new in _RULES:
        key = re.sub(pattern, new, key)
    if match := _MLP3.match(key):
        return f"{match[1]}.{_MLP3_NAMES[match[2]]}." + key[match.end() :]
    return key


def recognise(meta: dict[str, Tensor], name: str) -> tuple[HieraSize, Sam2Version]:
    """Size and version of Meta's weights, from their names and shapes; errors call them `name`.

    Raises:
        ValueError: when they are not a SAM2's, or of no known size.
    """
    stem = meta.get("image_encoder.trunk.patch_embed.proj.weight")
    if stem is None:
        raise ValueError(
            f"{name} has no 'image_encoder.trunk.*' weights: it is no SAM2 checkpoint of Meta's. "
            "Give sam2_hiera_*.pt, sam2.1_hiera_*.pt, a Hub id or a folder of transformers' Sam2Video."
        )
    depth = len({key.split(".")[3] for key in meta if key.startswith("image_encoder.trunk.blocks.")})
    version: Sam2Version = "2.1" if "no_obj_embed_spatial" in meta else "2.0"
    for size in SIZES.values():
        if (size.embed_dim, sum(size.blocks)) == (len(stem), depth):
            return size, version
    known = ", ".join(f"{key} ({s.embed_dim} wide, {sum(s.blocks)} blocks)" for key, s in SIZES.items())
    raise ValueError(f"{name} is {len(stem)} wide with {depth} blocks, which is no known SAM2; known are {known}.")


def build_sam2(
    size: str | HieraSize = "tiny",
    img_size: int = 1024,
    version: Sam2Version = "2.1",
    weights: str | Path | None = None,
    sha256: str | None = None,
) -> Sam2:
    """A SAM2 with random or official weights, in eval mode.

    Args:
        size: a name of `SIZES`; with weights, their own size counts.
        img_size: side of the square input in pixels; official weights work at any multiple of 32.
        version: "2.0" or "2.1"; with weights, their own version counts.
        weights: Hub id such as "facebook/sam2.1-hiera-tiny", folder of `transformers`, Meta's `.pt`, or a file of
            `save_sam2`; None: random.
        sha256: expected digest of a `.pt` file.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a wrong digest, or weights that do not fit; names what is missing.
    """
    if weights is None:
        return Sam2(sam2_config(size, img_size, version)).eval()
    if str(weights).endswith(".safetensors"):
        return _from_own(Path(weights), img_size)
    if str(weights).endswith((".pt", ".pth")):
        return _from_meta(Path(weights), img_size, sha256)
    return _from_hub(str(weights), img_size)


def save_sam2(sam2: Sam2, path: str | Path, *, half: bool = False) -> Path:
    """Write a SAM2 of a known size where `build_sam2` opens it.

    Args:
        sam2: with all of its heads.
        path: a `.safetensors` file; its folder is made.
        half: store in half precision; `build_sam2` gives float32 again.

    Raises:
        ValueError: when its size is not in `SIZES`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    size, version = size_and_version(sam2.net.config)
    tensors = {name: value.detach().cpu().contiguous() for name, value in sam2.net.state_dict().items()}
    tensors = {name: value.half() if half else value for name, value in tensors.items()}
    save_file(tensors, target, metadata={"size": size, "version": version})
    return target


def _from_own(path: Path, img_size: int) -> Sam2:
    if not path.is_file():
        raise FileNotFoundError(f"no SAM2 weights at {path}; train them with `python -m fsdino.assets.make sam2`.")
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
    if "size" not in about or about.get("version") not in ("2.0", "2.1"):
        raise ValueError(f"{path.name} does not say which SAM2 it holds; give a file of `save_sam2`.")
    config = sam2_config(about["size"], img_size, cast(Sam2Version, about["version"]))
    return _filled(config, {name: value.float() for name, value in load_file(path).items()}, path.name)


def _from_meta(path: Path, img_size: int, sha256: str | None) -> Sam2:
    if not path.is_file():
        raise FileNotFoundError(f"no SAM2 checkpoint at {path}; give the path of a downloaded .pt file, or a Hub id.")
    if sha256 is not None and (got := file_sha256(path)) != sha256.lower():
        raise ValueError(f"{path.name} has sha256 {got}, expected {sha256.lower()}; download it again.")
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    meta = content.get("model", content)  # Meta wraps its state dict; a bare one is taken as well
    size, version = recognise(meta, path.name)
    return _filled(sam2_config(size, img_size, version), hub_keys(meta), path.name)


def from_published(state: PublishedState, img_size: int, scored: bool) -> Sam2:
    """The SAM2 inside an authors' checkpoint that holds all of it; its size and version follow from the weights.

    Args:
        state: of `read_published`.
        img_size: as for `build_sam2`.
        scored: whether it must have what object scores need; without, these parts stay random and are to be dropped.

    Raises:
        ValueError: for weights that are missing or unknown; names them.
    """
    size, version = recognise(state.sam2, state.name)
    return _filled(sam2_config(size, img_size, version), hub_keys(state.sam2), state.name, () if scored else _SCORES)


def update_from_published_(sam2: Sam2, state: PublishedState, parts: tuple[str, ...]) -> None:
    """Put the weights of an authors' checkpoint, which holds at least these parts of SAM2's `net`, into a SAM2.

    Raises:
        ValueError: for weights that are missing, unknown or of another shape; names them.
    """
    own, found = sam2.net.state_dict(), hub_keys(state.sam2)
    wrong = [key for key, value in found.items() if key not in own or own[key].shape != value.shape]
    _refuse(state.name, (key for key in own if key.startswith(parts) and key not in found), wrong)
    sam2.net.load_state_dict(found, strict=False)


def _filled(config: Sam2VideoConfig, state: dict[str, Tensor], name: str, spare: tuple[str, ...] = ()) -> Sam2:
    sam2 = Sam2(config)
    # Not strict, so that `_refuse` can say in one sentence what torch would list key by key.
    result = sam2.net.load_state_dict(state, strict=False)
    _refuse(name, (key for key in result.missing_keys if not key.startswith(spare)), result.unexpected_keys)
    return sam2.eval()


def _from_hub(source: str, img_size: int) -> Sam2:
    config = with_image_size(Sam2VideoConfig.from_pretrained(source), img_size)
    load: Any = Sam2VideoModel.from_pretrained
    net, info = load(source, config=config, output_loading_info=True, dtype=torch.float32)
    mismatched = [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
    _refuse(source, [*info["missing_keys"], *mismatched], info["unexpected_keys"])
    return Sam2(config, net).eval()


def _refuse(name: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    problems = []
    for what, keys in (("lacks", sorted(missing)), ("has unknown", sorted(unexpected))):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            problems.append(f"{what} {', '.join(keys[:5])}{more}")
    if problems:
        # Five names show which kind of file it is; the full list of a wrong file has hundreds.
        raise ValueError(
            f"{name} {'; it '.join(problems)}: these are not the complete weights of a SAM2 video model. "
            "Download the checkpoint again, or take a Hub id such as facebook/sam2.1-hiera-tiny."
        )
