import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from fsdino.models.encoder import FeatureEncoder
from tests.small import rand, randn, refuses

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2}
NAMES = {  # one of each family, its patch in the name
    "dinov2": "vit_small_patch14_dinov2",
    "reg4": "vit_small_patch14_reg4_dinov2",
    "dinov3": "vit_small_patch16_dinov3",
    "pe_spatial": "vit_pe_spatial_small_patch16_512",
    "tipsv2": "vit_base_patch14_reg1_tipsv2",
    "radio_v3": "vit_base_patch16_radio_v3",
    "radio_v4": "vit_so400m_patch16_radio_v4",
    "lingbot": "vit_small_patch16_lingbot",
    "mixed_rope": "vit_small_patch16_rope_mixed_ape_224",
    "plain": "vit_tiny_patch16_224",
}
KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    # A timm that is older than a family cannot show it; the package promises to run on such a timm.
    kind: (name, 56 if "patch14" in name else 64, SMALL)
    for kind, name in NAMES.items()
    if timm.is_model(name)
}
ROTARY = {"dinov3", "pe_spatial", "lingbot", "mixed_rope"}


def build(kind: str = "dinov2", taps: tuple[int, ...] = (1, 3), **kwargs: Any) -> FeatureEncoder:
    name, size, model_kwargs = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureEncoder(name, size, taps, {**model_kwargs, **kwargs})


@pytest.mark.parametrize("kind", list(KINDS))
def test_maps_of_every_kind_of_vit(kind: str) -> None:
    encoder = build(kind)
    maps = encoder(rand(2, 3, encoder.img_size, encoder.img_size))
    assert [m.shape for m in maps] == [(2, 32, 4, 4)] * 2 and encoder.grid_size == 4
    for m in maps:  # layer-normed over channels, without gradients
        torch.testing.assert_close(m.mean(1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(m.var(1, unbiased=False), torch.ones(2, 4, 4), atol=1e-2, rtol=0)
        assert not m.requires_grad


@pytest.mark.parametrize("kind", list(KINDS))
def test_coarse_to_fine_sizes(kind: str) -> None:
    encoder = build(kind)
    for cells in (2, 3, 4, 7):
        side = cells * encoder.patch_size
        assert encoder(rand(1, 3, side, side))[0].shape == (1, 32, cells, cells)


@pytest.mark.parametrize("kind", list(KINDS))
def test_equals_timm_without_dynamic_size(kind: str) -> None:
    """At the native size nothing is resampled: the features are those of timm's plain model."""
    name, size, kwargs = KINDS[kind]
    encoder = build(kind)
    plain = timm.create_model(name, img_size=size, num_classes=0, **kwargs).eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    images = rand(2, 3, size, size)
    with torch.no_grad():
        raw = plain.forward_intermediates(
            (images - encoder.mean) / encoder.std, indices=[1, 3], intermediates_only=True
        )
    for ours, theirs in zip(encoder(images), raw):
        expected = torch.nn.functional.layer_norm(theirs.permute(0, 2, 3, 1), (32,)).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_mean_and_std_are_those_of_the_weights() -> None:
    assert build("plain").mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert build("dinov2").std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert "mean" not in build().state_dict()  # they follow from the name


def test_last_tap_stops_early() -> None:
    encoder = build(taps=(0, 2, 3))
    calls: list[int] = []
    for i, block in enumerate(encoder.backbone.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    images = rand(1, 3, 56, 56)
    first = encoder(images, last_tap=0)
    assert calls == [0] and len(first) == 1
    calls.clear()
    full = encoder(images)
    assert calls == [0, 1, 2, 3] and len(full) == 3
    torch.testing.assert_close(first[0], full[0])
    calls.clear()
    assert len(encoder(images, last_tap=2)) == 2 and calls == [0, 1, 2]


@pytest.mark.parametrize("kind", list(KINDS))
def test_attention_outputs_are_those_before_the_residual_sum(kind: str) -> None:
    encoder = build(kind).reading((3,), attention=(2, 0))
    seen: dict[int, Any] = {}
    for i in (0, 2):
        encoder.backbone.blocks[i].attn.register_forward_hook(lambda *call, i=i: seen.__setitem__(i, call[-1]))
    images = rand(2, 3, encoder.img_size, encoder.img_size)
    block, *attended = encoder(images)
    torch.testing.assert_close(block, encoder.reading((3,))(images)[0])
    for found, i in zip(attended, (0, 2), strict=True):
        patches = seen[i][:, encoder.backbone.num_prefix_tokens :]
        expected = torch.nn.functional.layer_norm(patches, patches.shape[-1:])
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected)
    assert encoder.frozen_maps().fingerprint != build(kind).reading((3,)).frozen_maps().fingerprint
    assert len(encoder(images, last_tap=3)) == 1


def test_threads_share_an_encoder_and_keep_their_own_attention() -> None:
    encoder = build().reading((1,), attention=(2,))
    images = [rand(1, 3, 56, 56, seed=i) for i in range(16)]
    expected = [encoder(image)[1] for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(encoder, images), expected):
            torch.testing.assert_close(found[1], wanted)


def test_frozen_means_frozen() -> None:
    encoder = build("plain", proj_drop_rate=0.5)
    parent = torch.nn.Sequential(encoder)
    parent.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    images = rand(1, 3, 64, 64)
    assert torch.equal(encoder(images)[1], encoder(images)[1])  # no dropout
    images.requires_grad_(True)
    assert not encoder(images)[0].requires_grad


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("stride", [None, 8])
def test_frozen_size_gives_the_same_and_takes_no_other(kind: str, stride: int | None) -> None:
    name, size, kwargs = KINDS[kind]
    encoder = FeatureEncoder(name, 64, (1,), kwargs, stride=stride) if stride else build(kind, (1,))
    images = rand(1, 3, encoder.img_size, encoder.img_size)
    before = encoder(images)[0]
    torch.testing.assert_close(encoder.freeze_size_()(images)[0], before, atol=0, rtol=0)
    with pytest.raises(AssertionError, match="doesn't match"):
        encoder(rand(1, 3, 2 * encoder.img_size, 2 * encoder.img_size))


@pytest.mark.parametrize("kind", list(KINDS))
def test_rotary_positions_are_known(kind: str) -> None:
    assert build(kind).rotary == (kind in ROTARY)


def test_weights_from_a_file(tmp_path: Any) -> None:
    donor = build()
    path = tmp_path / "vit.safetensors"
    save_file(donor.backbone.state_dict(), path)
    name, size, kwargs = KINDS["dinov2"]
    loaded = FeatureEncoder(name, size, (1, 3), kwargs, weights=str(path))
    images = rand(1, 3, 56, 56)
    torch.testing.assert_close(loaded(images)[1], donor(images)[1])
    finer = FeatureEncoder(name, 84, (1, 3), kwargs, weights=str(path))  # positions are resampled once, at loading
    assert finer(rand(1, 3, 84, 84))[0].shape == (1, 32, 6, 6)


def test_overlapping_patches_make_a_finer_map() -> None:
    name, size, kwargs = KINDS["dinov2"]
    encoder = FeatureEncoder(name, size, (1,), kwargs, stride=7)
    assert encoder(rand(1, 3, size, size))[0].shape == (1, 32, 8, 8) and encoder.grid_size == 8
    with pytest.raises(ValueError, match="stride 9 must divide img_size 56 and be at most the patch size 14"):
        FeatureEncoder(name, size, (1,), kwargs, stride=9)


def test_errors_name_the_legal_sizes_and_taps() -> None:
    with pytest.raises(ValueError, match="img_size 500 is not a multiple of the patch size 14; use 490 or 504"):
        FeatureEncoder("vit_small_patch14_dinov2", 500, (1,), {"embed_dim": 32, "depth": 2, "num_heads": 2})
    encoder = build()
    refuses("img_size 60 is not a multiple of the patch size 14; use 56 or 70", encoder, rand(1, 3, 56, 60))
    refuses("img_size 5 is not a multiple of the patch size 14; use 14", encoder, rand(1, 3, 5, 5))
    refuses(r"taps \(9,\) do not fit 'vit_small_patch14_dinov2'; it has blocks 0 to 3", build, taps=(9,))
    with pytest.raises(ValueError, match=r"last_tap 2 is not read; the taps are \(1, 3\)"):
        build()(rand(1, 3, 56, 56), last_tap=2)
    refuses(r"taps \(4,\) do not fit this encoder; it has blocks 0 to 3", encoder.reading, (1,), attention=(4,))
    del encoder.backbone.blocks[2].attn
    refuses("block 2 of this encoder has no attention of its own to read", encoder.reading, (1,), attention=(2,))


def test_names_that_this_timm_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="has no encoder 'vit_base_patch16_dinov9'; did you mean vit"):
        FeatureEncoder("vit_base_patch16_dinov9", 64, (0,))
    monkeypatch.setattr(timm, "is_model", lambda name: False)
    words = "has no encoder 'vit_small_patch16_lingbot' yet; `pip install --upgrade timm`"
    refuses(words, FeatureEncoder, "vit_small_patch16_lingbot", 64, (0,))


def test_only_transformers() -> None:
    words = r"'naflexvit_\w+' (does not take|has no tr).*; use a Vision"
    refuses(words, FeatureEncoder, "naflexvit_base_patch16_gap", 64, (0,))
    refuses(r"'resnet18' does not take .*; use a Vision Transformer", FeatureEncoder, "resnet18", 64, (0,))
    with torch.device("meta"), pytest.raises(ValueError, match="no transformer blocks to read"):
        FeatureEncoder("swin_tiny_patch4_window7_224", 224, (0,))


def hub_names(timm_weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A timm DINOv2's weights under the names of transformers' `Dinov2Model`, written down from the two modules."""
    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.", "norm.": "layernorm.",
        "attn.proj.": "attention.o_proj.", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
    }  # fmt: skip
    found = {"embeddings.mask_token": torch.zeros(1, 32)}
    for key, value in timm_weights.items():
        _, block, rest = key.split(".", 2) if key.startswith("blocks.") else ("", "", key)
        front = f"encoder.layer.{block}." if block else ""
        if rest.startswith("attn.qkv."):
            for part, piece in zip("qkv", value.chunk(3)):
                found[f"{front}attention.{part}_proj.{rest.rpartition('.')[2]}"] = piece
            continue
        old = next((old for old in names if rest.startswith(old)), "")
        found[front + (names[old] + rest[len(old) :] if old else rest)] = value
    return found


def test_taps_are_those_of_transformers_dinov2() -> None:
    encoder = build(taps=(0, 1, 2, 3), init_values=0.5)
    for parameter in encoder.backbone.parameters():
        parameter.data += 0.05 * randn(*parameter.shape)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14, layer_norm_eps=1e-6
    )
    theirs = Dinov2Model(config).eval()
    weights = hub_names(encoder.backbone.state_dict())
    if "encoder.layer.0.attention.attention.query.bias" in theirs.state_dict():  # early versions 5 of transformers
        older = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value",
                 "o_proj": "output.dense"}  # fmt: skip
        weights = {re.sub(r"[qkvo]_proj", lambda found: older[found[0]], key): value for key, value in weights.items()}
    theirs.load_state_dict(weights)
    images = rand(2, 3, 56, 56)
    with torch.no_grad():
        out = theirs((images - encoder.mean) / encoder.std, output_hidden_states=True)
    for ours, state in zip(encoder(images), out.hidden_states[1:], strict=True):
        expected = torch.nn.functional.layer_norm(state[:, 1:], (32,)).transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    encoder.own_norm = True
    expected = out.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(encoder(images)[-1], expected, atol=1e-5, rtol=1e-5)
