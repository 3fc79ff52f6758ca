"""FSSAM: contract, every formula against plain numpy, and what K references calibrate."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fsdino.methods.fssam import method as fssam_module
from fsdino.methods.fssam.attention import _attend, calibrated_attention, rope_angles
from fsdino.methods.fssam.formulas import calibration_bias, cosine_map, minmax, query_priors, refine_memory
from fsdino.methods.fssam.method import Fssam
from tests.contract import FewShotContract, episodes, reached
from tests.small import refuses, small_encoder, small_sam2


def small_fssam(version: Any = "2.0", **kwargs: Any) -> Fssam:
    sam2 = small_sam2(version=version)
    with torch.no_grad():  # random weights see an object in every second image
        sam2.net.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(20.0)
    return Fssam(sam2, small_encoder(), **kwargs)


class TestFssam(FewShotContract):
    order_invariant = False  # the first reference's mask calibrates, as in the published code

    def build(self) -> Fssam:
        return small_fssam()


class TestFssamCalibratedByAll(FewShotContract):
    def build(self) -> Fssam:
        return small_fssam("2.1", calibration="all", resize_mode="pad")


class TestFssamWithoutObjectScore(FewShotContract):
    def build(self) -> Fssam:
        return small_fssam("2.1", calibration="all", presence="always", square="larger")


def test_parameters_are_the_published_ones() -> None:
    with torch.device("meta"):
        method = Fssam.build()
    total = sum(p.numel() for p in method.parameters()) / 1e6
    trained = sum(p.numel() for p in method.trainable_parameters()) / 1e6
    assert round(total) in (132, 133) and round(trained) == 11


def test_gradients_reach_memory_encoder_memory_attention_and_decoder_and_nothing_else() -> None:
    method = small_fssam()
    out = method.train()(*episodes(method, 1, 1))
    (out.mask_logits.sum() + out.iou_pred.sum()).backward()
    parts = ("memory_encoder", "memory_attention", "mask_decoder")
    names = [n for n, _ in method.named_parameters() if n.startswith(tuple(f"sam2.net.{part}." for part in parts))]
    wanted = {name for name in names if "pred_obj_score_head" not in name}
    assert {name for name, p in method.named_parameters() if p.requires_grad} == wanted
    assert reached(method) == wanted
    method = small_fssam()
    method.prepare_training_(iou_weight=0.0, presence_weight=0.0)
    method.train()(*episodes(method, 1, 1)).mask_logits.sum().backward()
    assert reached(method) == {name for name in wanted if "iou_prediction_head" not in name}
    method.prepare_training_(iou_weight=0.0, presence_weight=1.0)
    assert all(p.requires_grad for p in method.sam2.net.mask_decoder.pred_obj_score_head.parameters())


# Plain numpy versions, written from the formulas alone.


def np_minmax(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / (x.max() - x.min())


def np_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([float(x @ b) / (np.linalg.norm(x) * np.linalg.norm(b)) for x in a])


def test_cosines_stay_precise_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = 1 + 0.05 * torch.randn(2, 30, 64, generator=generator)  # as of a real encoder: nearly parallel
    prototypes = tokens[:, :3] + 0.01
    with torch.autocast("cpu", torch.bfloat16):
        half = minmax(cosine_map(tokens, prototypes))
    torch.testing.assert_close(half, minmax(cosine_map(tokens, prototypes)))


def test_formulas_can_be_counted_on_the_meta_device() -> None:
    tokens = torch.empty(2, 9, 4, device="meta")
    assert cosine_map(tokens, tokens[:, :3]).shape == (2, 3, 9)


def test_minmax() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    rows = np.stack([[np_minmax(x[b, k]) for k in range(3)] for b in range(2)])
    np.testing.assert_allclose(minmax(torch.from_numpy(x), dims=2).numpy(), rows)
    assert torch.equal(minmax(torch.full((2, 5), 3.0)), torch.zeros(2, 5))


def test_priors() -> None:
    rng = np.random.default_rng(1)
    tokens, fg, bg = rng.normal(size=(2, 25, 6)), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 6))

    def enlarge(flat: np.ndarray) -> np.ndarray:
        grid = torch.from_numpy(flat).view(1, 1, 5, 5)
        return F.interpolate(grid, size=(20, 20), mode="bilinear", align_corners=True)[0, 0].numpy()

    expected_a, expected_b = np.zeros((2, 20, 20)), np.zeros((2, 20, 20))
    for b in range(2):
        for k in range(3):
            object_map = enlarge(np_minmax(np_cosine(tokens[b], fg[b, k])))
            rest_map = enlarge(np_minmax(np_cosine(tokens[b], bg[b, k])))
            expected_a[b] += object_map / 3
            expected_b[b] += np_minmax(np.maximum(object_map - rest_map, 0)) / 3
    a, b_ = query_priors(*(torch.from_numpy(x) for x in (tokens, fg, bg)), size=20)
    np.testing.assert_allclose(a[:, 0].numpy(), expected_a, atol=1e-5)
    np.testing.assert_allclose(b_[:, 0].numpy(), expected_b, atol=1e-5)


def test_refinement() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(10, 4)), rng.normal(size=(10, 4))
    prior_a, prior_b, support = rng.uniform(size=10), rng.uniform(size=10), rng.normal(size=(2, 4))
    got = refine_memory(*(torch.from_numpy(x)[None] for x in (a, b, prior_a, prior_b, support)), rounds=3)
    s1 = (np_minmax(np_cosine(a, support[0])) + np_minmax(np_cosine(a, support[1]))) / 2
    for _ in range(3):
        s2 = np_minmax(np_cosine(a, (b * prior_b[:, None]).sum(0) / prior_b.sum()))
        w = np.maximum(s1 + s2 - 1, 0)
        b = w[:, None] * a + (1 - w[:, None]) * b
        prior_b = np_minmax(w * prior_a + (1 - w) * prior_b)
    np.testing.assert_allclose(got[0][0].numpy(), b, atol=1e-10)
    np.testing.assert_allclose(got[1][0].numpy(), prior_b, atol=1e-10)


def test_bias() -> None:
    rng = np.random.default_rng(3)
    logits, query_keys, support_keys = rng.normal(size=(6, 9)), rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
    weights = rng.uniform(size=9)
    c = np_minmax(np_cosine(query_keys, (support_keys * weights[:, None]).sum(0) / weights.sum()))
    expected = np.stack([10 * np.minimum(0, np_minmax(row) + c - 1) for row in logits])
    as_head = [torch.from_numpy(x)[None, None] for x in (logits, query_keys, support_keys)]
    got = calibration_bias(as_head[0].requires_grad_(), *as_head[1:], torch.from_numpy(weights)[None], strength=10.0)
    np.testing.assert_allclose(got[0, 0].numpy(), expected, atol=1e-10)
    assert not got.requires_grad and float(got.max()) <= 0


def test_attention_without_calibration_is_sam2s() -> None:
    sam2 = small_sam2(version="2.1", side=128)
    generator = torch.Generator().manual_seed(0)
    frame = sam2.encode(torch.rand(2, 3, 128, 128, generator=generator))
    side = sam2.grid**2
    tokens = torch.randn(2, 2 * side + 3, sam2.memory_dim, generator=generator)
    positions = torch.randn(2 * side + 3, sam2.memory_dim, generator=generator)
    weights = torch.rand(2, side, generator=generator)
    plain = calibrated_attention(sam2, frame, tokens, positions, weights, num_pointer_tokens=3, strength=0.0)
    torch.testing.assert_close(plain, sam2.attend(frame, tokens, positions, 3), atol=1e-5, rtol=1e-4)
    calibrated = calibrated_attention(sam2, frame, tokens, positions, weights, num_pointer_tokens=3, strength=10.0)
    assert not torch.allclose(plain, calibrated, atol=1e-3)


@torch.no_grad()
def test_attention_is_the_formula() -> None:
    """One calibrated cross-attention against numpy: bias on the query-memory columns only, softmax over everything."""
    sam2 = small_sam2()
    layer = sam2.net.memory_attention.layers[0].cross_attn_image
    layer.num_attention_heads, side = 1, 16
    rng = np.random.default_rng(4)
    query, key, value = rng.normal(size=(side, 64)), rng.normal(size=(35, 64)), rng.normal(size=(35, 64))
    weights = rng.uniform(size=side)

    def project(linear: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
        return x @ linear.weight.double().numpy().T + linear.bias.double().numpy()

    q, k, v = (project(p, x) for p, x in ((layer.q_proj, query), (layer.k_proj, key), (layer.v_proj, value)))

    def turn(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        frequency = 10000.0 ** (-np.arange(0, 32, 2) / 32)
        for token in range(len(x)):
            place = token % side
            angles = np.concatenate([(place % 4) * frequency, (place // 4) * frequency])
            for pair, angle in enumerate(angles):
                left, right = x[token, 2 * pair], x[token, 2 * pair + 1]
                out[token, 2 * pair] = left * np.cos(angle) - right * np.sin(angle)
                out[token, 2 * pair + 1] = right * np.cos(angle) + left * np.sin(angle)
        return out

    logits = turn(q) @ np.concatenate([turn(k[:32]), k[32:]]).T / 8.0
    prototype = (turn(k[:side]) * weights[:, None]).sum(0) / weights.sum()
    c = np_minmax(np_cosine(turn(k[side:32]), prototype))
    for row in logits:
        row[side:32] += 10 * np.minimum(0, np_minmax(row[side:32]) + c - 1)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    expected = project(layer.o_proj, (powers / powers.sum(1, keepdims=True)) @ v)
    angles = rope_angles(4, 64, 10000.0, torch.device("cpu"))
    tensors = [torch.from_numpy(x).float()[None] for x in (query, key, value)]
    calibration = {"support_weights": torch.from_numpy(weights).float()[None], "strength": 10.0}
    got = _attend(layer, *tensors, angles=angles, num_pointer_tokens=3, **calibration)  # type: ignore[arg-type]
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-4)


def test_five_shots_calibrate_the_query_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns that get the bias hold the query's own refined memory, whatever K is, and not another support's."""
    method = small_fssam().eval()
    query, images, masks = episodes(method, 1, 5)
    seen: dict[str, torch.Tensor] = {}

    def spy_refine(*args: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        seen["refined"], prior = refine_memory(*args, **options)  # type: ignore[arg-type]
        return seen["refined"], prior

    def spy_attention(sam2: object, frame: object, tokens: torch.Tensor, *rest: object, **options: object) -> object:
        seen["tokens"] = tokens
        return calibrated_attention(sam2, frame, tokens, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fssam_module, "refine_memory", spy_refine)
    monkeypatch.setattr(fssam_module, "calibrated_attention", spy_attention)
    memory = method.encode_support(images, masks)
    method.decode_query(memory, query)
    side = method.sam2.grid**2
    assert torch.equal(seen["tokens"][:, side : 2 * side], seen["refined"])
    singles = [method.encode_support(images[:, k : k + 1], masks[:, k : k + 1]).map for k in range(5)]
    torch.testing.assert_close(seen["tokens"][:, :side], torch.stack(singles).mean(0), atol=1e-5, rtol=0)
    for other in singles:
        assert not torch.allclose(seen["tokens"][:, side : 2 * side], other, atol=1e-2)


@pytest.mark.parametrize("shots", [1, 5])
@torch.no_grad()
def test_the_bias_lies_on_the_query_memory_alone(shots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every cross-attention: zero on the support's columns and on the pointers, damping on the query's own."""
    method, biases = small_fssam().eval(), []
    real = F.scaled_dot_product_attention

    def spy(*args: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: object) -> torch.Tensor:
        if attn_mask is not None:
            biases.append(attn_mask)
        return real(*args, attn_mask=attn_mask, **options)  # type: ignore[arg-type]

    query, images, masks = episodes(method, 1, shots)
    memory = method.encode_support(images, masks)
    monkeypatch.setattr("fsdino.methods.fssam.attention.F.scaled_dot_product_attention", spy)
    method.decode_query(memory, query)
    side = method.sam2.grid**2
    calibrated = [bias for bias in biases if bias.shape[-1] > 2 * side]
    assert len(calibrated) == len(method.sam2.net.memory_attention.layers)
    for bias in calibrated:
        assert not bias[..., :side].any() and not bias[..., 2 * side :].any()
        own = bias[..., side : 2 * side]
        assert float(own.max()) <= 0 and float(own.min()) < -1 and float(own.min()) >= -10


def test_support_masks_act_through_the_calibration() -> None:
    """Which support positions are object matters to the attention, and only where the calibration is on."""
    method = small_fssam(calibration="all").eval()
    query, images, masks = episodes(method, 1, 5)
    memory = method.encode_support(images, masks)
    other = replace(memory, weights=1 - memory.weights)
    on, on_other = (method.decode_query(m, query).mask_logits for m in (memory, other))
    method.strength = 0.0
    off, off_other = (method.decode_query(m, query).mask_logits for m in (memory, other))
    assert not torch.allclose(on, off, atol=1e-4) and not torch.allclose(on, on_other, atol=1e-5)
    assert torch.equal(off, off_other)


def test_frozen_parts_stay_in_eval_mode() -> None:
    method = small_fssam().train()
    assert method.sam2.net.memory_attention.training and method.sam2.net.mask_decoder.training
    assert not method.sam2.net.vision_encoder.training and not method.encoder.training
    assert not method.eval().sam2.net.memory_attention.training


@torch.no_grad()
def test_the_first_mask_calibrates_or_all_do() -> None:
    slip, intent = small_fssam().eval(), small_fssam(calibration="all").eval()
    _, images, masks = episodes(slip, 2, 5)
    first, mean = slip.encode_support(images, masks), intent.encode_support(images, masks)
    alone = slip.encode_support(images[:, :1], masks[:, :1])
    assert torch.equal(first.weights, alone.weights)
    singles = [intent.encode_support(images[:, k : k + 1], masks[:, k : k + 1]).weights for k in range(5)]
    torch.testing.assert_close(mean.weights, torch.stack(singles).mean(0))
    assert torch.equal(first.map, mean.map) and not torch.allclose(first.weights, mean.weights)


@torch.no_grad()
def test_an_image_without_the_object_gets_an_empty_mask() -> None:
    method = small_fssam().eval()
    query, images, masks = episodes(method, 2, 1)
    assert float(method(query, images, masks).mask_logits.min()) > -1000
    method.sam2.net.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-20.0)
    found = method(query, images, masks)
    assert bool((found.mask_logits == -1024).all()) and float(found.presence_logit.max()) < 0
    assert float(method.train()(query, images, masks).mask_logits.min()) > -1000  # or it could not learn


def test_images_come_at_sam2s_size_or_at_the_larger_one() -> None:
    published, larger = small_fssam(), small_fssam(square="larger")
    assert published.img_size == published.sam2.img_size == 64 and larger.img_size == larger.encoder.img_size == 70
    mask = torch.zeros(128, 128)
    mask[1, 1] = mask[64:, 40:] = 1
    hard = published.resize.soft_mask(mask)
    assert torch.equal(hard, mask[::2, ::2])  # the nearest pixel, upper left as torch's "nearest"
    assert float(larger.resize.soft_mask(mask)[0, 0]) > 0
    speck = torch.zeros(128, 128)
    speck[1, 1] = 1  # missed by every nearest pixel
    assert published.resize.soft_mask(speck).nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize(("name", "words"), [("calibration", "'first' or 'all'"), ("square", "'sam2' or 'larger'"),
                                             ("presence", "'object_score' or 'always'")])  # fmt: skip
def test_errors_say_what_to_do(name: str, words: str) -> None:
    refuses(f"unknown {name} 'other'; use {words}", small_fssam, **{name: "other"})
