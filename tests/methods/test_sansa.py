"""SANSA: contract, exact start at SAM2, published sizes, memory orders, prompts and the training scheme."""

import numpy as np
import pytest
import torch

from fsdino.base.reference import Reference
from fsdino.methods.sam2.sizes import SIZES
from fsdino.methods.sansa.method import Sansa
from tests.contract import FewShotContract, assert_same, episodes, reached, sketch
from tests.small import SIDE, refuses, small_sam2


def random_up_(method: Sansa) -> Sansa:
    """Trained-like adapters: their output is no longer zero."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in method.named_parameters():
        if ".adapter.up." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return method


class TestSansa(FewShotContract):
    def build(self) -> Sansa:
        return random_up_(Sansa(small_sam2(version="2.0")))


class TestSansaWithPresence(FewShotContract):
    def build(self) -> Sansa:
        return random_up_(Sansa(small_sam2(version="2.1"), presence="object_score", resize_mode="pad"))


class TestSansaAsVideo(FewShotContract):
    order_invariant = False

    def build(self) -> Sansa:
        return random_up_(Sansa(small_sam2(version="2.1"), memory_order="video"))

    @pytest.mark.skip(reason="the published memory drops references, which test_published_memory_drops checks")
    def test_every_reference_counts(self) -> None: ...


@pytest.mark.parametrize("size", ["mini", "tiny", "small", "base_plus", "large"])
def test_zero_up_projection_is_frozen_sam2_exactly(size: str) -> None:
    inputs = episodes(Sansa(small_sam2(size)), 1, 2)
    plain = Sansa(small_sam2(size), factor=0.0).eval()(*inputs)
    adapted = Sansa(small_sam2(size)).eval()
    assert_same(adapted(*inputs), plain, 0.0)
    assert torch.equal(adapted(*inputs).mask_logits, plain.mask_logits)
    moved = random_up_(adapted)(*inputs).mask_logits
    assert not torch.allclose(moved, plain.mask_logits, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "trained", "total"), [("tiny", 1.12, 39.9), ("base_plus", 3.09, None), ("large", 9.90, 234.2)]
)
def test_parameters_are_the_published_ones(size: str, trained: float, total: float | None) -> None:
    with torch.device("meta"):
        method = Sansa.build(size)
    count = sum(p.numel() for p in method.trainable_parameters()) / 1e6
    assert round(count, 2) == trained
    if total is not None:
        assert round(sum(p.numel() for p in method.parameters()) / 1e6, 1) == total


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_gradients_reach_an_adapter_in_every_block_of_the_last_two_stages_and_nothing_else(size: str) -> None:
    method = random_up_(Sansa(small_sam2(size, side=32)))
    out = method.train()(*episodes(method, 1, 1))
    (out.mask_logits.sum() + out.iou_pred.sum()).backward()
    blocks = SIZES[size].blocks
    wanted = {
        f"sam2.net.vision_encoder.backbone.blocks.{block}.mlp.adapter.{part}.{kind}"
        for block in range(sum(blocks[:2]), sum(blocks))
        for part in ("norm", "down", "up")
        for kind in ("weight", "bias")
    }
    assert reached(method) == wanted == {name for name, p in method.named_parameters() if p.requires_grad}


def test_one_reference_is_the_same_in_both_orders() -> None:
    inputs = episodes(Sansa(small_sam2()), 2, 1)
    as_set, as_video = (Sansa(small_sam2(), memory_order=order).eval() for order in ("set", "video"))
    assert_same(as_set(*inputs), as_video(*inputs), 1e-6)


def test_published_memory_drops_what_does_not_fit() -> None:
    method = Sansa(small_sam2(), memory_order="video").eval()
    query, images, masks = episodes(method, 1, 9)
    tokens, _, num_pointer_tokens = method._context(method.encode_support(images, masks))
    assert (tokens.shape[1] - num_pointer_tokens) == 7 * method.sam2.grid**2 and num_pointer_tokens == 9
    other = images.clone()
    other[:, 1] = 0  # the second of nine: neither the first nor one of the six latest
    memory, changed = method.encode_support(images, masks), method.encode_support(other, masks)
    kept = 7 * method.sam2.grid**2
    assert torch.equal(method._context(memory)[0][:, :kept], method._context(changed)[0][:, :kept])


def test_targets_become_pseudo_references() -> None:
    method = random_up_(Sansa(small_sam2())).train()
    _, images, masks = episodes(method, 2, 1)
    _, targets, _ = episodes(method, 2, 3, seed=1)
    outputs = method.forward_targets(targets, images, masks)
    assert len(outputs) == 3
    assert_same(outputs[0], method(targets[:, 0], images, masks), 1e-6)
    # the second target sees the first one's prediction
    alone = method(targets[:, 1], images, masks)
    assert not torch.allclose(outputs[1].mask_logits, alone.mask_logits, atol=1e-4)
    memory = method.encode_support(images, masks)
    frame = method.sam2.encode(targets[:, 0])
    longer = memory.append(*method._remember_prediction(frame, method._track(memory, frame)))
    assert_same(outputs[1], method.decode_query(longer, targets[:, 1]), 1e-5)
    # gradients of a late target reach the adapters through the pseudo-references
    outputs[2].mask_logits.sum().backward()
    assert all(p.grad is not None for p in method.trainable_parameters())


def test_kinds_mix_and_a_mask_wins() -> None:
    method = random_up_(Sansa(small_sam2())).eval()
    image, mask = sketch(48, 80, 0)
    kinds = [Reference(image, mask=mask, box=(1, 1, 9, 9)), Reference(image, box=(20, 10, 50, 30))]
    memories = [method.remember([kind]) for kind in (*kinds, Reference(image, mask=mask))]
    assert torch.equal(memories[0].maps, memories[2].maps)
    together = method.remember(kinds)
    assert together.maps.shape[1] == 2 and torch.equal(together.pointers[:, 1], memories[1].pointers[:, 0])


def test_a_prompt_is_answered_by_sam2_and_its_mask_remembered() -> None:
    """Points, a box's two corners and every pixel of a scribble, decoded without memory into the single mask."""
    method = random_up_(Sansa(small_sam2())).eval()
    image, stroke = sketch(SIDE, SIDE, 0)[0], np.zeros((SIDE, SIDE), np.uint8)
    stroke[10, 20:24] = stroke[30:33, 5] = 1
    pixels = [(x, y) for y, x in zip(*np.nonzero(stroke))]
    frame = method.sam2.encode(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    cases = [
        (Reference(image, points=[(12, 40), (3, 3)], labels=[1, 0]), [(12, 40), (3, 3)], [1, 0]),
        (Reference(image, box=(8, 10, 40, 50)), [(8, 10), (40, 50)], [2, 3]),
        (Reference(image, scribble=stroke), pixels, [1] * len(pixels)),
    ]
    for reference, points, labels in cases:
        where, kind = torch.tensor(points).float()[None], torch.tensor(labels)[None]
        drawn = method.sam2.decode(frame, method.sam2.without_memory(frame), where, kind, multimask=False)
        tokens = method.sam2.encode_memory(frame, method.sam2.to_input_size(drawn.mask_logits))
        memory = method.remember([reference])
        # half a pixel lies between the centre and the corner of what a user names
        torch.testing.assert_close(memory.maps[:, 0], tokens, atol=0.1 * float(tokens.abs().max()), rtol=0)
        assert memory.pointers.shape == (1, 1, method.sam2.dim)


def test_points_are_scaled_with_the_image() -> None:
    method = Sansa(small_sam2(), resize_mode="pad").eval()
    image, _ = sketch(SIDE, 2 * SIDE, 0)
    memory = method.remember([Reference(image, points=[(40, 20)])])
    square = method.resize.image(torch.from_numpy(image).permute(2, 0, 1) / 255)[None, None]
    assert not square[..., SIDE // 2 :, :].any()
    expected = method.encode_support_points(
        square, torch.tensor([[[[19.75, 9.75]]]]), torch.ones(1, 1, 1, dtype=torch.long)
    )
    torch.testing.assert_close(memory.maps, expected.maps, atol=1e-4, rtol=0)


def test_errors_say_what_to_do() -> None:
    refuses("'set' or 'video'", Sansa, small_sam2(), memory_order="list")
    refuses("'always' or 'object_score'", Sansa, small_sam2(), presence="never")
