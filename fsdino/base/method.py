"""What every few-shot method of the package promises: remember references once, then segment images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, TypeVar, overload

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from fsdino.base.reference import ImageLike, Reference, image_tensor, prompt_points, reference_tensors, to_square
from fsdino.base.resize import Resize

__all__ = [
    "FewShotMethod",
    "ImageLike",
    "Instance",
    "LabelMap",
    "Memory",
    "Reference",
    "Segmentation",
    "SegmenterOutput",
    "image_tensor",
    "prompt_points",
    "reference_tensors",
    "to_square",
]  # fmt: skip

MemoryT = TypeVar("MemoryT", bound="Memory")


@dataclass
class Instance:
    """One connected part of a mask.

    Args:
        mask: (H, W) bool.
        box: x0, y0, x1, y1 in pixels; x1 and y1 are the first column and row past it.
        score: The class's score times the mean probability of the part's pixels, in [0, 1].
        name: The class.
    """

    mask: Tensor
    box: tuple[int, int, int, int]
    score: float
    name: str = ""


@dataclass
class Segmentation:
    """What was found of one class in one image, at the image's own size.

    Args:
        mask: (H, W) bool; all False where the object is absent.
        probs: (H, W) float in [0, 1].
        score: The method's own estimate of the mask's IoU, in [0, 1].
        present: Whether the object is in the image at all: its presence is above one half.
        presence: Probability that the object is in the image, in [0, 1].
    """

    mask: Tensor
    probs: Tensor
    score: float
    present: bool
    presence: float = 1.0

    def instances(self, min_pixels: int = 1, name: str = "") -> list[Instance]:
        """The connected parts of the mask (8 neighbours), the largest first.

        Args:
            min_pixels: Smaller parts are left out.
            name: What the parts are called.

        Returns:
            One instance per part.
        """
        plane = self.mask.cpu().numpy().astype(np.uint8)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(plane, connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        kept = [i for i in sorted(range(1, count), key=lambda i: -int(areas[i])) if areas[i] >= min_pixels]
        found = []
        for part in kept:
            mask = torch.from_numpy(parts == part).to(self.probs.device)
            x, y, width, height = (int(stats[part, k]) for k in range(4))
            score = self.score * float(self.probs[mask].mean())
            found.append(Instance(mask, (x, y, x + width, y + height), score, name))
        return found


@dataclass
class LabelMap:
    """What was found of several classes in one image; each pixel belongs to the most probable of them or to none.

    Args:
        labels: (H, W) int64, 0 for background and k for the k-th class.
        classes: Class name to what was found; masks do not overlap.
    """

    labels: Tensor
    classes: dict[str, Segmentation]

    def instances(self, min_pixels: int = 1) -> list[Instance]:
        """The connected parts of every class, class by class; see `Segmentation.instances`."""
        return [part for name, found in self.classes.items() for part in found.instances(min_pixels, name)]


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

    Subclasses implement `encode_support` (paid once per class) and `decode_query` (paid per image); everything that
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
        """Segment images with a memory; a memory of batch 1 serves all of them.

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
        """Turn annotated images of one class into a memory (batch 1), paid once.

        Args:
            references: At least one, in any order; sizes and kinds may differ, where the method knows other kinds
                than masks.

        Returns:
            The memory for `segment`.

        Raises:
            ValueError: If there is no reference, or one cannot be used: an empty mask, one of another size, or a kind
                that the method does not know.
        """
        if len(references) == 0:
            raise ValueError("remember() got no reference; give at least one Reference(image, mask=mask).")
        pairs = [reference_tensors(self._only_mask(reference)) for reference in references]
        images = torch.stack([self.resize.image(image.to(self.device)) for image, _ in pairs])
        masks = torch.stack([self.resize.soft_mask(mask.to(self.device)) for _, mask in pairs])
        return self.encode_support(images[None], masks[None])

    def _only_mask(self, reference: Reference) -> Reference:
        """The reference, if all that it says is a mask of the object."""
        kind = type(self).__name__
        if reference.negative:
            raise ValueError(f"{reference.name}: {kind} has no use for what is not meant; leave it out or use FS-DINO.")
        pointed = (reference.points, reference.box, reference.scribble)
        if reference.mask is None and any(given is not None for given in pointed):
            raise ValueError(
                f"{reference.name}: {kind} learns from masks alone; give a mask, or use FS-DINO for points, boxes "
                "and scribbles."
            )
        return reference

    @overload
    def segment(self, memory: Mapping[str, Any], image: ImageLike) -> LabelMap: ...

    @overload
    def segment(self, memory: Any, image: ImageLike) -> Segmentation: ...

    def segment(self, memory: Any, image: ImageLike) -> Segmentation | LabelMap:
        """Find the remembered object, or several remembered classes at once, in one image.

        Args:
            memory: What `remember` returned, or class name to memory.
            image: As `Reference.image`, any size.

        Returns:
            For one memory mask, probabilities, score and presence at the image's own size; for several a label map.
        """
        if isinstance(memory, Mapping):
            return self.segment_classes(memory, image)
        return self.segment_batch(memory, [image])[0]

    @torch.no_grad()
    def segment_batch(self, memory: Any, images: Sequence[ImageLike]) -> list[Segmentation]:
        """Find the remembered object in several images of any sizes, in one pass of the network.

        Args:
            memory: What `remember` returned.
            images: As `Reference.image`.

        Returns:
            One result per image, in their order.
        """
        if len(images) == 0:
            return []
        tensors = [image_tensor(image, f"image {i}") for i, image in enumerate(images)]
        output = self.decode_query(memory, torch.stack([self.resize.image(t.to(self.device)) for t in tensors]))
        return [self._segmentation(output, i, (t.shape[-2], t.shape[-1])) for i, t in enumerate(tensors)]

    @torch.no_grad()
    def segment_classes(self, memories: Mapping[str, Any], image: ImageLike) -> LabelMap:
        """Find several classes in one image.

        Args:
            memories: Class name to what `remember` returned.
            image: As `Reference.image`, any size.

        Returns:
            The label map, and mask, probabilities, score and presence of each class; where masks meet, the most
            probable class has the pixel.

        Raises:
            ValueError: If there is no memory.
        """
        if not memories:
            raise ValueError("segment() got no memory; give at least one class: {'cat': model.remember(...)}.")
        tensor = image_tensor(image, "image")
        size = (tensor.shape[-2], tensor.shape[-1])
        output = self.decode_classes(list(memories.values()), self.resize.image(tensor.to(self.device))[None])
        found = {name: self._segmentation(output, i, size) for i, name in enumerate(memories)}
        probs = torch.stack([torch.where(one.mask, one.probs, 0.0) for one in found.values()])  # (N, H, W)
        best, winner = probs.max(0)
        labels = torch.where(best > 0, winner + 1, 0)
        apart = {name: replace(one, mask=labels == k) for k, (name, one) in enumerate(found.items(), start=1)}
        return LabelMap(labels, apart)

    def decode_classes(self, memories: Sequence[Any], query_image: Tensor) -> SegmenterOutput:
        """Segment one image with several memories of batch 1.

        Args:
            memories: N of them.
            query_image: (1, 3, S, S) float in [0, 1].

        Returns:
            An output of batch N.
        """
        parts = [self.decode_query(memory, query_image) for memory in memories]
        return SegmenterOutput(*(torch.cat(outputs) for outputs in zip(*(vars(part).values() for part in parts))))

    def refine(self, memory: Any, image: ImageLike, points: Any, labels: Any = None) -> Segmentation:
        """Correct what `segment` finds in one image by clicks; only methods that know points can.

        Args:
            memory: What `remember` returned.
            image: As `Reference.image`.
            points: (N, 2) clicks as x, y in pixels of the image, all that were made so far.
            labels: N numbers, 1 for a click on the object and 0 for one off it; None: all are on it.

        Returns:
            As `segment`.

        Raises:
            ValueError: If the method knows no points.
        """
        raise ValueError(f"{type(self).__name__} takes no clicks; use FS-DINO to refine a result.")

    def _segmentation(self, output: SegmenterOutput, index: int, size: tuple[int, int]) -> Segmentation:
        probs = self.resize.invert(output.mask_logits[index, 0].float(), size).sigmoid()
        logit = output.presence_logit[index, 0].float()
        present = bool(logit > 0)
        score = float(output.iou_pred[index, 0].float().clamp(0.0, 1.0))
        mask = (probs > self.threshold) & present
        return Segmentation(mask, probs, score, present, presence=float(logit.sigmoid()))
