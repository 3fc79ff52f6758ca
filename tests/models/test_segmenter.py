from typing import Any

import pytest
import torch

from fsdino.models.clicks import grid_code
from fsdino.models.segmenter import FewShotSegmenter
from tests.contract import FewShotContract, assert_same, episodes
from tests.small import rand, refuses, small_segmenter

VARIANTS: dict[str, dict[str, Any]] = {
    "compact": {"variant": "compact"},
    "compact_frozen": {"variant": "compact_frozen"},
    "full": {},
    "bare": {"sparse": False, "skip": False, "contrastive": False, "self_correlation": False},
    "padded": {"resize_mode": "pad", "freeze_adapter": False},
}


class TestCompact(FewShotContract):
    def build(self) -> FewShotSegmenter:
        return small_segmenter(variant="compact")


class TestFull(FewShotContract):
    def build(self) -> FewShotSegmenter:
        return small_segmenter()


class TestPadded(FewShotContract):
    def build(self) -> FewShotSegmenter:
        return small_segmenter(resize_mode="pad", presence_statistics=True)


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
    out = model.train()(*episodes(model, 2, 2))
    (out.mask_logits.square().sum() + out.iou_pred.sum() + out.presence_logit.sum()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert reached == trainable
    assert len(model.trainable_parameters()) == len(trainable)
    parts = {name.split(".")[0] for name in trainable}
    expected = {"prompts", "presence", "prompt_encoder"}
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


def test_skip_adds_the_coarse_logits() -> None:
    with_skip, without = small_segmenter(), small_segmenter(skip=False)
    inputs = episodes(with_skip, 1, 1)
    memory = with_skip.encode_support(*inputs[1:])
    query = torch.stack([f.flatten(2).transpose(1, 2) for f in with_skip.encoder(inputs[0])[1:]], 1)
    coarse = with_skip.prompts(memory, torch.nn.functional.normalize(query, dim=-1), (8, 8)).coarse_logits
    coarse = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    difference = with_skip(*inputs).mask_logits - without(*inputs).mask_logits
    torch.testing.assert_close(difference, coarse, atol=1e-4, rtol=1e-4)


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
