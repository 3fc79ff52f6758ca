"""From a method's outputs to results at the images' own sizes; several images in one pass of its encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsdino.base.gate import MinPresence, checked_presence, gated, least_presences
from fsdino.base.memory import SegmenterOutput, like_tuple
from fsdino.base.reference import image_array
from fsdino.base.result import GPU_BATCH, Segmentation


def images_that_pay(method: Any) -> int:
    """Images of a pass that pay on a method's device."""
    return 1 if method.device.type == "cpu" else GPU_BATCH


@torch.no_grad()
def found_in(method: Any, joined: Sequence[Any], images: Sequence[np.ndarray]) -> list[Iterator[Segmentation]]:
    """What a method finds in images (H, W, 3) uint8 of any sizes, each image's classes when they are asked for."""
    arrays = [image_array(image, "image") for image in images]
    # The encoder is nine tenths of the time, so it runs once for all classes.
    encoded = method.encode_query(torch.stack([method._square(array) for array in arrays]))
    return [_decoded(method, joined, one_of(encoded, i), array.shape) for i, array in enumerate(arrays)]


@torch.no_grad()
def _decoded(method: Any, joined: Sequence[Any], encoded: Any, size: tuple[int, ...]) -> Iterator[Segmentation]:
    """Every class of `joined` in one encoded image."""
    for memory in joined:
        output = method.decode_encoded(memory, encoded)
        for i in range(len(output.iou_pred)):
            yield segmentation(method, output, i, size)


def segmentation(method: Any, output: SegmenterOutput, index: int, size: tuple[int, ...]) -> Segmentation:
    """One element of an output as arrays at the size (H, W, ...) of its image, held back below a presence of a half."""
    # Logits are resized, not probabilities: they are nearly linear across an edge, which stays where it is.
    probs = method.resize.invert(output.mask_logits[index, 0].float(), (size[0], size[1])).sigmoid()
    logit = output.presence_logit[index, 0].float()
    present, score = bool(logit > 0), float(output.iou_pred[index, 0].float().clamp(0.0, 1.0))
    mask = ((probs > method.threshold) & present).cpu().numpy()
    return Segmentation(mask, probs.cpu().numpy(), score, present, presence=float(logit.sigmoid()))


def held_back(
    method: Any, names: Sequence[str | None], found: Iterable[Segmentation], image: np.ndarray, asked: MinPresence
) -> Iterator[Segmentation]:
    """Results of the classes of an image, without the masks of those that are judged absent; see `fsdino.base.gate`."""
    least = least_presences(method, method._mark(), names, [image], checked_presence(asked))
    return (gated(one, limit, method.threshold) for one, limit in zip(found, least))


def one_of(encoded: Any, index: int) -> Any:
    """One element, as a batch of 1, of what `encode_query` gives: a tensor with a leading batch, or a tuple of such."""
    if isinstance(encoded, Tensor):
        return encoded[index : index + 1]
    return like_tuple(encoded, (one_of(part, index) for part in encoded))
