"""What goes in and out of a network: images as tensors, what is kept of references, what is answered."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

MemoryT = TypeVar("MemoryT", bound="Memory")


@dataclass
class SegmenterOutput:
    """What `decode_query` returns.

    Args:
        mask_logits: (B, 1, s, s) float, on any square grid.
        iou_pred: (B, 1) float, predicted IoU of the mask.
        presence_logit: (B, 1) float, above 0 where the object is in the image.
    """

    mask_logits: Tensor
    iou_pred: Tensor
    presence_logit: Tensor


@dataclass
class Memory:
    """Base of what a method keeps of the references: a dataclass whose tensors have a leading batch dimension B."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by field name, without the absent ones; they rebuild the memory."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def to(self: MemoryT, *args: Any, **kwargs: Any) -> MemoryT:
        """A copy on another device or in another dtype; takes what `torch.Tensor.to` takes."""
        return replace(self, **{name: tensor.to(*args, **kwargs) for name, tensor in self.tensors().items()})

    @property
    def batch_size(self) -> int:
        """Number B of episodes held."""
        return next(iter(self.tensors().values())).shape[0]


def image_tensor(image: np.ndarray) -> Tensor:
    """An image of `image_array` as (3, H, W) float32 in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return tensor if tensor.is_floating_point() else tensor.float() / 255.0


def one_of(encoded: Any, index: int) -> Any:
    """One element, as a batch of 1, of what `encode_query` gives: a tensor with a leading batch, or a tuple of such."""
    if isinstance(encoded, Tensor):
        return encoded[index : index + 1]
    return type(encoded)(one_of(part, index) for part in encoded)
