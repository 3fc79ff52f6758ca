"""SAM2's parts: equal to transformers' own video model, official formats load strictly, sizes are checked."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam2VideoInferenceSession, Sam2VideoModel

from fsdino.methods.sam2.net import Sam2
from fsdino.methods.sam2.sizes import SIZES, sam2_config
from fsdino.methods.sam2.weights import build_sam2, hub_keys, save_sam2
from fsdino.methods.sansa.method import Sansa, SansaMemory
from tests.contract import episodes
from tests.small import SIDE, refuses, small_sam2


class OneMaskPointer(Sam2VideoModel):
    """transformers' model with the pointer of a mask prompt from the single-mask token, as in Meta's SAM2."""

    def _single_frame_forward(self, **kwargs: Any) -> Any:
        if kwargs.get("input_masks") is not None:
            kwargs["multimask_output"] = False
        return super()._single_frame_forward(**kwargs)


@pytest.mark.skipif(
    "image_outputs.fpn_position_embeddings" in inspect.getsource(Sam2VideoModel),
    reason="the video session of this transformers (5.0.0) reads a field that its encoder does not give",
)
@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("shots", [1, 3])
@torch.no_grad()
def test_propagation_is_that_of_transformers(version: str, shots: int) -> None:
    """References and target as a real video through transformers' session: frozen SANSA in video order is the same."""
    ours = small_sam2("tiny", version)  # type: ignore[arg-type]
    for name, parameter in ours.net.mask_decoder.pred_obj_score_head.named_parameters():
        if name == "proj_out.bias":
            parameter.fill_(50.0)  # transformers hides masks without object; here every frame has one
    theirs = OneMaskPointer(ours.net.config).eval()
    theirs.load_state_dict(ours.net.state_dict())
    method = Sansa(ours, factor=0.0, memory_order="video", presence="object_score").eval()
    query, images, masks = episodes(method, 1, shots)
    frames = (torch.cat([images[0], query]) - ours.mean) / ours.std
    session = Sam2VideoInferenceSession(video=frames, video_height=SIDE, video_width=SIDE, dtype=torch.float32)
    index = session.obj_id_to_idx(1)
    session.obj_with_new_inputs = [1]
    for k in range(shots):
        session.add_mask_inputs(index, k, masks[:, k : k + 1])
        session.obj_with_new_inputs = [1]
        theirs(session, frame_idx=k)
        # a published few-shot video has one conditioning frame; transformers takes every annotated frame for one
        stored = session.output_dict_per_obj[index]
        if k > 0:
            stored["non_cond_frame_outputs"][k] = stored["cond_frame_outputs"].pop(k)
    session.obj_with_new_inputs = []
    expected = theirs(session, frame_idx=shots).pred_masks[:, 0]
    # transformers remembers a mask as it is, and in this type
    frame = ours.encode(images[0])
    maps, pointers = ours.given_memory(frame, masks[0][:, None]), ours.given_pointer(frame, masks[0][:, None])
    memory = SansaMemory(maps.to(torch.bfloat16).float()[None], pointers[None])
    got = method.decode_query(memory, query).mask_logits[:, 0]
    torch.testing.assert_close(got, expected.reshape(got.shape), atol=2e-4, rtol=1e-3)


def meta_name(key: str) -> list[str]:
    """The name in Meta's checkpoint of a weight of transformers, written down from facebookresearch/sam2's modules."""
    if key == "shared_image_embedding.positional_embedding":
        return []
    mlp2 = {"proj_in": "layers.0", "proj_out": "layers.1"}
    mlp3 = {"proj_in": "layers.0", "layers.0": "layers.1", "proj_out": "layers.2"}
    whole = {
        "no_memory_embedding": "no_mem_embed",
        "no_memory_positional_encoding": "no_mem_pos_enc",
        "no_object_pointer": "no_obj_ptr",
        "memory_temporal_positional_encoding": "maskmem_tpos_enc",
        "occlusion_spatial_embedding_parameter": "no_obj_embed_spatial",
        "prompt_encoder.shared_embedding.positional_embedding": (
            "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        ),
    }
    if key in whole:
        return [whole[key]]
    head, rest = key.split(".", 1)
    if head == "vision_encoder":
        rest = rest.replace("backbone.", "trunk.").replace("patch_embed.projection", "patch_embed.proj")
        rest = re.sub(r"mlp\.(proj_in|proj_out)", lambda m: "mlp." + mlp2[m[1]], rest.replace("layer_norm", "norm"))
        return ["image_encoder." + re.sub(r"neck\.convs\.(\d)", r"neck.convs.\1.conv", rest)]
    if head == "prompt_encoder":
        if rest == "point_embed.weight":
            return [f"sam_prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]
        stem = {"conv1": "0", "layer_norm1": "1", "conv2": "3", "layer_norm2": "4", "conv3": "6"}
        return [
            "sam_prompt_encoder." + re.sub(r"mask_embed\.(\w+)\.", lambda m: f"mask_downscaling.{stem[m[1]]}.", rest)
        ]
    if head == "mask_decoder":
        up = {"upscale_conv1": "0", "upscale_layer_norm": "1", "upscale_conv2": "3"}
        rest = re.sub(r"^(upscale_\w+)\.", lambda m: f"output_upscaling.{up[m[1]]}.", rest)
        rest = re.sub(r"(transformer\.layers\.\d\.mlp)\.(proj_in|proj_out)", lambda m: f"{m[1]}.{mlp2[m[2]]}", rest)
        heads = r"(output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)\.(proj_in|layers\.0|proj_out)"
        rest = re.sub(heads, lambda m: f"{m[1]}.{mlp3[m[2]]}", rest)
        return ["sam_mask_decoder." + rest.replace("layer_norm", "norm").replace("o_proj", "out_proj")]
    if head == "object_pointer_proj":
        return ["obj_ptr_proj." + re.sub(r"^(proj_in|layers\.0|proj_out)", lambda m: mlp3[m[1]], rest)]
    if head == "memory_encoder":
        if match := re.match(r"mask_downsampler\.layers\.(\d)\.(conv|layer_norm)\.(.*)", rest):
            index = 3 * int(match[1]) + ("conv", "layer_norm").index(match[2])
            return [f"memory_encoder.mask_downsampler.encoder.{index}.{match[3]}"]
        for new, old in (
            ("mask_downsampler.final_conv", "mask_downsampler.encoder.12"),
            ("feature_projection", "pix_feat_proj"),
            ("memory_fuser", "fuser"),
            ("depthwise_conv", "dwconv"),
            ("pointwise_conv", "pwconv"),
            (".scale", ".gamma"),
            ("layer_norm", "norm"),
        ):
            rest = rest.replace(new, old)
        return ["memory_encoder." + re.sub(r"^projection\.", "out_proj.", rest)]
    if head == "memory_attention":
        return ["memory_attention." + rest.replace("layer_norm", "norm").replace("o_proj", "out_proj")]
    return [{"temporal_positional_encoding_projection_layer": "obj_ptr_tpos_proj"}.get(head, head) + "." + rest]


def meta_checkpoint(sam2: Sam2) -> dict[str, Tensor]:
    """What Meta's file of this model would hold under "model"."""
    weights: dict[str, Tensor] = {}
    for key, value in sam2.net.state_dict().items():
        names = meta_name(key)
        pieces = value.split(1) if len(names) > 1 else [value]
        weights.update(zip(names, pieces))
    return weights


# A sample of the names in Meta's released files, so that the inverse above cannot drift together with the mapping.
REAL_NAMES = (
    "image_encoder.trunk.pos_embed_window", "image_encoder.trunk.patch_embed.proj.weight",
    "image_encoder.trunk.blocks.0.norm1.weight", "image_encoder.trunk.blocks.0.mlp.layers.1.bias",
    "image_encoder.neck.convs.3.conv.weight", "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "sam_prompt_encoder.point_embeddings.3.weight", "sam_prompt_encoder.mask_downscaling.6.weight",
    "sam_mask_decoder.transformer.layers.0.cross_attn_token_to_image.out_proj.weight",
    "sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight", "sam_mask_decoder.transformer.norm_final_attn.weight",
    "sam_mask_decoder.output_upscaling.1.weight", "sam_mask_decoder.output_hypernetworks_mlps.3.layers.2.weight",
    "sam_mask_decoder.pred_obj_score_head.layers.2.weight", "memory_attention.layers.1.cross_attn_image.k_proj.weight",
    "memory_attention.layers.0.linear2.weight", "memory_encoder.mask_downsampler.encoder.10.weight",
    "memory_encoder.pix_feat_proj.weight", "memory_encoder.fuser.layers.1.gamma",
    "memory_encoder.fuser.layers.0.pwconv1.weight", "memory_encoder.out_proj.weight", "maskmem_tpos_enc",
    "no_mem_pos_enc", "no_obj_ptr", "mask_downsample.weight", "obj_ptr_proj.layers.2.weight",
)  # fmt: skip


def outputs(sam2: Sam2) -> list[Tensor]:
    """Everything that loaded weights have a part in."""
    method = Sansa(sam2, factor=0.0, memory_order="video", presence="object_score").eval()
    query, images, masks = episodes(method, 1, 2)
    found = method(query, images, masks)
    return [found.mask_logits, found.iou_pred, found.presence_logit]


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_metas_checkpoint_loads_to_equal_outputs(version: str, tmp_path: Path) -> None:
    sam2 = small_sam2(version=version)  # type: ignore[arg-type]
    weights = meta_checkpoint(sam2)
    assert set(REAL_NAMES) <= set(weights)
    assert ("no_obj_embed_spatial" in weights) == ("obj_ptr_tpos_proj.weight" in weights) == (version == "2.1")
    torch.save({"model": weights}, tmp_path / "sam2_hiera_mini.pt")
    loaded = build_sam2(weights=tmp_path / "sam2_hiera_mini.pt", img_size=SIDE)
    for got, expected in zip(outputs(loaded), outputs(sam2)):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_folder_of_transformers_loads_to_equal_outputs(version: str, tmp_path: Path) -> None:
    sam2 = small_sam2(version=version)  # type: ignore[arg-type]
    sam2.net.save_pretrained(tmp_path)
    loaded = build_sam2(weights=str(tmp_path), img_size=SIDE)
    for got, expected in zip(outputs(loaded), outputs(sam2)):
        assert torch.equal(got, expected)
    # the same weights serve another input size
    assert build_sam2(weights=str(tmp_path), img_size=96).encode(torch.rand(1, 3, 96, 96)).embedding.shape[-1] == 6


@pytest.mark.parametrize(
    ("size", "version", "millions"),
    [("tiny", "2.1", 38.96), ("tiny", "2.0", 38.9), ("small", "2.0", 46.0), ("base_plus", "2.0", 80.8),
     ("large", "2.0", 224.4)],
)  # fmt: skip
def test_published_sizes(size: str, version: str, millions: float) -> None:
    """As large as published, and every weight of theirs has a name in Meta's files."""
    with torch.device("meta"):
        sam2 = Sam2(sam2_config(size, version=version))  # type: ignore[arg-type]
    assert abs(sum(p.numel() for p in sam2.parameters()) / 1e6 - millions) < 0.1
    assert set(hub_keys(meta_checkpoint(sam2))) == set(sam2.net.state_dict())


def test_incomplete_weights_are_refused_by_name(tmp_path: Path) -> None:
    weights = meta_checkpoint(small_sam2(version="2.0"))
    path = tmp_path / "sam2.pt"
    torch.save({"model": {k: v for k, v in weights.items() if k != "memory_encoder.out_proj.weight"}}, path)
    refuses(r"sam2.pt lacks memory_encoder.projection.weight", build_sam2, weights=path, img_size=SIDE)
    torch.save({"model": {**weights, "extra.weight": torch.zeros(1)}}, path)
    refuses(r"has unknown extra.weight", build_sam2, weights=path, img_size=SIDE)
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, path)
    refuses("no SAM2 checkpoint of Meta's", build_sam2, weights=path, img_size=SIDE)
    narrow = {**weights, "image_encoder.trunk.patch_embed.proj.weight": torch.zeros(10, 3, 7, 7)}
    torch.save({"model": narrow}, path)
    refuses("10 wide with 9 blocks, which is no known SAM2", build_sam2, weights=path, img_size=SIDE)
    refuses("expected 00; download it again", build_sam2, weights=path, img_size=SIDE, sha256="00")
    refuses("no SAM2 checkpoint at", build_sam2, weights=tmp_path / "absent.pt", img_size=SIDE, kind=FileNotFoundError)
    net = small_sam2(version="2.0").net
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("memory_attention.layers.0.linear1")}
    net.save_pretrained(tmp_path / "folder", state_dict=state)
    with pytest.raises(ValueError, match=r"lacks memory_attention.layers.0.linear1.bias, memory_attention"):
        build_sam2(weights=str(tmp_path / "folder"), img_size=SIDE)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_own_file_loads_to_equal_outputs(version: str, tmp_path: Path) -> None:
    sam2 = small_sam2(version=version)  # type: ignore[arg-type]
    weights = {name: value.clone() for name, value in sam2.net.state_dict().items()}
    whole, half = (save_sam2(sam2, tmp_path / f"{half}.safetensors", half=half) for half in (False, True))
    method, inputs = Sansa(sam2, factor=0).eval(), episodes(Sansa(small_sam2()), 1, 1)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    again = Sansa(build_sam2("huge", SIDE, weights=whole), factor=0).eval()  # the file knows its size
    assert torch.equal(again(*inputs).mask_logits, method(*inputs).mask_logits)
    rounded = build_sam2(img_size=SIDE, weights=half)
    assert rounded.dtype == torch.float32 and not rounded.training
    for name, value in rounded.net.state_dict().items():
        assert torch.equal(value, weights[name].half().float()), name


def test_damaged_own_file_is_refused_by_name(tmp_path: Path) -> None:
    path = save_sam2(small_sam2(), tmp_path / "mini.safetensors")
    state = load_file(path)
    missing = r"no SAM2 weights at .*; train them with `python -m fsdino.assets.make sam2`"
    refuses(missing, build_sam2, img_size=SIDE, weights=tmp_path / "absent.safetensors", kind=FileNotFoundError)
    save_file(state, path)
    with pytest.raises(ValueError, match=r"mini\.safetensors does not say which SAM2 it holds; give a file of"):
        build_sam2(img_size=SIDE, weights=path)
    del state["memory_encoder.projection.weight"]
    save_file(state, path, metadata={"size": "mini", "version": "2.1"})
    refuses(r"mini\.safetensors lacks memory_encoder\.projection\.weight", build_sam2, img_size=SIDE, weights=path)


def test_errors_say_what_to_do() -> None:
    refuses("unknown SAM2 size 'huge'; use one of tiny", sam2_config, "huge")
    refuses(r"unknown SAM2 version '3'; use '2.0' or '2.1'", sam2_config, "tiny", version="3")
    refuses("112 is not a multiple of SAM2's coarsest stride 32; use 96 or 128", sam2_config, "tiny", 112)
    with pytest.raises(ValueError, match="expected images of 64 x 64, got 32 x 64"):
        small_sam2().encode(torch.zeros(1, 3, 32, 64))
    assert set(SIZES) == {"tiny", "small", "base_plus", "large", "mini"}
