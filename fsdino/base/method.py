"""What every few-shot method of the package promises: remember references once, then segment images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypeVar, overload

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from fsdino.base import storage
from fsdino.base.frozen import FrozenMaps
from fsdino.base.memory import Memory, SegmenterOutput, image_tensor, one_of
from fsdino.base.reference import ImageLike, Reference, image_array, reference_arrays
from fsdino.base.resize import Resize
from fsdino.base.result import GPU_BATCH, LabelMap, Segmentation, resolve

MethodT = TypeVar("MethodT", bound="FewShotMethod")


class FewShotMethod(nn.Module, PyTorchModelHubMixin, ABC):
    """A system that segments what a few references show.

    Subclasses implement `encode_support` (paid once per class) and `decode_query` (paid per image); everything that
    users call, training and measuring included, is built on these two and on the few hooks below them.

    Args:
        resize: the way to the network's square and back.
        threshold: probability above which a pixel belongs to the object, in (0, 1); choose it on base classes only.

    Attributes:
        name: key of the registry.
        title: what tables and cards call it.
        memory_type: what `encode_support` returns.
        takes_negatives: whether references may show what is not meant.
        learns_absence: whether a presence head can be trained after the episodes.
        silent_args: arguments of `build` that change no memory, and so leave the fingerprint as it is.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    memory_type: ClassVar[type[Memory]]
    takes_negatives: ClassVar[bool] = False
    learns_absence: ClassVar[bool] = False
    silent_args: ClassVar[frozenset[str]] = frozenset()

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

    @property
    def batch(self) -> int:
        """Images of a pass that pay on its device."""
        return 1 if self.device.type == "cpu" else GPU_BATCH

    @property
    def takes_hints(self) -> bool:
        """Whether points, boxes and scribbles may stand for a mask."""
        return False

    @property
    def takes_clicks(self) -> bool:
        """Whether `refine` works."""
        return False

    # ---- what a subclass implements

    @abstractmethod
    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> Any:
        """Turn references into a memory of batch B: images (B, K, 3, S, S) and masks (B, K, S, S), float in [0, 1]."""

    @abstractmethod
    def decode_query(self, memory: Any, query_image: Tensor) -> SegmenterOutput:
        """Segment images (B, 3, S, S) float in [0, 1] with a memory of batch B; one of batch 1 serves all of them."""

    def join(self, memories: Sequence[Any]) -> list[Any]:
        """Memories of batch 1 as the fewest that `decode_encoded` takes; none holds more than `MAX_CLASSES_AT_ONCE`."""
        return list(memories)

    def encode_query(self, query_image: Tensor) -> Any:
        """What is computed once per image, whatever the number of classes; by default the pixels as they are."""
        return query_image

    def decode_encoded(self, memory: Any, encoded: Any) -> SegmenterOutput:
        """Segment from what `encode_query` returned, with a memory of `join`; a batch of its classes."""
        return self.decode_query(memory, encoded)

    # ---- what training and measuring ask for

    def forward(self, query_image: Tensor, support_images: Tensor, support_masks: Tensor) -> SegmenterOutput:
        """One step over episodes: `decode_query(encode_support(support_images, support_masks), query_image)`."""
        return self.decode_query(self.encode_support(support_images, support_masks), query_image)

    def predict_episodes(self, batch: Mapping[str, Any]) -> SegmenterOutput:
        """Predict the queries of a batch of `collate_episodes`, from the maps of `frozen_maps` where it holds them."""
        return self(batch["query_image"], batch["support_images"], batch["support_masks"])

    def predict_targets(self, batch: Mapping[str, Any], num_targets: int) -> list[tuple[SegmenterOutput, Tensor]]:
        """Predictions and truths (B, S, S) of an episode's targets in turn, the query last.

        Raises:
            ValueError: if the method knows no other target than the query.
        """
        if num_targets != 1:
            raise ValueError(f"{type(self).__name__} has no chain of targets; set num_targets to 1.")
        return [(self.predict_episodes(batch), batch["query_mask"])]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that learn in episode training."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def prepare_training_(self, iou_weight: float, presence_weight: float) -> None:
        """Freeze what no loss of these weights reaches: distributed training refuses parameters without a gradient."""

    def frozen_maps(self) -> FrozenMaps | None:
        """What of its work on an image never changes in training and can be read from a cache; None: nothing."""
        return None

    def shared_encoder(self) -> Any:
        """The frozen `FeatureEncoder` that baselines may compare with; None: there is none of the method's own size."""
        return None

    def part_sizes(self) -> dict[str, int]:
        """Parameters of each named part that has any."""
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}
        return {name: size for name, size in sizes.items() if size}

    # ---- what users call

    @torch.no_grad()
    def remember(self, references: Sequence[Reference]) -> Any:
        """Turn annotated images of one class into a memory (batch 1), paid once.

        Sizes and kinds may differ, where the method knows other kinds than masks.

        Raises:
            ValueError: if there is no reference, or one cannot be used: an empty mask, one of another size, or a kind
                that the method does not know.
        """
        if len(references) == 0:
            raise ValueError("remember() got no reference; give at least one Reference(image, mask=mask).")
        pairs = [reference_arrays(self._only_mask(reference)) for reference in references]
        # Every reference goes to the square by itself, as a query does, so they may differ in size.
        images = torch.stack([self._square(image) for image, _ in pairs])
        masks = torch.stack([self._square_mask(mask) for _, mask in pairs])
        return self.encode_support(images[None], masks[None])

    @overload
    def segment(self, memory: Mapping[str, Any], image: ImageLike) -> LabelMap: ...

    @overload
    def segment(self, memory: Any, image: ImageLike) -> Segmentation: ...

    def segment(self, memory: Any, image: ImageLike) -> Segmentation | LabelMap:
        """Find the remembered object, or several remembered classes at once, in one image, at the image's own size.

        Args:
            memory: what `remember` returned, or class name to memory; a pixel is then the most probable class's.
            image: as `Reference.image`, any size.
        """
        if not isinstance(memory, Mapping):
            return self.segment_batch(memory, [image])[0]
        if not memory:
            raise ValueError("segment() got no memory; give at least one class: {'cat': model.remember(...)}.")
        array = image_array(image, "image")
        # A generator: `resolve` takes one class after the other, so the maps of all classes are never held together.
        found = zip(memory, self.find(self.join(list(memory.values())), array))
        return resolve(found, (array.shape[0], array.shape[1]), self.threshold)

    @torch.no_grad()
    def segment_batch(self, memory: Any, images: Sequence[ImageLike]) -> list[Segmentation]:
        """Find the remembered object in several images of any sizes, in one pass of the network."""
        if not images:
            return []
        arrays = [image_array(image, f"image {i}") for i, image in enumerate(images)]
        output = self.decode_query(memory, torch.stack([self._square(array) for array in arrays]))
        return [self._segmentation(output, i, array.shape[:2]) for i, array in enumerate(arrays)]

    @torch.no_grad()
    def find(self, joined: Sequence[Any], image: np.ndarray) -> Iterator[Segmentation]:
        """Find many classes in one image (H, W, 3) uint8, one result after the other, so that few are held at a time.

        `joined` is what `join` made of the classes' memories, once for many images. Results are in the order of the
        memories; masks may overlap.
        """
        yield from self.find_batch(joined, [image])[0]

    @torch.no_grad()
    def find_batch(self, joined: Sequence[Any], images: Sequence[np.ndarray]) -> list[Iterator[Segmentation]]:
        """As `find` in each of several images of any sizes, which go through the encoder together.

        On a CPU the last digits may differ from those of `find`: sums are then taken in another order.
        """
        arrays = [image_array(image, "image") for image in images]
        # The encoder is nine tenths of the time, so it runs once for all classes.
        encoded = self.encode_query(torch.stack([self._square(array) for array in arrays]))
        return [self._decoded(joined, one_of(encoded, i), array.shape) for i, array in enumerate(arrays)]

    @torch.no_grad()
    def _decoded(self, joined: Sequence[Any], encoded: Any, size: tuple[int, ...]) -> Iterator[Segmentation]:
        """Every class of `joined` in one encoded image."""
        for memory in joined:
            output = self.decode_encoded(memory, encoded)
            for i in range(len(output.iou_pred)):
                yield self._segmentation(output, i, size)

    def refine(self, memory: Any, image: ImageLike, points: Any, labels: Any = None) -> Segmentation:
        """Correct what `segment` finds in one image by clicks; only methods with `takes_clicks` can.

        Args:
            memory, image: as for `segment`.
            points: (N, 2) clicks as x, y in pixels of the image, all that were made so far.
            labels: N numbers, 1 for a click on the object and 0 for one off it; None: all are on it.
        """
        raise ValueError(f"{type(self).__name__} takes no clicks; use FS-DINO to refine a result.")

    def draw_mask(self, reference: Reference) -> np.ndarray:
        """The mask (H, W) bool that a reference's points, box or scribble mark; only methods with `takes_hints` can."""
        raise ValueError(f"{type(self).__name__} draws no masks; give one, or use FS-DINO.")

    def pack(self, memory: Any) -> dict[str, np.ndarray]:
        """A memory as named arrays with a leading axis of 1, the same for every runtime of a model."""
        return {name: tensor.float().cpu().numpy() for name, tensor in memory.tensors().items()}

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """The memory of packed arrays; names that the method's memory does not have are left out."""
        known = {field.name for field in fields(self.memory_type)}
        tensors = {name: torch.from_numpy(a).to(self.device) for name, a in arrays.items() if name in known}
        return self.memory_type(**tensors)

    # ---- on disk

    def arguments(self) -> dict[str, Any] | None:
        """The plain arguments of `build` that rebuild the method apart from its weights.

        None for a method that was not made by `fsdino.base.registry.build`; it cannot be saved.
        """
        built_with: dict[str, Any] | None = getattr(self, "built_with", None)
        return None if built_with is None else {**built_with, **self.sizes_of_weights(built_with)}

    def sizes_of_weights(self, built_with: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `build` that weights from a file decided, whatever was asked for."""
        return {}

    def summary(self) -> str:
        """One phrase for the model card: what it is, on which encoder."""
        return f"at {self.img_size} px ({self.resize.mode})"

    def fingerprint(self) -> str:
        """See `fsdino.base.storage.fingerprint`."""
        return storage.fingerprint(self)

    def _save_pretrained(self, save_directory: Path) -> None:
        storage.save(self, save_directory)

    @classmethod
    def _from_pretrained(cls: type[MethodT], *, model_id: str, **options: Any) -> MethodT:  # type: ignore[override]
        # The mixin also passes options of its own way of loading (`map_location`, `strict`), which a download does not
        # take.
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        model = storage.load(model_id, hub={name: options[name] for name in known if name in options})
        if not isinstance(model, cls):
            raise ValueError(f"'{model_id}' holds {type(model).__name__}, expected {cls.__name__}; use fsdino.load().")
        return model

    # ---- inside

    def _square(self, image: np.ndarray) -> Tensor:
        """An image of `image_array` as the network's square, (3, S, S) float in [0, 1] on the device."""
        return self.resize.image(image_tensor(image).to(self.device))

    def _square_mask(self, mask: np.ndarray) -> Tensor:
        """A mask (H, W) bool as shares in the network's square, (S, S) float in [0, 1] on the device."""
        return self.resize.soft_mask(torch.from_numpy(mask).float().to(self.device))

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

    def _segmentation(self, output: SegmenterOutput, index: int, size: tuple[int, ...]) -> Segmentation:
        """One element of an output as arrays at the image's own size (H, W)."""
        # Logits are resized, not probabilities: they are nearly linear across an edge, which stays where it is.
        probs = self.resize.invert(output.mask_logits[index, 0].float(), (size[0], size[1])).sigmoid()
        logit = output.presence_logit[index, 0].float()
        present = bool(logit > 0)
        score = float(output.iou_pred[index, 0].float().clamp(0.0, 1.0))
        mask = (probs > self.threshold) & present
        return Segmentation(mask.cpu().numpy(), probs.cpu().numpy(), score, present, presence=float(logit.sigmoid()))
