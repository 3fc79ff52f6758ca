from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fsdino.base.method import (
    FewShotMethod,
    ImageLike,
    Memory,
    Reference,
    Segmentation,
    SegmenterOutput,
    image_tensor,
    reference_tensors,
)
from fsdino.base.resize import Resize
from fsdino.models.memory import SupportMemory
from tests.models.small import rand


class Everything(FewShotMethod):
    """Finds the remembered share of foreground everywhere, and is present where the image is bright."""

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> SupportMemory:
        return SupportMemory(prototypes=support_masks.mean((1, 2, 3))[:, None])

    def decode_query(self, memory: SupportMemory, query_image: Tensor) -> SegmenterOutput:
        n = query_image.shape[0]
        logits = torch.logit(memory.prototypes, eps=1e-4).view(-1, 1, 1, 1).expand(n, 1, 8, 8)
        return SegmenterOutput(logits, torch.full((n, 1), 1.7), query_image.mean((1, 2, 3))[:, None] - 0.5)


def white(height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def mask_of(share: float, height: int = 20, width: int = 30) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[: round(share * height)] = 255
    return mask


def test_segment_gives_the_image_its_size() -> None:
    method = Everything(Resize(16))
    memory = method.remember([Reference(white(), mask=mask_of(0.8))])
    found = method.segment(memory, white(7, 9))
    assert found.mask.shape == found.probs.shape == (7, 9) and found.mask.dtype == torch.bool
    assert found.present and bool(found.mask.all()) and found.score == 1.0
    assert float(found.probs.mean()) == pytest.approx(0.8, abs=0.02)


def test_threshold_cuts_probabilities() -> None:
    memory = Everything(Resize(16)).remember([Reference(white(), mask=mask_of(0.3))])
    assert not bool(Everything(Resize(16)).segment(memory, white()).mask.any())
    assert bool(Everything(Resize(16), threshold=0.2).segment(memory, white()).mask.all())


def test_absent_object_has_an_empty_mask() -> None:
    method = Everything(Resize(16))
    memory = method.remember([Reference(white(), mask=mask_of(0.8))])
    bright, dark = method.segment_batch(memory, [white(), np.zeros((5, 6, 3), np.uint8)])
    assert bright.present and not dark.present
    assert bool(bright.mask.all()) and not bool(dark.mask.any()) and dark.mask.shape == (5, 6)
    assert method.segment_batch(memory, []) == []


def test_every_kind_of_image_is_the_same_image() -> None:
    array = (255 * rand(12, 10, 3)).numpy().astype(np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    kinds: list[ImageLike] = [array, Image.fromarray(array), tensor]
    for kind in kinds:
        torch.testing.assert_close(image_tensor(kind, "x"), tensor)


def test_every_kind_of_mask_is_the_same_mask() -> None:
    mask = mask_of(0.5)
    masks: list[ImageLike] = [
        mask,
        mask > 0,
        mask.astype(np.float32) / 255,
        torch.from_numpy(mask),
        Image.fromarray(mask),
    ]
    for kind in masks:
        out = reference_tensors(Reference(white(), mask=kind))[1]
        assert out.dtype == torch.float32 and torch.equal(out, torch.from_numpy(mask > 0).float())


def test_references_of_different_sizes_stack() -> None:
    method = Everything(Resize(16))
    memory = method.remember([Reference(white(), mask=mask_of(0.5)), Reference(white(9, 50), mask=mask_of(1, 9, 50))])
    assert memory.batch_size == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Reference(white()), "reference: a reference needs a mask; give Reference"),
        (Reference(white(), mask=mask_of(0), name="dog.png"), "mask 'dog.png' has no foreground pixel"),
        (
            Reference(white(), mask=mask_of(1, 10, 30)),
            r"mask is \(10, 30\) but its image \(20, 30\).*resize the",
        ),
        (Reference(white(), mask=white()), r"expected a mask \(H, W\), got shape \(20, 30, 3\); give a single plane"),
        (Reference(white()[..., 0], mask=mask_of(1)), r"expected a uint8 array \(H, W, 3\), got uint8 \(20, 30\)"),
        (Reference(white() / 255.0, mask=mask_of(1)), r"got float64 \(20, 30, 3\); convert it to RGB uint8"),
        (Reference(torch.ones(20, 30, 3), mask=mask_of(1)), r"expected a float tensor \(3, H, W\)"),
        (Reference(torch.ones(3, 20, 30).long(), mask=mask_of(1)), "got torch.int64"),
        (Reference(torch.full((3, 20, 30), 255.0), mask=mask_of(1)), r"in \[0, 1\], got up to 255; divide by 255"),
    ],
)
def test_bad_references(reference: Reference, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Everything(Resize(16)).remember([reference])


def test_no_reference_and_bad_threshold() -> None:
    with pytest.raises(ValueError, match=r"got no reference; give at least one Reference\(image, mask=mask\)"):
        Everything(Resize(16)).remember([])
    with pytest.raises(ValueError, match=r"threshold 1\.0 is not a probability"):
        Everything(Resize(16), threshold=1.0)


def test_memory_moves_and_rebuilds() -> None:
    memory = SupportMemory(prototypes=rand(2, 1, 2, 4), grid=(1, 2, 3))
    moved = memory.to(torch.float64)
    assert isinstance(moved, Memory) and moved.grid == (1, 2, 3) and moved.tokens is None
    assert moved.prototypes.dtype == torch.float64 and memory.prototypes.dtype == torch.float32
    assert list(memory.tensors()) == ["prototypes"] and memory.batch_size == 2


def test_device_is_that_of_the_weights() -> None:
    method = Everything(Resize(16))
    assert method.device == torch.device("cpu")
    method.layer = nn.Linear(1, 1, device="meta")
    assert method.device.type == "meta" and method.img_size == 16


def test_instances_are_the_connected_parts() -> None:
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[1:4, 2:6], mask[6, 7], mask[7, 8], mask[9, 0] = True, True, True, True
    found = Segmentation(mask, torch.where(mask, 0.8, 0.1), score=0.5, present=True)
    parts = found.instances(name="cat")
    assert [part.box for part in parts] == [(2, 1, 6, 4), (7, 6, 9, 8), (0, 9, 1, 10)]  # corners touch: 8 neighbours
    assert [int(part.mask.sum()) for part in parts] == [12, 2, 1] and parts[0].name == "cat"
    assert parts[0].score == pytest.approx(0.4)
    assert len(found.instances(min_pixels=2)) == 2
    assert Segmentation(~(mask | True), found.probs, 0.0, False).instances() == []


def test_label_map_gives_each_pixel_to_the_most_probable_class() -> None:
    method = Everything(Resize(16))
    memories = {name: method.remember([Reference(white(), mask=mask_of(s))]) for name, s in (("a", 0.6), ("b", 0.8))}
    found = method.segment(memories, white())
    assert bool((found.labels == 2).all()) and not bool(found.classes["a"].mask.any())
    assert bool(found.classes["b"].mask.all()) and [part.name for part in found.instances()] == ["b"]
    dark = method.segment(memories, np.zeros((5, 6, 3), np.uint8))  # both are absent
    assert not bool(dark.labels.any()) and dark.labels.shape == (5, 6)
    assert dark.classes["a"].presence == pytest.approx(1 / (1 + np.exp(0.5)))


def test_methods_that_know_masks_alone_say_so() -> None:
    method = Everything(Resize(16))
    for kind in ({"points": [(1, 1)]}, {"box": (1, 1, 4, 4)}, {"scribble": [(1, 1), (3, 3)]}):
        with pytest.raises(ValueError, match=r"dog\.png: Everything learns from masks alone; give a mask"):
            method.remember([Reference(white(), name="dog.png", **kind)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Everything has no use for what is not meant"):
        method.remember([Reference(white(), mask=mask_of(1), negative=True)])
    with pytest.raises(ValueError, match="Everything takes no clicks"):
        method.refine(method.remember([Reference(white(), mask=mask_of(1))]), white(), [(1, 1)])
