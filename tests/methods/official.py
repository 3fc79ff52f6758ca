"""The `sam2` package's own model with the weights of one of ours, and SANSA's and FSSAM's steps written out on it.

The steps follow the papers' words and formulas; nothing of this package takes part in them but the weights.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdino.methods.sam2.net import Sam2
from fsdino.methods.sam2.sizes import HieraSize
from tests.methods.test_sam2 import meta_checkpoint

NEEDS = "the package sam2 is not installed: SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2==1.1.0"
base = pytest.importorskip("sam2.modeling.sam2_base", reason=NEEDS)
hieradet = pytest.importorskip("sam2.modeling.backbones.hieradet", reason=NEEDS)
image_encoder = pytest.importorskip("sam2.modeling.backbones.image_encoder", reason=NEEDS)
memory_attention = pytest.importorskip("sam2.modeling.memory_attention", reason=NEEDS)
memory_encoder = pytest.importorskip("sam2.modeling.memory_encoder", reason=NEEDS)
sine = pytest.importorskip("sam2.modeling.position_encoding", reason=NEEDS)
attention = pytest.importorskip("sam2.modeling.sam.transformer", reason=NEEDS)

Features = tuple[list[Tensor], list[Tensor], list[tuple[int, int]]]


def official(ours: Sam2, size: HieraSize, scored: bool, stable: bool = False) -> Any:
    """The package's model of a size, as its configuration files build it, filled with our weights.

    Args:
        ours: untouched; its prompts must be 256 wide, as the package has parts of fixed size.
        scored: with object scores.
        stable: a single mask that is not stable gives way to the best of three, as the package's builders ask for.
    """
    width, grid, newer = size.prompt_dim, ours.grid, ours.net.config.enable_occlusion_spatial_embedding

    def rotary(**options: Any) -> Any:
        return attention.RoPEAttention(
            feat_sizes=(grid, grid), embedding_dim=width, num_heads=1, downsample_rate=1, dropout=0.0, **options
        )

    channels = [size.embed_dim * 2**stage for stage in (3, 2, 1, 0)]
    trunk = hieradet.Hiera(
        size.embed_dim, size.num_heads, stages=size.blocks, global_att_blocks=size.global_blocks,
        window_spec=size.windows, window_pos_embed_bkg_spatial_size=(size.background, size.background),
    )  # fmt: skip
    neck = image_encoder.FpnNeck(
        sine.PositionEmbeddingSine(width), width, channels, fpn_top_down_levels=[2, 3], fpn_interp_model="nearest"
    )
    layer = memory_attention.MemoryAttentionLayer(
        "relu", rotary(rope_k_repeat=True, kv_in_dim=64), width, size.memory_mlp_dim, 0.0, False, True, False, rotary()
    )
    remembering = memory_encoder.MemoryEncoder(
        64,
        memory_encoder.MaskDownSampler(width, kernel_size=3, stride=2, padding=1),
        memory_encoder.Fuser(memory_encoder.CXBlock(width), 2),
        sine.PositionEmbeddingSine(64),
        in_dim=width,
    )
    stability = {"dynamic_multimask_via_stability": True, "dynamic_multimask_stability_delta": 0.05,
                 "dynamic_multimask_stability_thresh": 0.98}  # fmt: skip
    model = base.SAM2Base(
        image_encoder.ImageEncoder(trunk, neck, scalp=1),
        memory_attention.MemoryAttention(width, True, layer, size.memory_layers),
        remembering,
        image_size=ours.img_size,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        multimask_output_for_tracking=True,
        multimask_min_pt_num=0,
        use_multimask_token_for_obj_ptr=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=newer,
        proj_tpos_enc_in_obj_ptrs=newer,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=scored,
        pred_obj_scores_mlp=scored,
        fixed_no_obj_ptr=scored,
        no_obj_embed_spatial=newer and scored,
        use_mlp_for_obj_ptr_proj=True,
        sam_mask_decoder_extra_args=stability if stable else None,
    )
    weights = meta_checkpoint(ours)
    if not scored:
        gone = ("obj_score", "no_obj")
        weights = {name: value for name, value in weights.items() if not any(part in name for part in gone)}
    model.load_state_dict({name: value.clone() for name, value in weights.items()})
    return model.eval()


class Beside(nn.Module):
    """AdaptFormer (Chen et al. 2022, section 3.2): a block's norm and MLP with a bottleneck beside them."""

    def __init__(self, block: Any, adapter: dict[str, Tensor]) -> None:
        super().__init__()
        self.norm, self.mlp, self.adapter = block.norm2, block.mlp, adapter

    def forward(self, x: Tensor) -> Tensor:
        w = self.adapter
        down = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"]) @ w["down.weight"].T + w["down.bias"]
        return self.mlp(self.norm(x)) + 0.1 * (down.clamp_min(0) @ w["up.weight"].T + w["up.bias"])


def put_in_adapters(model: Any, adapters: dict[int, dict[str, Tensor]]) -> None:
    """Put adapters into blocks of the package's image encoder: block -> weights."""
    for number, adapter in adapters.items():
        block = model.image_encoder.trunk.blocks[number]
        block.mlp, block.norm2 = Beside(block, adapter), nn.Identity()


def features(model: Any, image: Tensor) -> Features:
    """Feature maps (h*w, 1, D), positions and sizes of an image (1, 3, S, S) in [0, 1]."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    out = model.forward_image((image - mean[:, None, None]) / std[:, None, None])
    return model._prepare_backbone_features(out)[1:]


def fine(found: Features) -> list[Tensor]:
    """The two finer maps as (1, C, h, w)."""
    return [x.permute(1, 2, 0).unflatten(2, size) for x, size in zip(found[0][:2], found[2])]


def coarse(found: Features) -> Tensor:
    """The coarsest map as (1, D, h, w)."""
    return found[0][-1].permute(1, 2, 0).unflatten(2, found[2][-1])


def sansa(model: Any, references: list[tuple[Tensor, dict[str, Tensor]]], query: Tensor) -> tuple[Tensor, Tensor]:
    """SANSA: frames of a video, each reference remembered, the last one tracked; mask logits and the three IoUs.

    Args:
        references: image (1, 3, S, S) with {"mask": (1, 1, S, S)}, or with "points" (1, P, 2) and "labels" (1, P).
        query: (1, 3, S, S).
    """
    held: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    for number, (image, said) in enumerate(references):
        found = features(model, image)
        if "mask" in said:
            _, _, _, low, _, pointer, score = model._use_mask_as_output(coarse(found), fine(found), said["mask"])
        else:
            where = {"point_coords": said["points"], "point_labels": said["labels"]}
            alone = coarse(found) + model.no_mem_embed[0, 0][:, None, None]
            _, _, _, low, _, pointer, score = model._forward_sam_heads(alone, where, None, fine(found), False)
        # the mask goes into memory from the size of SAM2's own answers
        full = F.interpolate(low, (model.image_size, model.image_size), mode="bilinear", align_corners=False)
        memory, position = model._encode_new_memory(found[0], found[2], full, score, False)
        kind = "non_cond_frame_outputs" if number else "cond_frame_outputs"
        held[kind][number] = {"maskmem_features": memory, "maskmem_pos_enc": position, "obj_ptr": pointer}
    found, num = features(model, query), len(references)
    conditioned = model._prepare_memory_conditioned_features(
        num, False, found[0][-1:], found[1][-1:], found[2][-1:], held, num + 1
    )
    _, _, ious, low, _, _, _ = model._forward_sam_heads(conditioned, None, None, fine(found), True)
    return low, ious


def stretched(x: Tensor) -> Tensor:
    """All of a map to [0, 1]."""
    return (x - x.min()) / (x.max() - x.min())


def cosine(tokens: Tensor, prototype: Tensor) -> Tensor:
    """Cosine (N,) of tokens (N, C) to one vector (C,)."""
    return (tokens @ prototype) / (tokens.norm(dim=1) * prototype.norm())


def sized(x: Tensor, side: int) -> Tensor:
    """A map (1, C, h, w) between its corners."""
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=True)


def mean_by(tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean (C,) of tokens (N, C) by weights (N,)."""
    return (tokens * weights[:, None]).sum(0) / weights.sum()


def turned(x: Tensor, grid: int) -> Tensor:
    """Keys or queries (maps * grid^2, d) of one head, rotated by their places: x on the first half, y on the second."""
    pairs = torch.view_as_complex(x.double().unflatten(1, (-1, 2)).contiguous())
    speed = 10000.0 ** (-torch.arange(0, x.shape[1] // 2, 2).double() / (x.shape[1] // 2))
    place = torch.arange(len(x)) % grid**2
    angles = torch.cat([(place % grid)[:, None] * speed, (place // grid)[:, None] * speed], dim=1)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(1).float()


def calibrated(model: Any, found: Features, memory: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """Memory attention with FSSAM's section 3.4 in every cross-attention, one head; the embedding (1, D, h, w)."""
    grid = model.image_size // 16
    side = grid**2
    x = (found[0][-1] + 0.1 * found[1][-1])[:, 0]  # (h*w, D)
    for layer in model.memory_attention.layers:
        own, other = layer.self_attn, layer.cross_attn_image
        t = layer.norm1(x)
        logits = turned(own.q_proj(t), grid) @ turned(own.k_proj(t), grid).T / t.shape[1] ** 0.5
        x = x + own.out_proj(logits.softmax(1) @ own.v_proj(t))
        keys = other.k_proj(memory + position)
        keys = torch.cat([turned(keys[: 2 * side], grid), keys[2 * side :]])
        logits = turned(other.q_proj(layer.norm2(x)), grid) @ keys.T / keys.shape[1] ** 0.5
        confirmed = stretched(cosine(keys[side : 2 * side], mean_by(keys[:side], weights)))
        for row in logits:
            likeness = stretched(row[side : 2 * side])
            row[side : 2 * side] += 10 * (likeness + confirmed - 1).clamp_max(0)
        x = x + other.out_proj(logits.softmax(1) @ other.v_proj(memory))
        x = x + layer.linear2(layer.linear1(layer.norm3(x)).clamp_min(0))
    return model.memory_attention.norm(x).T.unflatten(1, (grid, grid))[None]


def fssam(
    model: Any, tokens: Any, references: list[tuple[Tensor, Tensor]], query: Tensor, first_mask: bool = True
) -> tuple[Tensor, Tensor]:
    """FSSAM, sections 3.2 to 3.4, for one query: mask logits and the object score.

    Args:
        tokens: image (1, 3, S, S) in [0, 1] -> DINOv2's normed patch tokens (N, C).
        references: images (1, 3, S, S) and masks (1, 1, S, S).
        query: (1, 3, S, S).
        first_mask: the first reference's mask calibrates, whatever their number.
    """
    size, grid = model.image_size, model.image_size // 16

    def remember(found: Features, mask: Tensor) -> tuple[Tensor, Tensor]:
        _, _, _, _, full, pointer, score = model._use_mask_as_output(coarse(found), fine(found), mask)
        memory, position = model._encode_new_memory(found[0], found[2], full, score, False)
        codes.append(position[-1].flatten(2)[0].T)
        return memory.flatten(2)[0].T, pointer[0]

    codes: list[Tensor] = []
    seen, priors_a, priors_b, held = tokens(query), [], [], []
    for image, mask in references:
        shown = tokens(image)
        side = int(len(shown) ** 0.5)
        inside = sized(mask, side).flatten()
        maps = []
        for weights in (inside, 1 - inside):
            alike = stretched(cosine(seen, mean_by(shown, weights)))
            maps.append(sized(alike.unflatten(0, (side, side))[None, None], size))
        priors_a.append(maps[0])
        priors_b.append(stretched((maps[0] - maps[1]).clamp_min(0)))
        held.append((*remember(features(model, image), mask), sized(mask, grid).flatten()))
    prior_a, prior_b = torch.stack(priors_a).mean(0), torch.stack(priors_b).mean(0)
    found = features(model, query)
    (memory_a, _), (memory_b, own_pointer) = remember(found, prior_a), remember(found, prior_b)
    flat_a, flat_b = sized(prior_a, grid).flatten(), sized(prior_b, grid).flatten()
    supported = torch.stack([stretched(cosine(memory_a, mean_by(m, w))) for m, _, w in held]).mean(0)
    for _ in range(3):
        take = (supported + stretched(cosine(memory_a, mean_by(memory_b, flat_b))) - 1).clamp_min(0)
        memory_b = take[:, None] * memory_a + (1 - take[:, None]) * memory_b
        flat_b = stretched(take * flat_a + (1 - take) * flat_b)
    support = torch.stack([m for m, _, _ in held]).mean(0)
    pointers = torch.stack([torch.stack([p for _, p, _ in held]).mean(0), own_pointer])
    place = codes[0] + model.maskmem_tpos_enc[-1, 0]
    age = torch.zeros(1, 64)
    if model.add_tpos_enc_to_obj_ptrs:
        age = model.obj_ptr_tpos_proj(base.get_1d_sine_pe(torch.ones(1), model.hidden_dim))
    pieces = pointers.reshape(-1, 64)
    weights = held[0][2] if first_mask else torch.stack([w for _, _, w in held]).mean(0)
    memory, position = torch.cat([support, memory_b, pieces]), torch.cat([place, place, age.expand(len(pieces), -1)])
    conditioned = calibrated(model, found, memory, position, weights)
    heads = model._forward_sam_heads(conditioned, None, None, fine(found), True)
    return heads[3], heads[6]
