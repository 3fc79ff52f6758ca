"""SAM in any size: official state dicts, sizes read back from weights."""

import dataclasses

import pytest
import segment_anything
import timm
import torch

from fsdino.teachers.architecture import (
    SAM_CONFIGS,
    SamConfig,
    build_sam,
    config_from_state_dict,
    load_prompting_,
    load_vit_,
)
from tests.small import SAM as SMALL
from tests.small import refuses


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_sizes_equal_segment_anything(name):
    with torch.device("meta"):
        official = segment_anything.sam_model_registry[name]()
        ours = build_sam(SAM_CONFIGS[name])
    shapes = {key: value.shape for key, value in official.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert config_from_state_dict(official.state_dict()) == SAM_CONFIGS[name]


@pytest.mark.parametrize("config", [SMALL, SAM_CONFIGS["tiny"], dataclasses.replace(SMALL, global_blocks=(0, 1))])
def test_sizes_are_read_off_the_weights(config):
    with torch.device("meta"):
        found = config_from_state_dict(build_sam(config).state_dict())
    windows = config.window_size if len(config.global_blocks) < config.depth else 0
    assert found == dataclasses.replace(config, window_size=windows)


def test_seed_decides_the_start():
    first, same, other = (build_sam(SMALL, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    name = "image_encoder.patch_embed.proj.weight"
    assert not torch.equal(first[name], other[name])


def test_size_that_does_not_split_into_patches():
    refuses(r"img_size 30 is not a multiple of the patch size 4; use 28 or 32", SamConfig, img_size=30)


def test_the_image_encoder_starts_as_the_vit():
    config = dataclasses.replace(SMALL, global_blocks=(0, 1))
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=0
    ).eval()
    sam = build_sam(config, seed=0)
    with torch.no_grad():
        vit.pos_embed.normal_(generator=torch.Generator().manual_seed(1))
        load_vit_(sam, vit.state_dict())
        pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        encoder = sam.image_encoder
        tokens = encoder.patch_embed((pixels * 255 - sam.pixel_mean) / sam.pixel_std) + encoder.pos_embed
        plain = vit.patch_embed((pixels - 0.5) / 0.5) + vit.pos_embed[:, 1:]  # without the class token
        assert torch.allclose(tokens.flatten(1, 2), plain, atol=1e-5)
        assert torch.allclose(encoder.blocks[0](tokens).flatten(1, 2), vit.blocks[0](plain), atol=1e-5)
    refuses("use the ViT's sizes", load_vit_, build_sam(dataclasses.replace(config, mlp_ratio=2.0)), vit.state_dict())


def test_prompting_starts_as_another_sams():
    sam, other = build_sam(SMALL, seed=0), build_sam(dataclasses.replace(SMALL, embed_dim=12), seed=1)
    load_prompting_(sam, {key: value.half() for key, value in other.state_dict().items()})
    for key, value in sam.state_dict().items():
        if not key.startswith(("image_encoder.", "pixel_")):
            assert torch.equal(value, other.state_dict()[key].half().float()), key
    with pytest.raises(ValueError, match="same prompt_dim, mask_dim and decoder sizes"):
        load_prompting_(build_sam(dataclasses.replace(SMALL, prompt_dim=64)), other.state_dict())
