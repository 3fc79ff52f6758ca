"""SAM redraws what another method found: the contract, the prompts, and when SAM is not believed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fsdino.base.storage import fingerprint, load, save
from fsdino.export.command import export
from fsdino.methods import refined
from fsdino.methods.prototype import PrototypeMethod
from fsdino.methods.refined import RefinedMethod, largest_parts
from fsdino.predict import EngineChoice
from fsdino.teachers.architecture import build_sam
from fsdino.teachers.sam import SamTeacher, save_sam
from tests.contract import FewShotContract
from tests.small import METHOD_ARGS, SAM, references, refuses, scene, small_encoder


def small(seed: int = 0, agreement: float = 0.0, **kwargs: Any) -> RefinedMethod:
    """A prototype at 56 pixels before a SAM at 32, whose grid of masks has 32 cells a side."""
    coarse = PrototypeMethod(small_encoder(56, (3,)), 3, 0.0, **kwargs)
    return RefinedMethod(coarse, SamTeacher(build_sam(SAM, seed=seed), SAM), agreement=agreement)


class TestRefined(FewShotContract):
    bfloat16_weights = False  # segment-anything's prompt encoder multiplies float32 coordinates

    def build(self) -> RefinedMethod:
        return small()


class TestRefinedOfPaddedSquares(TestRefined):
    def build(self) -> RefinedMethod:
        return small(agreement=0.2, resize_mode="pad")


def test_the_largest_parts_come_first() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :2, :2], masks[0, 4:8, 4:8], masks[0, 0, 7] = True, True, True
    masks[2, 3, 3] = True
    rows, parts = largest_parts(masks, 2)
    assert rows.tolist() == [0, 0, 2] and parts.sum((1, 2)).tolist() == [16, 4, 1]
    assert [tuple(part.shape) for part in largest_parts(masks[1:2], 2)] == [(0,), (0, 8, 8)]


def coarse_answer(monkeypatch: pytest.MonkeyPatch, method: RefinedMethod, logits: Tensor) -> None:
    """Let the coarse method answer these logits (s, s)."""
    plain = method.coarse.decode_encoded

    def answer(memory: Any, encoded: Any) -> Any:
        found = plain(memory, encoded)
        found.mask_logits = logits.expand(len(found.iou_pred), 1, *logits.shape)
        return found

    monkeypatch.setattr(method.coarse, "decode_encoded", answer)


@pytest.fixture
def two_parts() -> Tensor:
    """Logits on the masks' own grid: a large part with a peak, a small part, background."""
    logits = torch.full((32, 32), -3.0)
    logits[4:12, 8:20], logits[6, 10], logits[20:22, 2:4] = 1.0, 4.0, 2.0
    return logits


def test_each_part_prompts_with_its_peak_its_box_and_its_map(
    monkeypatch: pytest.MonkeyPatch, two_parts: Tensor
) -> None:
    method, seen = small(), {}

    def decode(sam: Any, embedding: Tensor, image: Tensor, **prompts: Tensor) -> tuple[Tensor, Tensor]:
        seen.update(prompts, image=image)
        return torch.full((len(image), 4, 32, 32), -5.0), torch.zeros(len(image), 4)

    monkeypatch.setattr(refined, "decode_prompts", decode)
    coarse_answer(monkeypatch, method, two_parts)
    method.segment(method.remember(references()), scene()[0])
    # A cell is one pixel of SAM's input here.
    assert seen["points"].tolist() == [[[10.0, 6.0]], [[2.0, 20.0]]] and seen["labels"].tolist() == [[1], [1]]
    assert seen["boxes"].tolist() == [[7.5, 3.5, 19.5, 11.5], [1.5, 19.5, 3.5, 21.5]]
    assert seen["masks"].shape == (2, 1, 32, 32) and seen["masks"].amax((1, 2, 3)).tolist() == [10.0, 10.0]
    assert (seen["masks"][0, 0] > 0).sum() == 8 * 12 and seen["masks"].min() == -10


@pytest.mark.parametrize(("agreement", "kept"), [(0.6, False), (0.8, True)])
def test_sam_is_believed_where_it_agrees(
    monkeypatch: pytest.MonkeyPatch, two_parts: Tensor, agreement: float, kept: bool
) -> None:
    method = small(agreement=agreement)

    def decode(sam: Any, embedding: Tensor, image: Tensor, **prompts: Tensor) -> tuple[Tensor, Tensor]:
        masks = torch.full((len(image), 4, 32, 32), -5.0)
        masks[0, 2, 4:10, 8:20] = 5.0  # three quarters of the first part, in SAM's third mask
        masks[1, 0, 20:22, 2:4] = 5.0
        return masks, torch.zeros(len(image), 4)

    monkeypatch.setattr(refined, "decode_prompts", decode)
    coarse_answer(monkeypatch, method, two_parts)
    images = torch.rand(1, 3, 56, 56)
    memory = method.remember(references())
    found = method.decode_query(memory, images).mask_logits[0, 0] > 0
    expected = two_parts > 0
    expected[10:12, 8:20] = kept
    assert torch.equal(found, expected)


def test_parts_beyond_the_limit_and_empty_masks_stay(monkeypatch: pytest.MonkeyPatch, two_parts: Tensor) -> None:
    method = small()
    method.parts = 1
    monkeypatch.setattr(method, "_redraw", lambda coarse, parts, embedding, rows: torch.full_like(coarse, -7.0))
    coarse_answer(monkeypatch, method, two_parts)
    memory, image = method.remember(references()), torch.rand(1, 3, 56, 56)
    found = method.decode_query(memory, image).mask_logits[0, 0]
    assert torch.equal(found > 0, (two_parts > 0) & (torch.arange(32) < 8)), "the small part alone"
    coarse_answer(monkeypatch, method, two_parts - 9)
    assert torch.equal(method.decode_query(memory, image).mask_logits[0, 0], two_parts - 9)


def test_the_coarse_threshold_decides_what_is_a_part(monkeypatch: pytest.MonkeyPatch, two_parts: Tensor) -> None:
    method = small(agreement=1.1)  # never believed
    coarse_answer(monkeypatch, method, two_parts)
    memory, image = method.remember(references()), torch.rand(1, 3, 56, 56)
    for threshold in (0.5, 0.8, 0.04):
        method.coarse.threshold = threshold
        found = method.decode_query(memory, image).mask_logits[0, 0].sigmoid() > method.threshold
        assert torch.equal(found, two_parts.sigmoid() > threshold)


def test_sam_sees_an_image_once_whatever_the_classes() -> None:
    method, passes = small(), []
    method.sam.image_encoder.register_forward_hook(lambda *_: passes.append(1))
    classes = {str(k): method.remember(references(1, seed=k)) for k in range(5)}
    assert method.segment(classes, scene()[0]).labels.shape == scene()[1].shape and passes == [1]


def test_the_fingerprint_covers_both_and_both_are_saved(tmp_path: Path) -> None:
    method, other = small(), small(seed=1)
    assert fingerprint(method) != fingerprint(other) and fingerprint(method) != fingerprint(method.coarse)
    refuses("does not know how it was built", save, method, tmp_path)
    sams = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    for seed, path in enumerate(sams):
        save_sam(build_sam(SAM, seed=seed), SAM, path)
    coarse = {k: v for k, v in METHOD_ARGS["refined"]["coarse"].items()}
    built = RefinedMethod.build(coarse, checkpoint=sams[0], coarse_threshold=0.3)
    again = load(save(built, tmp_path / "model"))
    assert again.coarse.threshold == 0.3 and fingerprint(again) == fingerprint(built)
    memory = built.remember(references(2))
    np.testing.assert_array_equal(again.segment(memory, scene()[0]).probs, built.segment(memory, scene()[0]).probs)
    refuses("refined by SAM, which has no graphs", export, str(tmp_path / "model"), str(tmp_path / "out"))


def test_any_model_is_opened_with_a_sam(tmp_path: Path) -> None:
    save_sam(build_sam(SAM, seed=0), SAM, tmp_path / "sam.safetensors")
    engine = EngineChoice("tiny", sam=str(tmp_path / "sam.safetensors")).open()
    alone = EngineChoice("tiny").open()
    memory = engine.remember(references(2))
    found = next(engine.find(engine.join([memory]), scene()[0]))
    before = next(alone.find(alone.join([memory]), scene()[0]))
    assert found.score == before.score and found.presence == before.presence
    assert engine.fingerprint() != alone.fingerprint()
    refuses("redrawn by SAM in torch alone, not in onnx", EngineChoice("x", "onnx", sam="vit_b").open)
    refuses("teacher file none.pth does not exist", EngineChoice("tiny", sam="none.pth").open, kind=FileNotFoundError)
