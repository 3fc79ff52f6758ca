"""Pre-training of the tiny encoder: targets, strides, and weights that fit the segmenter's encoder."""

import torch
from safetensors.torch import load_file

from fsdino.assets import make
from fsdino.assets.pretrain_encoder import PretrainModule, RandomPatches, patch_shares
from fsdino.assets.scenes import SceneData
from fsdino.models.encoder import FeatureEncoder
from tests.training.small import small_trainer

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1.0}


def test_patch_shares_count_the_pixels_of_each_label() -> None:
    labels = torch.full((1, 8, 8), -1)
    labels[0, :4, :2] = 1  # half of the upper left patch
    shares = patch_shares(labels, 3, grid=2)
    assert torch.allclose(shares[0, 0], torch.tensor([0.0, 0.5, 0.0, 0.5]))
    assert torch.allclose(shares.sum(-1), torch.ones(1, 4))
    assert torch.allclose(shares[0, 3], torch.tensor([0.0, 0.0, 0.0, 1.0]))


def test_a_run_lowers_the_loss_and_its_weights_load_into_the_encoder(tmp_path) -> None:
    module = PretrainModule(encoder_kwargs=SIZES, fine_share=0.5, thin_share=0.5, lr=3e-3)
    trainer = small_trainer(tmp_path, max_epochs=4, gradient_clip_val=None)
    trainer.fit(module, SceneData(epoch_length=32, val_length=8, batch_size=8))
    assert trainer.callback_metrics["val/loss"] < 7.6  # log 49 + log 41: what knowing nothing costs
    encoder = FeatureEncoder("vit_small_patch14_dinov2", 112, (0, 1), SIZES, stride=7)
    encoder.backbone.load_state_dict(module.encoder_state())
    maps = encoder(torch.rand(1, 3, 112, 112))
    assert maps[0].shape == (1, 32, 16, 16)


def test_a_stored_encoder_is_trained_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(make, "fit_scenes", lambda *_: None)
    make.encoder(str(tmp_path / "again.safetensors"), start=str(make.ASSETS / "tiny_encoder.safetensors"))
    again, first = load_file(tmp_path / "again.safetensors"), load_file(make.ASSETS / "tiny_encoder.safetensors")
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)


def test_targets_follow_the_patches_that_a_step_sees() -> None:
    thinning = RandomPatches(num_prefix_tokens=1)
    patches = torch.arange(16.0).repeat(2, 1).unsqueeze(-1)
    tokens = torch.cat([torch.full((2, 1, 1), -1.0), patches], dim=1)
    assert torch.equal(thinning(tokens), tokens)
    thinning.share = 0.5
    seen = thinning(tokens)
    assert seen.shape == (2, 9, 1) and (seen[:, 0] == -1).all()
    assert torch.equal(thinning.same(patches), seen[:, 1:])
    assert all(len(set(row.flatten().tolist())) == 8 for row in seen[:, 1:])


def test_overlapping_patches_are_centred_on_their_cells() -> None:
    encoder = FeatureEncoder("vit_small_patch14_dinov2", 112, (0,), SIZES, stride=7)
    proj = encoder.backbone.patch_embed.proj
    torch.nn.init.constant_(proj.weight, 1.0)
    torch.nn.init.zeros_(proj.bias)
    image = torch.zeros(1, 3, 112, 112)
    image[..., 8 * 7 + 3, 8 * 7 + 3] = 1.0  # the middle of cell (8, 8)
    response = proj(image)[0, 0]
    rows, columns = response.nonzero(as_tuple=True)
    assert response.shape == (16, 16)
    assert abs(float(rows.float().mean()) - 8) <= 0.5 and abs(float(columns.float().mean()) - 8) <= 0.5
