"""What the base class of all methods does for them, on a method that finds the same everywhere."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fsdino.base.memory import Memory, SegmenterOutput, image_tensor
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.resize import Resize
from fsdino.models.memory import SupportMemory
from tests.small import rand, refuses


class Everything(FewShotMethod):
    """Finds the remembered share of foreground everywhere, and is present where the image is bright."""

    memory_type = SupportMemory

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
    assert found.mask.shape == found.probs.shape == (7, 9) and found.mask.dtype == bool
    assert found.present and found.mask.all() and found.score == 1.0
    assert float(found.probs.mean()) == pytest.approx(0.8, abs=0.02)


def test_threshold_cuts_probabilities() -> None:
    memory = Everything(Resize(16)).remember([Reference(white(), mask=mask_of(0.3))])
    assert not Everything(Resize(16)).segment(memory, white()).mask.any()
    assert Everything(Resize(16), threshold=0.2).segment(memory, white()).mask.all()


def test_absent_object_has_an_empty_mask() -> None:
    method = Everything(Resize(16))
    memory = method.remember([Reference(white(), mask=mask_of(0.8))])
    bright, dark = method.segment_batch(memory, [white(), np.zeros((5, 6, 3), np.uint8)])
    assert bright.present and not dark.present
    assert bright.mask.all() and not dark.mask.any() and dark.mask.shape == (5, 6)
    assert method.segment_batch(memory, []) == []


def test_several_classes_share_one_label_map() -> None:
    method = Everything(Resize(16))
    memories = {name: method.remember([Reference(white(), mask=mask_of(s))]) for name, s in (("a", 0.6), ("b", 0.8))}
    found = method.segment(memories, white())
    assert (found.labels == 2).all() and not found.classes["a"].mask.any() and found.classes["b"].mask.all()
    assert [part.name for part in found.instances()] == ["b"]
    dark = method.segment(memories, np.zeros((5, 6, 3), np.uint8))  # both are absent
    assert not dark.labels.any() and dark.labels.shape == (5, 6)
    assert dark.classes["a"].presence == pytest.approx(1 / (1 + np.exp(0.5)))
    refuses("got no memory; give at least one class", method.segment, {}, white())


def test_a_threshold_is_a_probability() -> None:
    refuses(r"threshold 1\.0 is not a probability", Everything, Resize(16), threshold=1.0)


def test_an_image_that_may_not_be_written_to_is_copied() -> None:
    image = np.random.default_rng(0).random((4, 5, 3), np.float32)
    assert np.shares_memory(image_tensor(image).numpy(), image)
    image.setflags(write=False)  # torch would warn, in the middle of a command's output
    tensor = image_tensor(image)
    assert not np.shares_memory(tensor.numpy(), image) and (tensor.permute(1, 2, 0).numpy() == image).all()


def test_memory_moves_and_rebuilds() -> None:
    memory = SupportMemory(prototypes=rand(2, 1, 2, 4))
    moved = memory.to(torch.float64)
    assert isinstance(moved, Memory) and moved.tokens is None
    assert moved.prototypes.dtype == torch.float64 and memory.prototypes.dtype == torch.float32
    assert list(memory.tensors()) == ["prototypes"] and memory.batch_size == 2


def test_methods_that_know_masks_alone_say_so() -> None:
    method = Everything(Resize(16))
    for kind in ({"points": [(1, 1)]}, {"box": (1, 1, 4, 4)}, {"scribble": [(1, 1), (3, 3)]}):
        with pytest.raises(ValueError, match=r"dog\.png: Everything learns from masks alone; give a mask"):
            method.remember([Reference(white(), name="dog.png", **kind)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Everything has no use for what is not meant"):
        method.remember([Reference(white(), mask=mask_of(1), negative=True)])
    refuses("Everything draws no masks", method.draw_mask, Reference(white(), points=[(1, 1)]))
    with pytest.raises(ValueError, match="Everything takes no clicks"):
        method.refine(method.remember([Reference(white(), mask=mask_of(1))]), white(), [(1, 1)])
