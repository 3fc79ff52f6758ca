"""What goes in and out of a network: images as tensors, what is kept of references, what is answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

MemoryT = TypeVar("MemoryT", bound="Memory")
# A text in place of a number stands for any length, the same wherever it stands.
Shape = tuple[int | str, ...]


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
    """Base of what a method keeps of the references: a dataclass whose tensors have a leading batch dimension B.

    Args:
        made_by: fingerprint of the model that remembered it; empty where that is not known.

    Attributes:
        growing: tensor's name to its axis that grows with the references; there, positions of zeros change nothing.
    """

    growing: ClassVar[Mapping[str, int]] = {}
    made_by: str = field(default="", kw_only=True)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by field name, without the absent ones; they rebuild the memory."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def to(self: MemoryT, *args: Any, **kwargs: Any) -> MemoryT:
        """A copy on another device or in another dtype; takes what `torch.Tensor.to` takes."""
        moved: dict[str, Any] = {name: tensor.to(*args, **kwargs) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    @property
    def batch_size(self) -> int:
        """Number B of episodes held."""
        return next(iter(self.tensors().values())).shape[0]


def check_memory(memory: Any, kind: type[Memory], model: str) -> None:
    """Check that a memory is of the method's kind, and not one that another model remembered.

    Raises:
        ValueError: if it is.
    """
    if isinstance(memory, Memory) and not isinstance(memory, kind):
        raise ValueError(
            f"this memory is of another method ({type(memory).__name__}, expected {kind.__name__}); remember the class "
            "again with this model."
        )
    if not isinstance(memory, kind):
        raise ValueError(
            f"expected a memory first, as remember() returns it, got {type(memory).__name__}; for several classes give "
            "{'cat': memory, 'dog': memory}."
        )
    if memory.made_by not in ("", model):
        raise ValueError(
            f"this memory was remembered by model {memory.made_by}, this is model {model}, whose features differ; "
            "remember the class again with this model."
        )


def _checked(arrays: Any) -> Mapping[str, np.ndarray]:
    """A packed memory, once it is known to be NumPy arrays of numbers by name; a ValueError otherwise."""
    if not isinstance(arrays, Mapping):
        raise ValueError(f"unpack() expected NumPy arrays by name, as pack() gives them, got {type(arrays).__name__}.")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise ValueError(f"unpack() expected NumPy arrays, got {type(array).__name__} as {name!r}.")
    return arrays


def memory_of(kind: type[MemoryT], arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Shape]) -> MemoryT:
    """A memory of arrays by the names of its fields, on the CPU; other names are left out.

    Args:
        shapes: name to shape; arrays that it does not name may be of any.

    Raises:
        ValueError: if one is missing, of another shape, or holds NaN or infinity.
    """
    tensors = {name: torch.from_numpy(array) for name, array in _checked(arrays).items()}
    known = {one.name: one for one in fields(kind) if one.name != "made_by"}
    kept, lengths = {name: tensor for name, tensor in tensors.items() if name in known}, dict[str, int]()
    for name, one in known.items():
        if name not in kept and one.default is MISSING:
            raise ValueError(f"the memory has no {name!r}: another kind of model made it; remember the class again.")
    for name, tensor in kept.items():
        wanted = shapes.get(name, tuple(f"{name} {axis}" for axis in range(tensor.ndim)))
        fits = tensor.ndim == len(wanted)
        for length, want in zip(tensor.shape, wanted):
            fits &= length == (lengths.setdefault(want, length) if isinstance(want, str) else want)
        if not fits:
            shown = ", ".join(str(want) for want in wanted)
            raise ValueError(
                f"the memory's {name!r} has shape {tuple(tensor.shape)}, this model's are ({shown}); remember the "
                "class again with this model."
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"the memory's {name!r} holds NaN or infinity; remember the class again.")
    found: dict[str, Any] = {**kept}
    return kind(**found)


def every_pair(memory: Any, encoded: Any) -> tuple[Any, Any]:
    """A memory of batch N, and a tensor or a tuple of them for B images, as B * N rows each, image by image."""
    parts = encoded if isinstance(encoded, tuple) else (encoded,)
    images, classes = parts[0].shape[0], memory.batch_size
    # Every pair of image and class is a row; what is costly ran before, once per image.
    each = tuple(x[:, None].expand(-1, classes, *x.shape[1:]).flatten(0, 1) for x in parts)
    tensors = memory.tensors().items()
    tiled = replace(memory, **{name: x[None].expand(images, *x.shape).flatten(0, 1) for name, x in tensors})
    return tiled, like_tuple(encoded, each) if isinstance(encoded, tuple) else each[0]


def like_tuple(given: tuple[Any, ...], parts: Iterable[Any]) -> tuple[Any, ...]:
    """Other parts as a tuple of the given one's kind; a named one takes them one by one."""
    return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)


def image_tensor(image: np.ndarray) -> Tensor:
    """An image of `image_array` as (3, H, W) float32 in [0, 1]."""
    # Of arrays that may not be written to, for instance of Pillow's images, torch wants a copy and warns.
    tensor = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    return tensor if tensor.is_floating_point() else tensor.float() / 255.0
