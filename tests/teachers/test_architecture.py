"""SAM in any size: official state dicts, sizes read back from weights."""

import dataclasses

import pytest
import segment_anything
import torch

from fsdino.teachers.architecture import SAM_CONFIGS, SamConfig, build_sam, config_from_state_dict

SMALL = SamConfig(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=3, window_size=4, global_blocks=(1,),
                  prompt_dim=32, decoder_mlp_dim=32, decoder_heads=2, iou_dim=16)  # fmt: skip


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
    with pytest.raises(ValueError, match=r"img_size 30 is not a multiple of the patch size 4; use 28 or 32"):
        SamConfig(img_size=30)
