"""Checkpoints of SANSA's and FSSAM's authors: read by their own names, whatever is around, or refused by name."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fsdino.methods.fssam.method import Fssam
from fsdino.methods.sam2.published import read_published
from fsdino.methods.sam2.weights import save_sam2
from fsdino.methods.sansa.method import Sansa
from tests.contract import episodes
from tests.methods.test_sam2 import meta_checkpoint
from tests.methods.test_sansa import random_up_
from tests.small import METHOD_ARGS, SIDE, refuses, small_sam2

SCORES = ("obj_score", "no_obj")


def unscored(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's weights as a model without object scores has them."""
    return {name: value for name, value in weights.items() if not any(part in name for part in SCORES)}


def adapters(method: Sansa, norm: str = "norm") -> dict[str, Tensor]:
    """A method's adapters as the authors name them."""
    names = {"norm": norm, "down": "down_proj", "up": "up_proj"}
    found = {}
    for key, value in method.state_dict().items():
        if ".mlp.adapter." in key:
            front, _, rest = key.partition(".mlp.adapter.")
            piece, _, kind = rest.partition(".")
            block = front.rpartition(".")[2]
            found[f"image_encoder.trunk.blocks.{block}.adapter.{names[piece]}.{kind}"] = value
    return found


@pytest.fixture
def trained() -> Sansa:
    """SANSA with adapters that do something."""
    return random_up_(Sansa(small_sam2(version="2.0"), memory_order="video")).eval()


@pytest.mark.parametrize("way", ["bare", "model", "state_dict"])
@torch.no_grad()
def test_sansas_whole_checkpoint(trained: Sansa, way: str, tmp_path: Path) -> None:
    whole = unscored(meta_checkpoint(small_sam2(version="2.0"))) | adapters(trained)
    whole = {f"module.sam2.{name}": value for name, value in whole.items()}
    options = argparse.Namespace(lr=1e-4)  # as training scripts keep them
    content = {"bare": whole, "model": {"model": whole, "args": options}, "state_dict": {"state_dict": whole}}[way]
    torch.save(content, tmp_path / "sansa.pth")
    method = Sansa.build("large", SIDE, published=str(tmp_path / "sansa.pth"), memory_order="video").eval()
    inputs = episodes(trained, 1, 2)
    assert torch.equal(method(*inputs).mask_logits, trained(*inputs).mask_logits)


@torch.no_grad()
def test_sansas_adapters_alone_on_a_sam2_of_ones_own(trained: Sansa, tmp_path: Path) -> None:
    own = save_sam2(small_sam2(version="2.0"), tmp_path / "sam2.safetensors")
    found = {f"m.{name}": value for name, value in adapters(trained, "adapter_layer_norm_before").items()}
    found |= {name.replace("down_proj.weight", "scale"): torch.tensor([0.3]) for name in found if "down_proj.w" in name}
    torch.save(found, tmp_path / "adapters.pt")
    method = Sansa.build(img_size=SIDE, weights=str(own), published=str(tmp_path / "adapters.pt")).eval()
    inputs = episodes(trained, 1, 1)
    assert not torch.allclose(method(*inputs).mask_logits, trained(*inputs).mask_logits, atol=1e-3)
    for module in trained.modules():
        if hasattr(module, "down"):
            module.scale = 0.3
    torch.testing.assert_close(method(*inputs).mask_logits, trained(*inputs).mask_logits, atol=1e-4, rtol=0)


def test_sansas_checkpoints_that_do_not_fit(trained: Sansa, tmp_path: Path) -> None:
    path = tmp_path / "sansa.pth"
    whole = unscored(meta_checkpoint(small_sam2(version="2.0"))) | adapters(trained)
    build = {"img_size": SIDE, "published": str(path)}

    def saved(weights: Any) -> None:
        torch.save(weights, path)

    refuses("no published checkpoint at", Sansa.build, **build, kind=FileNotFoundError)
    path.write_bytes(b"cut")
    refuses("sansa.pth cannot be read", Sansa.build, **build)
    saved({"layer.weight": torch.zeros(1)})
    refuses("sansa.pth has neither SAM2's parts nor adapters", Sansa.build, **build)
    saved(whole)
    refuses("give the size and factor that it was trained with", Sansa.build, factor=0.8, **build)
    refuses("this SAM2 in \\[7, 8\\]; give the size and the stages", Sansa.build, stages=(3,), **build)
    refuses("lacks mask_decoder.obj_score_token.weight", Sansa.build, presence="object_score", **build)
    saved({name: value for name, value in whole.items() if name != "memory_encoder.out_proj.weight"})
    refuses("sansa.pth lacks memory_encoder.projection.weight", Sansa.build, **build)
    saved(whole | {"image_encoder.trunk.blocks.4.adapter.gate.weight": torch.zeros(1)})
    refuses("unknown part of an adapter, 'gate.weight'; known are down, up, norm", Sansa.build, **build)


@pytest.mark.parametrize("parts", ["whole", "trained"])
@torch.no_grad()
def test_fssams_checkpoint(parts: str, tmp_path: Path) -> None:
    args = METHOD_ARGS["fssam"]
    meta = meta_checkpoint(small_sam2(version="2.1", seed=4))
    trained = ("memory_encoder", "memory_attention", "sam_mask_decoder")
    kept = meta if parts == "whole" else {k: v for k, v in meta.items() if k.startswith(trained)}
    beside = {"module.dino.blocks.0.attn.qkv.weight": torch.zeros(3, 3)}  # a frozen DINOv2
    torch.save({"state_dict": {f"module.{k}": v for k, v in kept.items()} | beside}, tmp_path / "best.pth")
    assert read_published(tmp_path / "best.pth").others == list(beside)
    own = save_sam2(small_sam2(version="2.1", seed=0), tmp_path / "sam2.safetensors")
    method = Fssam.build(**args, weights=str(own), published=str(tmp_path / "best.pth"))
    expected, frozen = small_sam2(version="2.1", seed=4), small_sam2(version="2.1", seed=4 if parts == "whole" else 0)
    assert torch.equal(method.sam2.net.mask_downsample.weight, frozen.net.mask_downsample.weight)
    for name, value in expected.net.state_dict().items():
        if name.startswith(("memory_encoder", "memory_attention", "mask_decoder")):
            assert torch.equal(method.sam2.net.state_dict()[name], value), name
    if parts == "trained":
        del kept["memory_attention.norm.weight"]
        torch.save(kept, tmp_path / "best.pth")
        words = "best.pth lacks memory_attention.layer_norm.weight"
        refuses(words, Fssam.build, **args, weights=str(own), published=str(tmp_path / "best.pth"))
