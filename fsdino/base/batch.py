"""Several images of a method in one pass of its encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
            yield method._segmentation(output, i, size[:2])


def one_of(encoded: Any, index: int) -> Any:
    """One element, as a batch of 1, of what `encode_query` gives: a tensor with a leading batch, or a tuple of such."""
    if isinstance(encoded, Tensor):
        return encoded[index : index + 1]
    parts = [one_of(part, index) for part in encoded]
    return type(encoded)(*parts) if hasattr(encoded, "_fields") else tuple(parts)  # a named tuple takes them one by one
