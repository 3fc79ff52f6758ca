"""What every few-shot method of the package promises: remember references once, then segment images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, TypeVar, overload

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from fsdino.base import storage
from fsdino.base.batch import found_in, held_back, images_that_pay, segmentation
from fsdino.base.frozen import FrozenMaps
from fsdino.base.gate import MinPresence
from fsdino.base.memory import Memory, SegmenterOutput, Shape, check_memory, every_pair, image_tensor, memory_of
from fsdino.base.reference import ImageLike, Reference, image_array, mask_only, reference_arrays, reference_list
from fsdino.base.resize import Resize
from fsdino.base.result import LabelMap, Segmentation, resolve

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
        exportable: whether `encode_support`, `encode_query` (one tensor or a tuple) and `decode_all` trace to graphs.
        silent_args: arguments of `build` that change no memory, and so leave the fingerprint as it is.
        missed_classes: those on which it learnt to say that they are absent; None where that is not told.
        arithmetic: counted up when the same weights come to mean another answer; models of another count are refused.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    memory_type: ClassVar[type[Memory]]
    takes_negatives: ClassVar[bool] = False
    learns_absence: ClassVar[bool] = False
    exportable: bool = False
    silent_args: ClassVar[frozenset[str]] = frozenset()
    arithmetic: ClassVar[int] = 1
    missed_classes: tuple[str, ...] | None = None
    _threshold: float

    def __init__(self, resize: Resize, threshold: float = 0.5) -> None:
        super().__init__()
        self.resize = resize
        self.threshold = threshold
        self._marked: tuple[Any, str] = (None, "")

    @property
    def img_size(self) -> int:
        """Side of the network's square, in pixels."""
        return self.resize.size

    @property
    def threshold(self) -> float:
        """Probability above which a pixel belongs to the object, in (0, 1)."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not isinstance(value, Real) or not 0.0 < float(value) < 1.0:
            raise ValueError(f"threshold {value!r} is not a probability; use a value above 0 and below 1.")
        self._threshold = float(value)

    @property
    def device(self) -> torch.device:
        """Where the method's weights are."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    batch = property(images_that_pay)

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

    def decode_all(self, memory: Any, encoded: Any) -> SegmenterOutput:
        """Segment each of B encoded images with each class of a memory of batch N: B * N rows, image by image."""
        return self.decode_encoded(*every_pair(memory, encoded))

    # ---- what training and measuring ask for

    def forward(self, query_image: Tensor, support_images: Tensor, support_masks: Tensor) -> SegmenterOutput:
        """One step over episodes: `decode_query(encode_support(support_images, support_masks), query_image)`."""
        return self.decode_query(self.encode_support(support_images, support_masks), query_image)

    def predict_episodes(self, batch: Mapping[str, Any]) -> SegmenterOutput:
        """Predict the queries of a batch of `collate_episodes`, from the maps of `frozen_maps` where it holds them."""
        return self(batch["query_image"], batch["support_images"], batch["support_masks"])

    def predict_targets(self, batch: Mapping[str, Any], num_targets: int) -> list[tuple[SegmenterOutput, Tensor]]:
        """Predictions and truths (B, S, S) of an episode's targets in turn, the query last; a ValueError for others."""
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

        Sizes may differ, and kinds where the method knows others than masks.

        Raises:
            ValueError: if there is no reference, or one cannot be used: an empty mask, one of another size, or a kind
                that the method does not know.
        """
        memory = self.remember_references(reference_list(references))
        return replace(memory, made_by=self._mark())

    def remember_references(self, references: Sequence[Reference]) -> Any:
        """What `remember` does once it knows that they are references; a method that takes hints has its own."""
        pairs = [reference_arrays(mask_only(reference, type(self).__name__)) for reference in references]
        # Every reference goes to the square by itself, as a query does, so they may differ in size.
        images = torch.stack([self._square(image) for image, _ in pairs])
        masks = torch.stack([self._square_mask(mask) for _, mask in pairs])
        return self.encode_support(images[None], masks[None])

    @overload
    def segment(self, memory: Mapping[str, Any], image: ImageLike, min_presence: MinPresence = "auto") -> LabelMap: ...
    @overload
    def segment(self, memory: Any, image: ImageLike, min_presence: MinPresence = "auto") -> Segmentation: ...
    def segment(self, memory: Any, image: ImageLike, min_presence: MinPresence = "auto") -> Segmentation | LabelMap:
        """Find the remembered object, or several remembered classes at once, in one image, at the image's own size.

        Args:
            memory: what `remember` returned, or class name to memory; a pixel is then the most probable class's.
            image: as `Reference.image`, any size.
            min_presence: presence above which a class counts as there, see `fsdino.base.gate`; 0: always.
        """
        if not isinstance(memory, Mapping):
            return self.segment_batch(memory, [image], min_presence)[0]
        if not memory:
            raise ValueError("segment() got no memory; give at least one class: {'cat': model.remember(...)}.")
        for one in memory.values():
            check_memory(one, self.memory_type, self._mark())
        array = image_array(image, "image")
        # A generator: the maps of all classes are never held together.
        found = held_back(self, list(memory), self.find(self.join(list(memory.values())), array), array, min_presence)
        return resolve(zip(memory, found), (array.shape[0], array.shape[1]), self.threshold)

    @torch.no_grad()
    def segment_batch(
        self, memory: Any, images: Sequence[ImageLike], min_presence: MinPresence = "auto"
    ) -> list[Segmentation]:
        """Find the remembered object in several images of any sizes, in one pass of the network."""
        check_memory(memory, self.memory_type, self._mark())
        if isinstance(images, str) or not hasattr(images, "__len__"):
            raise ValueError(f"segment_batch() expected a list of images, got {type(images).__name__}; give [image].")
        if len(images) == 0:
            return []
        arrays = [image_array(image, f"image {i}") for i, image in enumerate(images)]
        output = self.decode_query(memory, torch.stack([self._square(array) for array in arrays]))
        found = (segmentation(self, output, i, array.shape) for i, array in enumerate(arrays))
        return [next(held_back(self, [None], [one], image, min_presence)) for one, image in zip(found, arrays)]

    @torch.no_grad()
    def find(self, joined: Sequence[Any], image: np.ndarray) -> Iterator[Segmentation]:
        """Find many classes in one image (H, W, 3) uint8, one result after the other, so that few are held at a time.

        `joined` is what `join` made of the memories, in whose order the results come. Masks may overlap.
        """
        yield from found_in(self, joined, [image])[0]

    def find_batch(self, joined: Sequence[Any], images: Sequence[np.ndarray]) -> list[Iterator[Segmentation]]:
        """As `find` in each of several images, encoded together; on a CPU the last digits may differ."""
        return found_in(self, joined, images)

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
        return memory_of(self.memory_type, arrays, self.memory_shapes()).to(self.device)

    def memory_shapes(self) -> dict[str, Shape]:
        """Shapes of a packed memory's arrays, see `fsdino.base.memory.memory_of`; those not named may be of any."""
        return {}

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

    def remark(self) -> str:
        """What was chosen for the data at hand, for tables: layers and cut of a training-free method; else empty."""
        return ""

    def fingerprint(self) -> str:
        """See `fsdino.base.storage.fingerprint`."""
        return storage.fingerprint(self)

    def _save_pretrained(self, save_directory: Path) -> None:
        storage.save(self, save_directory)

    @classmethod
    def _from_pretrained(cls: type[MethodT], *, model_id: str, **options: Any) -> MethodT:  # type: ignore[override]
        # The mixin also passes `map_location` and `strict`, which a download does not take.
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        model = storage.load(model_id, hub={name: options[name] for name in known if name in options})
        if not isinstance(model, cls):
            raise ValueError(f"'{model_id}' holds {type(model).__name__}, expected {cls.__name__}; use fsdino.load().")
        return model

    # ---- inside

    def _mark(self) -> str:
        """The fingerprint, computed anew only where a weight was changed: a large model's takes a second."""
        state = [(id(t), t.data_ptr(), t._version) for t in chain(self.parameters(), self.buffers())]
        if state != self._marked[0]:
            self._marked = (state, self.fingerprint() if self.arguments() is not None else "")
        return self._marked[1]

    def _square(self, image: np.ndarray) -> Tensor:
        """An image of `image_array` as the network's square, (3, S, S) float in [0, 1] on the device."""
        return self.resize.image(image_tensor(image).to(self.device))

    def _square_mask(self, mask: np.ndarray) -> Tensor:
        """A mask (H, W) bool as shares in the network's square, (S, S) float in [0, 1] on the device."""
        return self.resize.soft_mask(torch.from_numpy(mask).float().to(self.device))
