"""Files that are not the weights of an encoder: one sentence each, and no weight is left random."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsdino.models.encoder import FeatureEncoder
from tests.small import refuses

Tensors = dict[str, torch.Tensor]


def build(weights: str, name: str = "test_vit") -> FeatureEncoder:
    return FeatureEncoder(name, 64, (4, 5), weights=weights)


def without(tensors: Tensors, start: str) -> Tensors:
    return {key: value for key, value in tensors.items() if not key.startswith(start)}


def nan(tensors: Tensors) -> Tensors:
    changed = tensors["blocks.3.attn.qkv.weight"].clone()
    changed[0, 0] = float("nan")
    return {**tensors, "blocks.3.attn.qkv.weight": changed}


def wider(tensors: Tensors) -> Tensors:
    return {**tensors, "norm.weight": torch.zeros(65)}


def other_patch(tensors: Tensors) -> Tensors:
    kernel = tensors["patch_embed.proj.weight"]
    return {**tensors, "patch_embed.proj.weight": torch.zeros(*kernel.shape[:2], 14, 14)}


class Anything:
    """An object that a pickle may hold, and that is not let in."""


WRONG: dict[str, tuple[str, Callable[[Tensors], Any], str]] = {
    "NaN": ("a.safetensors", nan, r"are damaged: blocks.3.attn.qkv.weight holds NaN"),
    "a block less": ("a.pth", lambda t: without(t, "blocks.3."), r"not those of test_vit \(blocks.3.norm1.weight is m"),
    "another width": ("a.pth", wider, r"not those of test_vit \(norm.weight has shape \[65\], not \[64\]\)"),
    "a part more": ("a.pth", lambda t: {**t, "reg_token": torch.zeros(1, 4, 64)}, r"\(reg_token is not a part of it\)"),
    "other patches": ("a.safetensors", other_patch, r"\(its patches have 14 pixels, not 16\)"),
    "other names": ("a.safetensors", lambda _: {"conv.weight": torch.zeros(3)}, r"those of test_vit \(.* is missing"),
    "one tensor": ("a.pth", lambda _: torch.zeros(3), "cannot be read: the file is cut or damaged, or not"),
    "a dictionary within": ("a.pth", lambda t: {"teacher": t}, "hold no state dict"),
    "nothing": ("a.pth", lambda _: {}, "hold no state dict"),
    "objects": ("a.pth", lambda _: {"a": Anything()}, "cannot be read: .* of tensors alone"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_content(case: str, vit_file: Path, tmp_path: Path) -> None:
    name, change, words = WRONG[case]
    (save_file if name.endswith("safetensors") else torch.save)(change(load_file(vit_file)), tmp_path / name)
    with pytest.raises(ValueError, match=words) as caught:
        build(str(tmp_path / name))
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors", "cut.safetensors", "cut.pth"])
def test_no_file_of_weights_at_all(name: str, vit_file: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "cut.pth":
        torch.save(load_file(vit_file), file)
    content = (
        vit_file.read_bytes() if name == "cut.safetensors" else file.read_bytes() if file.exists() else b"text" * 9
    )
    file.write_bytes(content[: max(len(content) // 2, 36)])
    refuses("cannot be read: the file is cut or damaged", build, str(file))


def test_the_forms_in_which_weights_come(vit_file: Path, tmp_path: Path) -> None:
    tensors = load_file(vit_file)
    wrapped = {"model": {f"module.{key}": value for key, value in tensors.items()}}
    forms = {"whole.pth": tensors, "no_classifier.pth": without(tensors, "head."), "wrapped.pth": wrapped}
    for name, content in forms.items():
        torch.save(content, tmp_path / name)
    for file in (vit_file, *(tmp_path / name for name in forms)):
        encoder = build(str(file))
        loaded = encoder.backbone.state_dict()
        # Positions are resampled to another grid; everything else is in place, bit for bit.
        assert all(torch.equal(loaded[key], tensors[key]) for key in loaded.keys() - {"pos_embed"}), file
        assert "state_dict" not in encoder.backbone.pretrained_cfg


def test_encoders_that_timm_does_not_have() -> None:
    refuses(
        "no encoder 'vit_smal_patch14_dinov2'; did you mean vit_small_patch14_dinov2 or",
        build,
        "timm",
        "vit_smal_patch14_dinov2",
    )
    refuses("no encoder 'dinov2-b41'; did you mean dinov2-b14 or", build, "timm", "dinov2-b41")
    refuses(
        "timm names no weights of encoder 'vit_small_patch16_36x1_224'", build, "timm", "vit_small_patch16_36x1_224"
    )
