"""SANSA and SAM2's parts against the `sam2` package with the same weights, to 1e-4 of the logits' scale."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fsdino.methods.fssam.method import Fssam
from fsdino.methods.sam2.net import Sam2
from fsdino.methods.sam2.sizes import SIZES, HieraSize, sam2_config
from fsdino.methods.sansa.adapters import AdaptedMlp
from fsdino.methods.sansa.method import Sansa, _joined
from tests.contract import episodes
from tests.methods import official
from tests.small import small_encoder

SIDE = 128


def slim(size: str) -> HieraSize:
    """The blocks, windows and global blocks of a size, a sixth as wide, with prompts as wide as the package wants."""
    return replace(SIZES[size], embed_dim=16, memory_layers=2, memory_mlp_dim=64, dropout=0.0)


def strong(size: str, version: Any = "2.0") -> Sam2:
    """Random weights, all of them large enough for a wrong input to show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam2 = Sam2(sam2_config(slim(size), SIDE, version))
        for name, parameter in sam2.named_parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            offset = 1.0 if parameter.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean=offset, std=spread)
        sam2.net.shared_image_embedding.positional_embedding.copy_(
            sam2.net.prompt_encoder.shared_embedding.positional_embedding
        )
    return sam2.eval()


def adapters_of(method: Sansa) -> dict[int, dict[str, Tensor]]:
    """Weights of every adapter, made large."""
    found = {}
    generator = torch.Generator().manual_seed(5)
    for number, block in enumerate(method.sam2.net.vision_encoder.backbone.blocks):
        if isinstance(block.mlp, AdaptedMlp):
            for parameter in block.mlp.adapter.parameters():
                parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            found[number] = {name: value.clone() for name, value in block.mlp.adapter.state_dict().items()}
    return found


def pair(size: str) -> tuple[Sansa, Any]:
    """SANSA with published memory, and the package's model with the same weights and adapters."""
    sam2 = strong(size)
    model = official.official(sam2, slim(size), scored=False)
    method = Sansa(sam2, memory_order="video").eval()
    official.put_in_adapters(model, adapters_of(method))
    return method, model


def close(got: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 0.05 and float((got - expected).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize(("size", "shots"), [("tiny", (1, 2, 5, 9)), ("base_plus", (1, 9))])
@torch.no_grad()
def test_sansa_with_masks(size: str, shots: tuple[int, ...]) -> None:
    method, model = pair(size)
    query, images, masks = episodes(method, 1, max(shots))
    for num in shots:
        references = [(images[:, k], {"mask": masks[:, k : k + 1]}) for k in range(num)]
        expected, ious = official.sansa(model, references, query)
        got = method(query, images[:, :num], masks[:, :num])
        close(got.mask_logits, expected)
        torch.testing.assert_close(got.iou_pred[0, 0], ious.max(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", ["tiny", "base_plus"])
@torch.no_grad()
def test_sansa_with_points_boxes_and_scribbles(size: str) -> None:
    method, model = pair(size)
    query, images, _ = episodes(method, 1, 4)
    generator = torch.Generator().manual_seed(2)
    stroke = SIDE * torch.rand(1, 40, 2, generator=generator)
    said = [
        (torch.tensor([[[40.0, 60.0]]]), torch.ones(1, 1, dtype=torch.long)),
        (torch.tensor([[[20.0, 30.0], [90.0, 100.0]]]), torch.tensor([[2, 3]])),
        (stroke, torch.ones(1, 40, dtype=torch.long)),
        (torch.tensor([[[10.0, 20.0], [70.0, 30.0], [99.0, 9.0]]]), torch.tensor([[1, 0, 1]])),
    ]
    for picked in ([0], [1], [2], [3], [0, 1, 2, 3]):
        references = [(images[:, k], {"points": said[k][0], "labels": said[k][1].int()}) for k in picked]
        expected, _ = official.sansa(model, references, query)
        memories = [
            method.encode_support_points(images[:, k : k + 1], said[k][0][:, None], said[k][1][:, None]) for k in picked
        ]
        close(method.decode_query(_joined(memories), query).mask_logits, expected)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@torch.no_grad()
def test_parts_of_a_scored_sam2(version: str) -> None:
    """Answers, pointers and memory of frames with and without an object, as the package's builders make them."""
    sam2 = strong("tiny", version)
    generator, seen = torch.Generator().manual_seed(1), set()
    for bias in (-1.5, 0.0, 1.5):
        sam2.net.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(bias)
        model = official.official(sam2, slim("tiny"), scored=True, stable=True)
        image, mask = torch.rand(1, 3, SIDE, SIDE, generator=generator), torch.zeros(1, 1, SIDE, SIDE)
        mask[..., 30:70, 20:90] = float(bias != 0.0)
        frame, found = sam2.encode(image), official.features(model, image)
        close(frame.embedding, official.coarse(found))
        where, labels = torch.tensor([[[40.0, 60.0]]]), torch.ones(1, 1, dtype=torch.long)
        prompt = {"point_coords": where, "point_labels": labels.int()}
        for multimask in (False, True):
            heads = model._forward_sam_heads(official.coarse(found), prompt, None, official.fine(found), multimask)
            ours = sam2.where_present(sam2.decode(frame, frame.embedding, where, labels, multimask=multimask).best())
            close(ours.mask_logits, heads[3])
            close(ours.pointers[:, 0], heads[5])
            close(ours.object_logits, heads[6])
            memory, _ = model._encode_new_memory(found[0], found[2], heads[4], heads[6], False)
            got = sam2.encode_memory(frame, sam2.to_input_size(ours.mask_logits), ours.object_logits > 0)
            close(got, memory.flatten(2).transpose(1, 2))
            seen.add(bool(ours.object_logits[0, 0] > 0))
        _, _, _, _, full, pointer, score = model._use_mask_as_output(official.coarse(found), official.fine(found), mask)
        memory, _ = model._encode_new_memory(found[0], found[2], full, score, False)
        close(sam2.given_memory(frame, mask), memory.flatten(2).transpose(1, 2))
        close(sam2.given_pointer(frame, mask), pointer)
    assert seen == {True, False}  # both cases took part


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@torch.no_grad()
def test_fssam(version: str) -> None:
    """One reference, three with the first mask or with all, and an image in which SAM2 sees no object."""
    sam2, encoder = strong("small", version), small_encoder(140)
    generator = torch.Generator().manual_seed(3)
    for parameter in encoder.backbone.parameters():  # norms with weights of their own
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    def tokens(image: Tensor) -> Tensor:
        square = (official.sized(image, 140) - encoder.mean) / encoder.std
        return encoder.backbone.forward_features(square)[0, 1:]

    for bias, shots, calibration in ((9.0, 1, "first"), (9.0, 3, "first"), (9.0, 3, "all"), (-9.0, 1, "first")):
        sam2.net.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(bias)
        model = official.official(sam2, slim("small"), scored=True, stable=True)
        method = Fssam(sam2, encoder, calibration=calibration).eval()  # type: ignore[arg-type]
        query, images, masks = episodes(method, 1, shots)
        references = [(images[:, k], masks[:, k : k + 1]) for k in range(shots)]
        expected, score = official.fssam(model, tokens, references, query, calibration == "first")
        got = method(query, images, masks)
        close(got.mask_logits, expected)
        close(got.presence_logit, score)
