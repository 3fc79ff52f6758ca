from typing import Any

import pytest
import torch

from fsdino.methods.chain import ChainMethod
from fsdino.models.clicks import grid_code
from fsdino.models.segmenter import FewShotSegmenter
from tests.contract import FewShotContract, assert_same, episodes
from tests.small import rand, refuses, small_segmenter

VARIANTS: dict[str, dict[str, Any]] = {
    "compact": {"variant": "compact"},
    "compact_frozen": {"variant": "compact_frozen"},
    "full": {},
    "bare": {"sparse": False, "skip": False, "channel_match": False, "own_prototypes": False},
    "one block": {"similar_blocks": 1},
    "cells": {"support_stride": 2, "presence_likeness": True},
    "padded": {"resize_mode": "pad", "freeze_adapter": False},
    "attention": {"attention_taps": (0, 2), "centred": True},
}


class TestCompact(FewShotContract):
    def build(self) -> FewShotSegmenter:
        return small_segmenter(variant="compact")


class TestFull(FewShotContract):
    def build(self) -> FewShotSegmenter:
        return small_segmenter()


class TestAttention(FewShotContract):
    def build(self) -> FewShotSegmenter:
        model = small_segmenter(attention_taps=(0, 2), centred=True)
        model.compared.fit_(model.encoder.mean_features(rand(3, 3, 56, 56)))
        return model


class TestPadded(FewShotContract):
    def build(self) -> FewShotSegmenter:
        return small_segmenter(resize_mode="pad", presence_likeness=True)


@pytest.fixture(params=list(VARIANTS))
def model(request: pytest.FixtureRequest) -> FewShotSegmenter:
    return small_segmenter(**VARIANTS[request.param])


def test_features_from_a_cache_give_the_same(model: FewShotSegmenter) -> None:
    query, images, masks = episodes(model, 2, 3)
    memory = model.encode_support_feats(model.encoder(images.flatten(0, 1)), masks)
    assert_same(model.decode_query_feats(memory, model.encoder(query)), model(query, images, masks), 0.0)
    half = [feat.half() for feat in model.encoder(query)]
    assert_same(model.decode_query_feats(memory, half), model(query, images, masks), 0.02)


def test_gradients_reach_exactly_the_trainable_parameters(model: FewShotSegmenter) -> None:
    torch.nn.init.constant_(model.mask_gain, 0.1)  # at its first value, 0, the decoder's masks have no say yet
    out = model.train()(*episodes(model, 2, 2))
    (out.mask_logits.square().sum() + out.iou_pred.sum() + out.presence_logit.sum()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert reached == trainable
    assert len(model.trainable_parameters()) == len(trainable)
    parts = {name.split(".")[0] for name in trainable}
    expected = {"prompts", "presence", "prompt_encoder"} | ({"mask_gain"} if model.config.skip else set())
    if model.config.variant != "compact_frozen":
        expected.add("decoder")
    if not model.config.freeze_adapter:
        expected.add("adapter")
    assert parts == expected


def test_distillation_trains_the_adapter_alone(model: FewShotSegmenter) -> None:
    model.select_trainable_("distill").train()
    model.embed(rand(2, 3, 56, 56)).square().sum().backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"adapter"}
    assert all(p.grad is not None for p in model.adapter.parameters())


def test_embedding_needs_only_the_first_blocks() -> None:
    model = small_segmenter()
    calls: list[int] = []
    for i, block in enumerate(model.encoder.backbone.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    assert model.embed(rand(1, 3, 56, 56)).shape == (1, 32, 8, 8)
    assert calls == [0, 1]


@pytest.mark.parametrize("side", [28, 42, 56, 84])
def test_coarse_to_fine_sizes(side: int, model: FewShotSegmenter) -> None:
    cells = side // 7
    assert model.embed(rand(1, 3, side, side)).shape == (1, 32, cells, cells)
    out = model(rand(1, 3, side, side), rand(1, 2, 3, side, side), (rand(1, 2, side, side) > 0.5).float())
    assert out.mask_logits.shape == (1, 1, 4 * cells, 4 * cells)


def test_untrained_model_finds_what_looks_like_the_reference() -> None:
    """Two flat colours: the training-free score alone separates them."""
    for name in ("compact", "full"):
        model = small_segmenter(**VARIANTS[name])
        support, query = torch.zeros(1, 1, 3, 56, 56), torch.zeros(1, 3, 56, 56)
        mask = torch.zeros(1, 1, 56, 56)
        mask[..., 14:42, 14:42], truth = 1.0, torch.zeros(32, 32, dtype=torch.bool)
        support[:, :, 0], query[:, 0] = mask, 0.0
        support[:, :, 2] = 1 - mask
        query[:, 2], query[:, 0, 28:, 28:], query[:, 2, 28:, 28:], truth[16:, 16:] = 1.0, 1.0, 0.0, True
        logits = model(query, support, mask).mask_logits[0, 0]
        assert float(logits[truth].mean()) > 0.3 + float(logits[~truth].mean()), name
        found = logits > 0
        assert float((found & truth).sum() / (found | truth).sum()) > 0.6, name


def test_the_mask_follows_a_moved_object() -> None:
    """By the stride of the patches, the mask moves by the same share of its grid, through pixels and back."""
    model = small_segmenter()
    grey, red = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([0.9, 0.1, 0.1])

    def scene(left: int) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.zeros(112, 112)
        mask[42:70, left : left + 28] = 1.0
        return grey[:, None, None] * (1 - mask) + red[:, None, None] * mask, mask

    image, mask = scene(28)
    memory = model.encode_support(model.resize.image(image)[None, None], model.resize.soft_mask(mask)[None, None])
    centres = []
    for left in (28, 42, 56):
        out = model.decode_query(memory, model.resize.image(scene(left)[0])[None])
        found = model.resize.invert(out.mask_logits[0, 0], (112, 112)) > 0
        centres.append(float((found.float().sum(0) * (torch.arange(112) + 0.5)).sum() / found.sum()))
    assert centres[1] - centres[0] == pytest.approx(14, abs=4) and centres[2] - centres[1] == pytest.approx(14, abs=4)


@torch.no_grad()
def test_training_starts_where_the_chain_ends(model: FewShotSegmenter) -> None:
    if not model.config.skip or model.config.similar_blocks:
        pytest.skip("the decoder's masks stand alone")
    query, images, masks = episodes(model, 2, 2)
    reader = model.encoder.reading(model.config.reader_taps, model.config.attention_taps)
    chain = ChainMethod(reader, mirror=False).eval()
    if model.config.centred:
        pictures = rand(3, 3, 56, 56)
        model.compared.fit_(model.encoder.mean_features(pictures))
        chain.means.copy_(reader.mean_features(pictures))
    expected = chain(query, images, masks).mask_logits
    expected = torch.nn.functional.interpolate(expected, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(model.eval()(query, images, masks).mask_logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_classes_of_one_image_are_one_pass(model: FewShotSegmenter) -> None:
    model.eval().mask_gain.fill_(0.1)
    query = episodes(model, 1, 1, seed=9)[0]
    memories = [model.encode_support(*episodes(model, 1, 1, seed=k)[1:]) for k in range(3)]
    (joined,) = model.join(memories)
    together = model.decode_encoded(joined, model.encode_query(query)).mask_logits
    for k, memory in enumerate(memories):
        alone = model.decode_query(memory, query).mask_logits
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-4, rtol=1e-4)


def test_position_encoding_is_sams() -> None:
    encoder = small_segmenter().prompt_encoder
    code = grid_code(encoder.pe_layer.positional_encoding_gaussian_matrix, (8, 8))
    torch.testing.assert_close(code, encoder.get_dense_pe(), atol=1e-4, rtol=1e-4)


def test_sam_errors_say_what_to_do() -> None:
    model = small_segmenter()
    with pytest.raises(ValueError, match=r"has no 'mask_decoder\.\*' weights; give the state dict of a whole SAM"):
        model.load_sam_({"image_encoder.x": rand(1)})
    other = small_segmenter(prompt_dim=64)
    parts = {"mask_decoder": other.decoder, "prompt_encoder": other.prompt_encoder}
    sam = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    refuses(r"does not fit this segmenter \(prompt_dim 32\); set prompt_dim", model.load_sam_, sam)


def test_memory_and_images_must_match() -> None:
    model = small_segmenter(variant="compact")
    query, images, masks = episodes(model, 3, 1)
    with pytest.raises(ValueError, match="the memory holds 2 episodes but 3 images came; give 2, or one memory"):
        model.decode_query(model.encode_support(images[:2], masks[:2]), query)
