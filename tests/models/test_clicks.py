"""Points, boxes and scribbles: SAM's prompted half, references of every kind in one memory, corrections."""

import math

import numpy as np
import pytest
import torch
from segment_anything.modeling import MaskDecoder as SamDecoder
from segment_anything.modeling import PromptEncoder, TwoWayTransformer

from fsdino.base.reference import Reference
from fsdino.models import clicks
from fsdino.models.clicks import CLICK_LOGIT, click_logits
from fsdino.models.memory import SupportMemory, grid_weights
from fsdino.models.segmenter import FewShotSegmenter
from tests.contract import sketch
from tests.small import randn, refuses, small_segmenter


@pytest.fixture(scope="module")
def model() -> FewShotSegmenter:
    return small_segmenter(variant="full", promptable=True)


def sam_parts() -> dict[str, torch.nn.Module]:
    """A small SAM's prompted half, of the small segmenter's sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = PromptEncoder(32, (8, 8), (56, 56), 8)
        transformer = TwoWayTransformer(2, 32, 2, 32)
        decoder = SamDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=16)
    return {"prompt_encoder": encoder, "mask_decoder": decoder}


def sam_state() -> dict[str, torch.Tensor]:
    return {f"{part}.{key}": value for part, net in sam_parts().items() for key, value in net.state_dict().items()}


@pytest.mark.parametrize("kind", ["points", "box", "both", "mask"])
@torch.no_grad()
def test_prompter_equals_segment_anything(kind: str) -> None:
    model, (encoder, decoder) = small_segmenter(promptable=True), sam_parts().values()
    model.load_sam_(sam_state())
    embedding, previous = randn(1, 32, 8, 8), randn(1, 1, 32, 32, seed=1)
    points, labels = torch.tensor([[[10.0, 20.0], [40.0, 5.0]]]), torch.tensor([[1, 0]])
    corners = torch.tensor([[[5.0, 6.0], [30.0, 44.0]]])
    given_points = (points, labels) if kind != "box" else None
    box = corners.reshape(1, 4) if kind in ("box", "both") else None
    sparse, dense = encoder(points=given_points, boxes=box, masks=previous if kind == "mask" else None)
    masks, ious = decoder.predict_masks(embedding, encoder.get_dense_pe(), sparse, dense)
    parts = [(points, labels)] if kind != "box" else []
    parts += [(corners, torch.tensor([[2, 3]]))] if box is not None else []
    given, marks = (torch.cat(tensors, dim=1) for tensors in zip(*parts))
    assert model.sam is not None
    out = model.sam(embedding, given, marks, previous if kind == "mask" else None)
    torch.testing.assert_close(out.mask_logits, masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.iou_pred, ious, atol=1e-4, rtol=1e-4)


def references() -> list[Reference]:
    """One of every kind, of different sizes, one of them of what is not meant."""
    pairs = [sketch(48, 80, 0), sketch(60, 40, 1), sketch(56, 56, 2), sketch(50, 70, 3), sketch(40, 40, 4)]
    (a, mask), (b, _), (c, _), (d, other), (e, stroke) = pairs
    return [
        Reference(a, mask=mask),
        Reference(b, points=[(14, 20), (2, 2)], labels=[1, 0]),
        Reference(c, box=(18, 14, 30, 28)),
        Reference(d, mask=other, negative=True),
        Reference(e, scribble=stroke * (np.arange(40) == 16)),
    ]


def same_prediction(model: FewShotSegmenter, a: SupportMemory, b: SupportMemory) -> None:
    query = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        left, right = model.decode_query(a, query), model.decode_query(b, query)
    for one, other in zip(vars(left).values(), vars(right).values()):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_kinds_mix_freely_in_any_order(model: FewShotSegmenter) -> None:
    kinds = references()
    memory = model.remember(kinds)
    assert memory.fg is not None and memory.fg.shape == (1, 5 * 64)
    same_prediction(model, memory, model.remember(kinds[::-1]))
    for one in (kinds[1], kinds[2]):
        same_prediction(model, model.remember([one]), model.remember([one] * 3))
    same_prediction(model, memory, model.remember(kinds * 2))


def test_a_mask_wins_over_points(model: FewShotSegmenter) -> None:
    image, mask = sketch(48, 80, 0)
    both = model.remember([Reference(image, mask=mask, points=[(1, 1)])])
    assert torch.equal(both.tensors()["prototypes"], model.remember([Reference(image, mask=mask)]).prototypes)


def test_every_kind_says_something_else(model: FewShotSegmenter) -> None:
    image, _ = sketch(48, 80, 0)
    kinds = [{"points": [(30, 20)]}, {"points": [(30, 20), (5, 5)], "labels": [1, 0]}, {"box": (20, 10, 50, 30)}]
    memories = [model.remember([Reference(image, **kind)]) for kind in kinds]  # type: ignore[arg-type]
    for a in range(3):
        for b in range(a):
            assert not torch.allclose(memories[a].fg, memories[b].fg, atol=1e-6, rtol=0)


def test_what_is_drawn_ends_at_0_wherever_the_segmenter_ends(model: FewShotSegmenter, monkeypatch) -> None:
    points, labels = torch.tensor([[[10.0, 20.0]]]), torch.tensor([[1]])
    with torch.no_grad():
        feats = model.encoder(torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(5)))
        plain = clicks.draw(model, feats, points, labels)
        monkeypatch.setattr(model, "threshold", 0.25)  # masks end at the logit -log(3) then, and SAM's half at 0
        torch.testing.assert_close(clicks.draw(model, feats, points, labels), plain + 0.5 * math.log(3))


def test_negative_references_are_background_and_nothing_else() -> None:
    masks = torch.zeros(1, 3, 8, 8)
    masks[:, 0, :4], masks[:, 1, :, :4], masks[:, 2, 0] = 1.0, 1.0, 1.0
    fg, bg = grid_weights(masks, (8, 8), torch.tensor([[False, True, False]]))
    fg, bg = fg.reshape(3, 8, 8), bg.reshape(3, 8, 8)
    assert torch.equal(fg[0], masks[0, 0]) and not fg[1].any()
    assert bool((bg[1, :, :4] == 1).all()) and not bg[1, :, 4:].any()  # the rest of that image is not known
    torch.testing.assert_close(bg[1].sum(), bg[0].sum() + bg[2].sum())  # and weighs as all other background does
    assert torch.equal(grid_weights(masks, (8, 8), torch.zeros(1, 3, dtype=torch.bool))[1], 1 - masks.flatten(1))
    assert float(grid_weights(masks[:, 1:], (8, 8), torch.tensor([[True, False]]))[1].max()) == 1.0


def test_several_classes_at_once_equal_single_calls(model: FewShotSegmenter) -> None:
    kinds, (query, _) = references(), sketch(45, 91, 9)
    memories = {"a": model.remember(kinds[:1]), "b": model.remember(kinds[1:3]), "c": model.remember(kinds)}
    found = model.segment(memories, query)
    classes = found.classes
    assert list(classes) == ["a", "b", "c"] and found.labels.shape == (45, 91)
    probs = np.full((4, 45, 91), model.threshold)
    for k, (name, memory) in enumerate(memories.items(), start=1):
        alone, mask = model.segment(memory, query), classes[name].mask
        assert np.array_equal(mask, found.labels == k)
        np.testing.assert_allclose(classes[name].probs, np.where(mask, alone.probs, 0), atol=1e-4)
        assert classes[name].score == pytest.approx(alone.score, abs=1e-4)
        assert classes[name].presence == pytest.approx(alone.presence, abs=1e-4)
        probs[k] = alone.probs
    assert (probs.argmax(0) == found.labels).mean() > 0.999  # a tie may fall either way


def test_clicks_correct_a_result(model: FewShotSegmenter) -> None:
    kinds, (query, _) = references(), sketch(45, 91, 9)
    memory = model.remember(kinds[:1])
    on, off = model.refine(memory, query, [(70, 30)]), model.refine(memory, query, [(70, 30)], [0])
    plain = model.segment(memory, query)
    assert on.mask.shape == (45, 91) and on.present and on.presence > 0.999
    assert float(on.probs[30, 70]) > float(plain.probs[30, 70]) > float(off.probs[30, 70])
    assert off.presence == pytest.approx(plain.presence, abs=1e-6)


def test_click_is_heard_near_and_where_it_looks_alike() -> None:
    tokens = torch.nn.functional.one_hot(torch.arange(16) % 2, 2).float()[None]  # columns of two kinds, on a 4 x 4 grid
    said = click_logits(tokens, torch.tensor([[[1.5, 1.5]]]), torch.tensor([[1]]), (4, 4), 16)[0, 0]
    assert float(said[0, 0]) == pytest.approx(CLICK_LOGIT, rel=0.05)
    assert float(said[0, 1]) < 0.01 * float(said[0, 0]) and float(said[3, 0]) < 0.01 * float(said[0, 0])
    points, labels = torch.tensor([[[1.5, 1.5], [9.0, 9.0]]]), torch.tensor([[0, -1]])
    torch.testing.assert_close(click_logits(tokens, points, labels, (4, 4), 16)[0, 0], -said)


def test_the_prompted_half_is_frozen_and_changes_nothing_else() -> None:
    plain, model = small_segmenter(variant="full"), small_segmenter(variant="full", promptable=True)
    shared, more = plain.state_dict(), model.state_dict()
    assert {name for name in more if name not in shared} == {name for name in more if name.startswith("sam.")}
    assert all(torch.equal(shared[name], more[name]) for name in shared)  # made last: the other weights stay
    for stage in ("distill", "episodes"):
        model.select_trainable_(stage)  # type: ignore[arg-type]
        assert model.sam is not None and not any(p.requires_grad for p in model.sam.parameters())
    kept = {name: tensor.clone() for name, tensor in more.items() if not name.startswith("sam.")}
    model.load_prompter_(sam_state())
    now = model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in kept.items())
    assert torch.equal(now["sam.mask_decoder.iou_token.weight"], sam_state()["mask_decoder.iou_token.weight"])
    assert plain.load_prompter_({}) is plain


def test_errors_say_what_to_do(model: FewShotSegmenter) -> None:
    (image, mask), plain = sketch(48, 80, 0), small_segmenter()
    with pytest.raises(ValueError, match="answers to masks alone; build it with promptable: true"):
        plain.remember([Reference(image, points=[(3, 3)])])
    memory = plain.remember([Reference(image, mask=mask)])
    refuses("promptable: true", plain.refine, memory, image, [(3, 3)])
    with pytest.raises(ValueError, match="negative references alone; give at least one that shows the object"):
        model.remember([Reference(image, mask=mask, negative=True)])
    with pytest.raises(ValueError, match=r"position \(90, 3\) is outside the image"):
        model.refine(model.remember([Reference(image, mask=mask)]), image, [(90, 3)])
