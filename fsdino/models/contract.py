"""What every few-shot method of the package promises: remember references once, then segment pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fsdino.models.resize import Resize

Picture = Image.Image | np.ndarray | Tensor
MemoryT = TypeVar("MemoryT", bound="Memory")


@dataclass
class Reference:
    """One annotated picture of the object to find.

    Args:
        image: PIL picture, numpy (H, W, 3) uint8, or tensor (3, H, W) float in [0, 1].
        mask: Same height and width as the picture, anything but 0 is the object; PIL, numpy or tensor (H, W).
        name: What error messages call it, for instance the file's name.
    """

    image: Picture
    mask: Picture | None = None
    name: str = "reference"


@dataclass
class Segmentation:
    """What was found in one picture, at the picture's own size.

    Args:
        mask: (H, W) bool; all False where the object is absent.
        probs: (H, W) float in [0, 1].
        score: The method's own estimate of the mask's IoU, in [0, 1].
        present: Whether the object is in the picture at all.
    """

    mask: Tensor
    probs: Tensor
    score: float
    present: bool


@dataclass
class SegmenterOutput:
    """What `decode_query` returns.

    Args:
        mask_logits: (B, 1, s, s) float, on any square grid.
        iou_pred: (B, 1) float, predicted IoU of the mask.
        presence_logit: (B, 1) float, above 0 where the object is in the picture.
    """

    mask_logits: Tensor
    iou_pred: Tensor
    presence_logit: Tensor


@dataclass
class Memory:
    """Base of what a method keeps of the references: a dataclass whose tensors have a leading batch dimension B."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by field name, without the absent ones; with the other fields they rebuild the memory."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def to(self: MemoryT, *args: Any, **kwargs: Any) -> MemoryT:
        """A copy on another device or in another dtype; takes what `torch.Tensor.to` takes."""
        return replace(self, **{name: tensor.to(*args, **kwargs) for name, tensor in self.tensors().items()})

    @property
    def batch_size(self) -> int:
        """Number B of episodes held."""
        return next(iter(self.tensors().values())).shape[0]


class FewShotMethod(nn.Module, ABC):
    """A system that segments what a few references show.

    Subclasses implement `encode_support` (paid once per class) and `decode_query` (paid per picture); everything that
    users call is built on these two.

    Args:
        resize: The way to the network's square and back.
        threshold: Probability above which a pixel belongs to the object, in (0, 1); choose it on base classes only.
    """

    def __init__(self, resize: Resize, threshold: float = 0.5) -> None:
        super().__init__()
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"threshold {threshold} is not a probability; use a value above 0 and below 1.")
        self.resize = resize
        self.threshold = threshold

    @property
    def img_size(self) -> int:
        """Side of the network's square, in pixels."""
        return self.resize.size

    @property
    def device(self) -> torch.device:
        """Where the method's weights are."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @abstractmethod
    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> Any:
        """Turn references into a memory.

        Args:
            support_images: (B, K, 3, S, S) float in [0, 1].
            support_masks: (B, K, S, S) float in [0, 1].

        Returns:
            A `Memory` of batch B.
        """

    @abstractmethod
    def decode_query(self, memory: Any, query_image: Tensor) -> SegmenterOutput:
        """Segment pictures with a memory; a memory of batch 1 serves all of them.

        Args:
            memory: What `encode_support` returned, of batch B or 1.
            query_image: (B, 3, S, S) float in [0, 1].

        Returns:
            Mask logits, predicted IoU and presence.
        """

    def forward(self, query_image: Tensor, support_images: Tensor, support_masks: Tensor) -> SegmenterOutput:
        """One step over episodes: `decode_query(encode_support(support_images, support_masks), query_image)`."""
        return self.decode_query(self.encode_support(support_images, support_masks), query_image)

    @torch.no_grad()
    def remember(self, references: Sequence[Reference]) -> Any:
        """Turn annotated pictures of one class into a memory (batch 1), paid once.

        Args:
            references: At least one; sizes may differ.

        Returns:
            The memory for `segment`.

        Raises:
            ValueError: If there is no reference, or one has no mask, an empty mask or a mask of another size.
        """
        if len(references) == 0:
            raise ValueError("remember() got no reference; give at least one Reference(image, mask=mask).")
        pairs = [reference_tensors(reference) for reference in references]
        images = torch.stack([self.resize.image(image.to(self.device)) for image, _ in pairs])
        masks = torch.stack([self.resize.soft_mask(mask.to(self.device)) for _, mask in pairs])
        return self.encode_support(images[None], masks[None])

    def segment(self, memory: Any, picture: Picture) -> Segmentation:
        """Find the remembered object in one picture.

        Args:
            memory: What `remember` returned.
            picture: As `Reference.image`, any size.

        Returns:
            Mask, probabilities and score at the picture's own size.
        """
        return self.segment_batch(memory, [picture])[0]

    @torch.no_grad()
    def segment_batch(self, memory: Any, pictures: Sequence[Picture]) -> list[Segmentation]:
        """Find the remembered object in several pictures of any sizes, in one pass of the network.

        Args:
            memory: What `remember` returned.
            pictures: As `Reference.image`.

        Returns:
            One result per picture, in their order.
        """
        if len(pictures) == 0:
            return []
        tensors = [image_tensor(picture, f"picture {i}") for i, picture in enumerate(pictures)]
        output = self.decode_query(memory, torch.stack([self.resize.image(t.to(self.device)) for t in tensors]))
        return [self._segmentation(output, i, (t.shape[-2], t.shape[-1])) for i, t in enumerate(tensors)]

    def _segmentation(self, output: SegmenterOutput, index: int, size: tuple[int, int]) -> Segmentation:
        probs = self.resize.invert(output.mask_logits[index, 0].float(), size).sigmoid()
        present = bool(output.presence_logit[index, 0] > 0)
        score = float(output.iou_pred[index, 0].float().clamp(0.0, 1.0))
        return Segmentation(mask=(probs > self.threshold) & present, probs=probs, score=score, present=present)


def image_tensor(image: Picture, name: str) -> Tensor:
    """Turn a picture of any accepted kind into a tensor.

    Args:
        image: PIL picture, numpy (H, W, 3) uint8, or tensor (3, H, W) float in [0, 1].
        name: What error messages call it.

    Returns:
        (3, H, W) float32 in [0, 1].

    Raises:
        ValueError: If shape, dtype or range is another.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(
                f"{name}: expected a float tensor (3, H, W), got {image.dtype} {tuple(image.shape)}; "
                "convert it, or give a PIL picture or a uint8 array (H, W, 3)."
            )
        if image.numel() and float(image.max()) > 1.5:
            raise ValueError(f"{name}: expected values in [0, 1], got up to {float(image.max()):.0f}; divide by 255.")
        return image.float()
    array = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"{name}: expected a uint8 array (H, W, 3), got {array.dtype} {array.shape}; convert it to RGB uint8."
        )
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255.0


def reference_tensors(reference: Reference) -> tuple[Tensor, Tensor]:
    """Check a reference and turn it into tensors.

    Args:
        reference: An annotated picture.

    Returns:
        The picture (3, H, W) float in [0, 1] and its mask (H, W) float in {0, 1}.

    Raises:
        ValueError: If the mask is missing, empty, of another size, or not a single plane.
    """
    name = reference.name
    image = image_tensor(reference.image, name)
    if reference.mask is None:
        raise ValueError(f"{name}: a reference needs a mask; give Reference(image, mask=mask).")
    mask = reference.mask if isinstance(reference.mask, Tensor) else torch.from_numpy(np.array(reference.mask))
    if mask.ndim != 2:
        raise ValueError(f"{name}: expected a mask (H, W), got shape {tuple(mask.shape)}; give a single plane.")
    if mask.shape != image.shape[-2:]:
        raise ValueError(
            f"{name}: the mask is {tuple(mask.shape)} but its picture {tuple(image.shape[-2:])} (rows, columns); "
            "resize the mask with nearest neighbour."
        )
    if not bool((mask != 0).any()):
        raise ValueError(f"mask {name!r} has no foreground pixel; a reference needs at least one.")
    return image, (mask != 0).float()
