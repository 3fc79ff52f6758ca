"""The checks that every few-shot method must pass.

A method's test inherits `FewShotContract` and implements `build`, which returns a small one with random weights.
"""

import copy
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fsdino.base.memory import SegmenterOutput
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.result import MAX_CLASSES_AT_ONCE
from tests.on_device import here

_BUILT: dict[type, FewShotMethod] = {}


def episodes(method: FewShotMethod, batch: int, shots: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random query (B, 3, S, S), supports (B, K, 3, S, S) and masks (B, K, S, S): a bright box on noise in each."""
    generator = torch.Generator().manual_seed(seed)
    size = method.img_size
    images = torch.rand(batch, shots + 1, 3, size, size, generator=generator)
    masks = torch.zeros(batch, shots + 1, size, size)
    for b in range(batch):
        for k in range(shots + 1):
            top, left = (int(v) for v in torch.randint(0, size // 2, (2,), generator=generator))
            side = int(torch.randint(size // 4, size // 2, (1,), generator=generator))
            masks[b, k, top : top + side, left : left + side] = 1
    images = 0.5 * images + 0.5 * masks[:, :, None]
    return images[:, 0], images[:, 1:], masks[:, 1:]


def sketch(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A uint8 image (H, W, 3) and its mask (H, W) of any size."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 4 : height // 2 + 1, width // 3 : width // 2 + 2] = 1
    return (rng.integers(0, 128, (height, width, 3)) + 100 * mask[..., None]).astype(np.uint8), mask


def assert_same(a: SegmenterOutput, b: SegmenterOutput, atol: float) -> None:
    """All three outputs agree, masks relative to their own size."""
    for name in ("mask_logits", "iou_pred", "presence_logit"):
        left, right = getattr(a, name), getattr(b, name)
        scale = max(1.0, float(right.detach().abs().max()))
        torch.testing.assert_close(left / scale, right / scale, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def reached(method: FewShotMethod) -> set[str]:
    """Names of the parameters that got a gradient."""
    return {name for name, p in method.named_parameters() if p.grad is not None}


class FewShotContract:
    """Inherit, implement `build`, and pytest collects the rest.

    Attributes:
        atol: Largest difference between two ways to the same numbers, relative to the output's largest value.
        order_invariant: Set False only for an option that publishes an order-dependent behaviour.
        bfloat16_weights: Set False only where a part of another package computes in float32 whatever its weights are;
            autocast must work everywhere.
        not_reached: Trainable parameters (substrings) that no gradient reaches through the three outputs.
    """

    atol: float = 2e-5
    order_invariant: bool = True
    bfloat16_weights: bool = True
    not_reached: tuple[str, ...] = ()

    def build(self) -> Any:
        """A small method with random weights."""
        raise NotImplementedError

    @pytest.fixture
    def method(self) -> FewShotMethod:
        if type(self) not in _BUILT:  # a copy is several times cheaper than building anew
            with torch.random.fork_rng():
                torch.manual_seed(0)
                _BUILT[type(self)] = self.build().eval()
        return copy.deepcopy(_BUILT[type(self)])

    @torch.no_grad()
    def test_output_shapes(self, method: FewShotMethod) -> None:
        out = method(*episodes(method, 2, 3))
        side = out.mask_logits.shape[-1]
        assert out.mask_logits.shape == (2, 1, side, side)
        assert out.iou_pred.shape == out.presence_logit.shape == (2, 1)
        assert all(torch.isfinite(x).all() for x in (out.mask_logits, out.iou_pred, out.presence_logit))

    @torch.no_grad()
    def test_batch_equals_one_by_one(self, method: FewShotMethod) -> None:
        query, images, masks = episodes(method, 3, 2)
        together = method(query, images, masks)
        for b in range(3):
            alone = method(query[b : b + 1], images[b : b + 1], masks[b : b + 1])
            row = SegmenterOutput(*(x[b : b + 1] for x in vars(together).values() if x is not None))
            assert_same(row, alone, self.atol)

    @torch.no_grad()
    def test_reference_order_changes_nothing(self, method: FewShotMethod) -> None:
        query, images, masks = episodes(method, 2, 3)
        order = torch.tensor([2, 0, 1])
        same = method(query, images[:, order], masks[:, order])
        straight = method(query, images, masks)
        if self.order_invariant:
            assert_same(same, straight, self.atol)
        else:
            assert not torch.allclose(same.mask_logits, straight.mask_logits, atol=self.atol, rtol=0)

    @torch.no_grad()
    def test_one_reference_equals_copies_of_it(self, method: FewShotMethod) -> None:
        if not self.order_invariant:
            pytest.skip("copies in different places of an ordered memory differ by definition")
        query, images, masks = episodes(method, 2, 1)
        copies = method(query, images.repeat(1, 3, 1, 1, 1), masks.repeat(1, 3, 1, 1))
        assert_same(copies, method(query, images, masks), self.atol)

    @torch.no_grad()
    def test_every_reference_counts(self, method: FewShotMethod) -> None:
        query, images, masks = episodes(method, 1, 9)
        tensors = method.encode_support(images, masks).tensors()
        changed = images.clone()
        for k in range(images.shape[1]):
            changed.copy_(images)[:, k] = 1 - images[:, k]
            other = method.encode_support(changed, masks).tensors()
            same = all(torch.equal(tensors[name], other[name]) for name in tensors)
            assert not same or sum(t.numel() for t in tensors.values()) == 0, f"reference {k} of 9 was dropped"

    @torch.no_grad()
    def test_one_memory_serves_many_images(self, method: FewShotMethod) -> None:
        query, images, masks = episodes(method, 3, 2)
        memory = method.encode_support(images[:1], masks[:1])
        together = method.decode_query(memory, query)
        for b in range(3):
            row = SegmenterOutput(*(x[b : b + 1] for x in vars(together).values() if x is not None))
            assert_same(row, method.decode_query(memory, query[b : b + 1]), self.atol)

    @torch.no_grad()
    def test_many_classes_equal_one_by_one(self, method: FewShotMethod, monkeypatch: pytest.MonkeyPatch) -> None:
        few = [method.encode_support(*episodes(method, 1, 1 + k % 2, seed=k)[1:]) for k in range(4)]
        image, sizes, decode = sketch(50, 70, 3)[0], [], method.decode_encoded

        def counted(memory: Any, encoded: Any) -> SegmenterOutput:
            sizes.append(memory.batch_size)
            return decode(memory, encoded)

        monkeypatch.setattr(method, "decode_encoded", counted)
        together = list(method.find(method.join([few[k % 4] for k in range(19)]), image))
        assert sum(sizes) == len(together) == 19 and max(sizes) <= MAX_CLASSES_AT_ONCE
        singles = [method.segment(memory, image) for memory in few]
        for k, found in enumerate(together):
            alone = singles[k % 4]
            np.testing.assert_allclose(found.probs, alone.probs, atol=1e-4, rtol=0)
            assert found.present == alone.present and found.score == pytest.approx(alone.score, abs=1e-4)

    @torch.no_grad()
    def test_method_and_memory_survive_saving(self, method: FewShotMethod) -> None:
        query, images, masks = episodes(method, 1, 2)
        memory = method.encode_support(images, masks)
        file = io.BytesIO()
        torch.save({"method": method.state_dict(), "memory": memory.tensors()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        fresh = self.build().eval()
        for tensor in fresh.state_dict().values():
            tensor.zero_()
        fresh.load_state_dict(saved["method"], strict=True)
        restored = replace(memory, **saved["memory"]).to(here())
        assert restored.batch_size == 1
        expected = method.decode_query(memory, query)
        assert_same(fresh.decode_query(restored, query), expected, 0.0)
        assert_same(fresh(query, images, masks), expected, self.atol)

    @pytest.mark.parametrize("way", ["autocast", "weights"])
    @torch.no_grad()
    def test_bfloat16_is_finite(self, method: FewShotMethod, way: str) -> None:
        if way == "weights" and not self.bfloat16_weights:
            pytest.skip("a part computes in float32 whatever its weights are")
        inputs = episodes(method, 1, 2)
        if way == "weights":
            out = method.to(torch.bfloat16)(*inputs)
        else:
            with torch.autocast(here(), torch.bfloat16):
                out = method(*inputs)
        assert all(torch.isfinite(x).all() for x in (out.mask_logits, out.iou_pred, out.presence_logit))

    def test_odd_image_sizes(self, method: FewShotMethod) -> None:
        references = [
            Reference(image, mask=mask) for image, mask in (sketch(37, 61, 0), sketch(80, 23, 1), sketch(64, 64, 2))
        ]
        memory = method.remember(references)
        sizes = [(45, 91), (113, 29), (64, 64)]
        results = method.segment_batch(memory, [sketch(h, w, 5)[0] for h, w in sizes])
        for result, size in zip(results, sizes):
            assert result.mask.shape == result.probs.shape == size
            assert result.mask.dtype == bool and 0.0 <= result.score <= 1.0
            assert float(result.probs.min()) >= 0.0 and float(result.probs.max()) <= 1.0

    def test_empty_mask_is_refused(self, method: FewShotMethod) -> None:
        image, mask = sketch(32, 32, 0)
        with pytest.raises(ValueError, match="no foreground pixel"):
            method.remember([Reference(image, mask=np.zeros_like(mask), name="dog.png")])
        with pytest.raises(ValueError, match="no reference"):
            method.remember([])

    @torch.no_grad()
    def test_remember_and_segment_equal_forward(self, method: FewShotMethod) -> None:
        size = method.img_size
        (query, _), pairs = sketch(size, size, 9), [sketch(size, size, k) for k in range(2)]
        found = method.segment(method.remember([Reference(i, mask=m) for i, m in pairs]), query)
        images = torch.stack([torch.tensor(i).permute(2, 0, 1).float() / 255 for i, _ in pairs])
        masks = torch.stack([torch.tensor(m).float() for _, m in pairs])
        query_image = torch.tensor(query).permute(2, 0, 1).float()[None] / 255
        out = method(query_image, images[None], masks[None])
        probs = method.resize.invert(out.mask_logits[0, 0], (size, size)).sigmoid()
        np.testing.assert_allclose(found.probs, probs.numpy(), atol=self.atol, rtol=0)
        assert found.present == bool(out.presence_logit[0, 0] > 0)

    def test_gradients_reach_exactly_the_trainable_parameters(self, method: FewShotMethod) -> None:
        trainable = {id(p) for p in method.trainable_parameters()}
        names = {name for name, p in method.named_parameters() if id(p) in trainable}
        if not names:
            assert not any(p.requires_grad for p in method.parameters())
            return
        out = method.train()(*episodes(method, 2, 2))
        (out.mask_logits.sum() + out.iou_pred.sum() + out.presence_logit.sum()).backward()
        excepted = {name for name in names if any(part in name for part in self.not_reached)}
        assert reached(method) == names - excepted

    @torch.no_grad()
    def test_training_mode_does_not_wake_frozen_parts(self, method: FewShotMethod) -> None:
        if method.trainable_parameters():
            pytest.skip("parts that train may behave differently in training mode")
        inputs = episodes(method, 1, 1)
        quiet = method(*inputs)
        assert_same(method.train()(*inputs), quiet, 0.0)
