"""SANSA: few-shot segmentation as tracking through a pseudo-video, with adapters in SAM2's image encoder.

References and target are frames of a short video; SAM2 carries the object from the annotated frames to the target.
Small adapters teach the frozen features that "same object" means "same class". After "SANSA: Unleashing the hidden
semantics in SAM2 for few-shot segmentation", arXiv 2505.21795. By default two things differ from the publication: any
number of references is used, and their order does not matter (`memory_order="video"` brings the published memory back,
and so do the recipes). `recipes/sansa/README.md` lists everything that differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fsdino.base.memory import Memory, SegmenterOutput
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference, image_array, mask_only, prompt_points, reference_arrays
from fsdino.base.resize import Resize, ResizeMode
from fsdino.methods.sam2.net import Decoded, Frame, Sam2
from fsdino.methods.sam2.published import read_published
from fsdino.methods.sam2.sizes import Sam2Version, size_and_version
from fsdino.methods.sam2.unscored import without_object_score_
from fsdino.methods.sam2.weights import build_sam2, from_published
from fsdino.methods.sansa.adapters import add_adapters_, load_adapters_

MemoryOrder = Literal["set", "video"]
Presence = Literal["always", "object_score"]


@dataclass
class SansaMemory(Memory):
    """Memory frames of B pseudo-videos.

    Args:
        maps: (B, K, h*w, memory_dim), without position and temporal code.
        pointers: (B, K, D).
    """

    # Codes are added when the memory is read: they depend on how many frames there are, which `append` changes.
    maps: Tensor
    pointers: Tensor

    def append(self, tokens: Tensor, pointers: Tensor) -> SansaMemory:
        """The memory with one more frame: tokens (B, h*w, memory_dim), pointers (B, D)."""
        return _joined([self, SansaMemory(tokens[:, None], pointers[:, None])])


class Sansa(FewShotMethod):
    """SANSA on a SAM2 of any size.

    Args:
        sam2: frozen here; its weights must be loaded already.
        factor: adapter bottleneck over block width: 0.3 strict, 0.8 generalist, 0 for frozen SAM2 without adapters.
        stages: Hiera stages that get adapters.
        memory_order: "set": all references are equal, any number of them. "video": the published memory, in which the
            first reference is the conditioning frame, the six latest others fill the slots with their temporal codes,
            and further ones are dropped.
        presence: "always": a SAM2 without object scores, as published: no head, no token in the decoder, no
            no-object codes. "object_score": SAM2's own score answers "absent" and empties the memory of such frames.
        resize_mode: "squash" as published, or "pad".
        first_size: side in pixels of the square that images are squashed to before they become SAM2's, and at which the
            network is scored; masks are then hard. Published: 640 for COCO, LVIS and PACO, 518 for FSS-1000 and
            PASCAL-Part. None: straight to SAM2's square, with soft masks.

    Raises:
        ValueError: for an unknown `memory_order` or `presence`.
    """

    name = "sansa"
    title = "SANSA"
    memory_type = SansaMemory
    arithmetic = 2

    def __init__(
        self,
        sam2: Sam2,
        factor: float = 0.3,
        stages: Sequence[int] = (2, 3),
        memory_order: MemoryOrder = "set",
        presence: Presence = "always",
        resize_mode: ResizeMode = "squash",
        first_size: int | None = None,
    ) -> None:
        super().__init__(Resize(sam2.img_size, resize_mode, first_size=first_size, hard_masks=first_size is not None))
        if memory_order not in ("set", "video"):
            raise ValueError(f"unknown memory_order {memory_order!r}; use 'set' or 'video'.")
        if presence not in ("always", "object_score"):
            raise ValueError(f"unknown presence {presence!r}; use 'always' or 'object_score'.")
        self.memory_order: MemoryOrder = memory_order
        # Frozen before the adapters come in, which are to be the only weights that learn.
        self.sam2 = sam2.requires_grad_(False)
        if presence == "always":
            without_object_score_(sam2)
        # A prompt is answered by the single mask, however unstable it is, as published.
        sam2.net.mask_decoder.dynamic_multimask_via_stability = False
        if factor > 0:
            add_adapters_(sam2, factor, stages)
        self.train(self.training)

    @classmethod
    def build(
        cls,
        size: str = "tiny",
        img_size: int = 1024,
        version: Sam2Version = "2.0",
        weights: str | None = None,
        sha256: str | None = None,
        published: str | None = None,
        **kwargs: Any,
    ) -> Sansa:
        """SANSA from a size's name, with random or official SAM2 weights.

        Args:
            size: see `build_sam2`, as for `img_size`, `weights` and `sha256`.
            version: "2.0" as published, or "2.1"; weights know their own.
            published: the authors' checkpoint: its adapters, and its SAM2 in place of `weights` if it holds one.
            kwargs: for the constructor.
        """
        if published is None:
            return cls(build_sam2(size, img_size, version, weights, sha256), **kwargs)
        state = read_published(published)
        if state.has_encoder:
            sam2 = from_published(state, img_size, scored=kwargs.get("presence", "always") != "always")
        else:
            sam2 = build_sam2(size, img_size, version, weights, sha256)
        method = cls(sam2, **kwargs)
        load_adapters_(method.sam2, state)
        return method

    def train(self, mode: bool = True) -> Sansa:
        """Adapters have no mode; SAM2 is frozen and stays in eval mode."""
        super().train(mode)
        self.sam2.eval()
        return self

    @property
    def takes_hints(self) -> bool:
        """SAM2 draws what is pointed at."""
        return True

    def sizes_of_weights(self, built_with: Mapping[str, Any]) -> dict[str, Any]:
        """SAM2's size and version, which its weights decide."""
        size, version = size_and_version(self.sam2.net.config)
        return {"size": size, "version": version}

    def predict_targets(self, batch: Mapping[str, Any], num_targets: int) -> list[tuple[SegmenterOutput, Tensor]]:
        """See `FewShotMethod.predict_targets`: the last J - 1 references are segmented before the query."""
        if num_targets == 1:
            return super().predict_targets(batch, 1)
        images, masks = batch["support_images"], batch["support_masks"]
        given = images.shape[1] - (num_targets - 1)
        if given < 1:
            raise ValueError(
                f"{num_targets} targets need episodes of at least {num_targets} shots (one annotated, the "
                f"others are targets), got {images.shape[1]}; set shots to {num_targets}."
            )
        targets = torch.cat([images[:, given:], batch["query_image"][:, None]], dim=1)  # (B, J, 3, S, S)
        # `support_truths`, not the masks: only they tell ignored pixels, which no loss may count.
        truths = [*batch["support_truths"][:, given:].long().unbind(1), batch["query_mask"]]
        return list(zip(self.forward_targets(targets, images[:, :given], masks[:, :given]), truths))

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> SansaMemory:
        """Memory-encode references with masks; shapes as in `FewShotMethod`."""
        batch = len(support_images)
        frame = self.sam2.encode(support_images.flatten(0, 1))
        masks = support_masks.flatten(0, 1)[:, None]
        tokens, pointers = self.sam2.given_memory(frame, masks, smooth=True), self.sam2.given_pointer(frame, masks)
        return SansaMemory(tokens.unflatten(0, (batch, -1)), pointers.unflatten(0, (batch, -1)))

    def encode_support_points(self, support_images: Tensor, points: Tensor, labels: Tensor) -> SansaMemory:
        """Memory-encode references whose object is pointed at: SAM2 first draws the mask itself.

        Args:
            support_images: (B, K, 3, S, S) in [0, 1].
            points: (B, K, P, 2), x and y in pixels of the square.
            labels: (B, K, P) long: 1 object, 0 background, 2 and 3 the corners of a box, -1 padding.
        """
        batch = len(support_images)
        frame, drawn = self._draw(support_images.flatten(0, 1), points.flatten(0, 1), labels.flatten(0, 1))
        tokens, pointers = self._remember_prediction(frame, drawn)
        return SansaMemory(tokens.unflatten(0, (batch, -1)), pointers.unflatten(0, (batch, -1)))

    def _draw(self, images: Tensor, points: Tensor, labels: Tensor) -> tuple[Frame, Decoded]:
        """What SAM2 itself draws from points (N, P, 2) on images (N, 3, S, S), without a memory."""
        frame = self.sam2.encode(images)
        return frame, self.sam2.decode(frame, self.sam2.without_memory(frame), points, labels, multimask=False)

    def decode_query(self, memory: SansaMemory, query_image: Tensor) -> SegmenterOutput:
        """Track the object into the target; three masks, the best by predicted IoU."""
        return _output(self._track(memory, self.sam2.encode(query_image)))

    def forward_targets(
        self, target_images: Tensor, support_images: Tensor, support_masks: Tensor
    ) -> list[SegmenterOutput]:
        """Segment J targets (B, J, 3, S, S) in turn; each prediction becomes a pseudo-reference for those after it.

        The paper trains so (section 4): one annotated reference, J = 3. Gradients flow through the pseudo-references.
        """
        memory = self.encode_support(support_images, support_masks)
        outputs = []
        for j in range(target_images.shape[1]):
            frame = self.sam2.encode(target_images[:, j])
            found = self._track(memory, frame)
            outputs.append(_output(found))
            if j + 1 < target_images.shape[1]:
                memory = memory.append(*self._remember_prediction(frame, found))
        return outputs

    @torch.no_grad()
    def remember_references(self, references: Sequence[Reference]) -> SansaMemory:
        """As `FewShotMethod.remember`; points, a box or a scribble may stand for a mask."""
        return _joined([self._remember_one(reference) for reference in references])

    def _remember_one(self, reference: Reference) -> SansaMemory:
        if reference.mask is None and not reference.negative:
            image, points, labels = self._pointed(reference)
            return self.encode_support_points(image[:, None], points[:, None], labels[:, None])
        array, mask = reference_arrays(mask_only(reference, type(self).__name__))
        return self.encode_support(self._square(array)[None, None], self._square_mask(mask)[None, None])

    def _pointed(self, reference: Reference) -> tuple[Tensor, Tensor, Tensor]:
        """A reference's image (1, 3, S, S) with its points (1, P, 2) and their labels (1, P)."""
        image = image_array(reference.image, reference.name)
        height, width = image.shape[:2]
        given = prompt_points(reference, (height, width), self.resize.content_size(height, width))
        points, labels = (torch.from_numpy(array)[None].to(self.device) for array in given)
        return self._square(image)[None], points, labels

    @torch.no_grad()
    def draw_mask(self, reference: Reference) -> np.ndarray:
        """See `FewShotMethod.draw_mask`."""
        _, drawn = self._draw(*self._pointed(reference))
        size = image_array(reference.image, reference.name).shape
        found: np.ndarray = (self.resize.invert(drawn.mask_logits[0, 0].float(), size[:2]) > 0).cpu().numpy()
        return found

    def _remember_prediction(self, frame: Frame, found: Decoded) -> tuple[Tensor, Tensor]:
        # The probabilities as they are, not a mask: an uncertain prediction stays uncertain in memory, and training can
        # go back through it.
        found = self.sam2.where_present(found)
        probs = self.sam2.to_input_size(found.mask_logits)
        return self.sam2.encode_memory(frame, probs, found.object_logits > 0), found.pointers[:, 0]

    def _track(self, memory: SansaMemory, frame: Frame) -> Decoded:
        tokens, positions, num_pointer_tokens = self._context(memory)
        # A memory of batch 1 serves a batch of targets.
        tokens = tokens.to(self.sam2.dtype).expand(len(frame.embedding), -1, -1)
        embedding = self.sam2.attend(frame, tokens, positions, num_pointer_tokens)
        return self.sam2.decode(frame, embedding).best()

    def _context(self, memory: SansaMemory) -> tuple[Tensor, Tensor, int]:
        """Memory tokens (B, T, memory_dim), their codes (T, memory_dim), and how many of T are pointers."""
        num, device = memory.maps.shape[1], memory.maps.device
        # As a set, every frame is a conditioning frame (offset 0) and every pointer of the same age: no reference is
        # nearer to the target than another, and none is dropped.
        spatial, pointing = list(range(num)), list(range(num))
        offsets, ages = [0] * num, torch.ones(num, device=device)
        if self.memory_order == "video":
            # As a video, the target is frame `num`: frame 0 conditions it, and of the others the latest fill the slots.
            config = self.sam2.net.config
            spatial = [0, *range(max(1, num - config.num_maskmem + 1), num)]
            offsets = [0, *(num - k for k in spatial[1:])]
            pointing = [0, *range(max(1, num - config.max_object_pointers_in_encoder + 1), num)]
            longest = min(num, config.max_object_pointers_in_encoder - 1)
            ages = torch.tensor([num - k for k in pointing], device=device, dtype=torch.float32) / longest
        where = self.sam2.memory_position(device)  # (h*w, memory_dim)
        codes = torch.stack([self.sam2.temporal_code(offset) for offset in offsets])  # (slots, memory_dim)
        positions = (where[None] + codes[:, None]).flatten(0, 1)
        pointers, pointer_codes = self.sam2.split_pointers(memory.pointers[:, pointing], self.sam2.pointer_code(ages))
        tokens = torch.cat([memory.maps[:, spatial].flatten(1, 2), pointers], dim=1)
        return tokens, torch.cat([positions, pointer_codes]), pointers.shape[1]


def _joined(memories: Sequence[SansaMemory]) -> SansaMemory:
    return SansaMemory(torch.cat([m.maps for m in memories], dim=1), torch.cat([m.pointers for m in memories], dim=1))


def _output(found: Decoded) -> SegmenterOutput:
    return SegmenterOutput(found.mask_logits, found.iou_pred, found.object_logits)
