"""A frozen encoder by name becomes a model; timm's smallest Vision Transformer stands for all of them."""

from pathlib import Path

import pytest
import torch

import fsdino
from fsdino.base.foundation import timm_name
from tests.small import references, refuses, scene


def test_a_model_by_the_name_of_its_encoder(vit_file: Path) -> None:
    before = torch.random.get_rng_state()
    model = fsdino.load("test_vit", encoder_weights=vit_file)
    assert torch.equal(torch.random.get_rng_state(), before)  # random numbers of the caller stay
    assert model.name == "chain" and not model.training
    assert model.arguments() == {"encoder": "test_vit", "img_size": 448}
    image = scene()[0]
    assert model.segment(model.remember(references()), image).mask.shape == image.shape[:2]


def test_it_is_saved_and_opened_like_any_model(vit_file: Path, tmp_path: Path) -> None:
    model = fsdino.load("test_vit", encoder_weights=vit_file)
    again = fsdino.load(fsdino.save(model, tmp_path / "saved"))
    assert again.fingerprint() == model.fingerprint()


def test_names_and_sizes_of_named_and_unnamed_encoders() -> None:
    assert timm_name("dinov3-l16") == ("vit_large_patch16_dinov3.lvd1689m", 512)
    assert timm_name("vit_small_patch14_dinov2") == ("vit_small_patch14_dinov2.lvd142m", 518)
    assert timm_name("vit_base_patch8_224.dino") == ("vit_base_patch8_224.dino", 448)
    assert timm_name("vit_small_patch16_384") == ("vit_small_patch16_384", 448)


def test_a_folder_of_that_name_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_vit").mkdir()
    monkeypatch.chdir(tmp_path)
    refuses("folder 'test_vit' has no config.json", fsdino.load, "test_vit", kind=FileNotFoundError)


def test_wrong_names(vit_file: Path) -> None:
    load, missing = fsdino.load, FileNotFoundError
    refuses(r"no model 'dinov2-b41': .*\(dinov2-b14,", load, "dinov2-b41", kind=missing)
    refuses("no weights 'nope' of encoder 'test_vit'", load, "test_vit.nope")
    refuses("'resnet18' has no transformer blocks to read; use a Vision", load, "resnet18", encoder_weights=vit_file)
    refuses("'swin_tiny_patch4_window7_224' has no transformer blocks", load, "swin_tiny_patch4_window7_224")
    refuses("'tiny' is no encoder, so encoder weights do not go with it", load, "tiny", encoder_weights=vit_file)
    refuses("'nowhere/else' is no encoder, so", load, "nowhere/else", encoder_weights=vit_file)
    refuses("encoder weights 'no.pth' do not exist", load, "test_vit", encoder_weights="no.pth", kind=missing)
    refuses("not on this disk and could not be had .*HF_HUB_OFFLINE", load, "dinov2-b14", kind=missing)
    refuses("not on this disk and could not be had .*HF_HUB_OFFLINE", load, "test_vit", kind=missing)
    refuses("timm names no weights of encoder 'vit_small_patch16_36x1_224'", load, "vit_small_patch16_36x1_224")
