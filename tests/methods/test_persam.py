"""PerSAM-like baseline: contract, and the clicks lie where the prototype says."""

from typing import Any

import pytest
import torch

from fsdino.methods.persam import PersamMethod
from fsdino.teachers.architecture import build_sam
from tests.contract import FewShotContract, episodes
from tests.small import SAM


def small(**kwargs: Any) -> PersamMethod:
    return PersamMethod(build_sam(SAM, seed=0), **kwargs).eval()


class TestPersam(FewShotContract):
    bfloat16_weights = False  # segment-anything's prompt encoder multiplies float32 coordinates

    def build(self) -> PersamMethod:
        return small()


class TestPersamWithPositiveClickAlone(TestPersam):
    def build(self) -> PersamMethod:
        return small(dense=False, negative=False, refinements=0, resize_mode="pad")


def test_clicks_are_the_most_and_least_similar_places() -> None:
    method = small()
    similarity = torch.zeros(2, 1, 8, 8)
    similarity[0, 0, 2, 5], similarity[0, 0, 7, 0], similarity[1, 0, 0, 1], similarity[1, 0, 3, 3] = 1, -1, 2, -2
    points, labels = method._clicks(similarity)
    # cells are 4 pixels wide: their middle lies between the second and the third pixel's centre
    assert points.tolist() == [[[21.5, 9.5], [1.5, 29.5]], [[5.5, 1.5], [13.5, 13.5]]]
    assert labels.tolist() == [[1, 0], [1, 0]]


def test_every_option_matters() -> None:
    inputs = episodes(small(), 1, 1)
    reference = small()(*inputs).mask_logits
    options: list[dict[str, Any]] = [{"dense": False}, {"negative": False}, {"refinements": 0}]
    for option in options:
        assert not torch.allclose(small(**option)(*inputs).mask_logits, reference, atol=1e-6), option


def test_masks_are_those_of_segment_anything() -> None:
    """A batch through the image-in-the-prompt way equals segment-anything's own decoder, image by image."""
    method = small(dense=False, refinements=0)
    query, images, masks = episodes(method, 2, 1)
    found = method(query, images, masks)
    sam = method.sam
    for b in range(2):
        memory = method.encode_support(images[b : b + 1], masks[b : b + 1])
        features = method._embed(query[b : b + 1])
        points, labels = method._clicks(method.similarity(memory, features))
        sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
        logits, ious = sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
        assert float(found.iou_pred[b]) == pytest.approx(float(ious.max()), abs=1e-5)
        torch.testing.assert_close(found.mask_logits[b, 0], logits[0, ious[0].argmax()], atol=1e-5, rtol=1e-4)
