"""PerSAM-like baseline: the references' prototype prompts SAM with its best point, its worst point and its map.

After "Personalize Segment Anything Model with One Shot" (Zhang et al. 2023, arXiv 2305.03048), without training: the
object's mean SAM feature gives a similarity map of the query; its highest place becomes a positive click, its lowest a
negative one, the map itself a dense prompt, and SAM's best mask is fed back for refinement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor

from fsdino.base.memory import Memory, SegmenterOutput
from fsdino.base.method import FewShotMethod
from fsdino.base.resize import Resize, ResizeMode
from fsdino.methods.fssam.formulas import minmax
from fsdino.methods.prototype import CERTAIN, masked_average
from fsdino.teachers.architecture import SamConfig, build_sam
from fsdino.teachers.prompting import decode_prompts
from fsdino.teachers.sam import SamTeacher


@dataclass
class PersamMemory(Memory):
    """The object's mean SAM feature over all references of B episodes, (B, D)."""

    prototype: Tensor


class PersamMethod(FewShotMethod):
    """Prompt a frozen SAM with the references' prototype.

    Args:
        sam: a `segment_anything` model of any size, for instance `SamTeacher(...).sam`.
        dense: whether the similarity map is given as a mask prompt.
        negative: whether the least similar place is given as a negative click.
        refinements: how often SAM's best mask is fed back.
        resize_mode: "squash" or "pad".
    """

    name = "persam"
    title = "PerSAM"
    memory_type = PersamMemory

    def __init__(
        self,
        sam: Sam,
        dense: bool = True,
        negative: bool = True,
        refinements: int = 1,
        resize_mode: ResizeMode = "squash",
    ) -> None:
        super().__init__(Resize(sam.image_encoder.img_size, resize_mode))
        self.sam = sam.requires_grad_(False)
        self.dense = dense
        self.negative = negative
        self.refinements = refinements
        self.sam_config: SamConfig | None = None  # set by `build`
        self.train(self.training)

    @classmethod
    def build(
        cls, checkpoint: str | None = None, config: str | Mapping[str, Any] = "vit_b", **kwargs: Any
    ) -> PersamMethod:
        """The method with a SAM from disk, from the official address, or with random weights.

        Args:
            checkpoint: what `SamTeacher.from_checkpoint` opens (a file, an address, or vit_b / vit_l / vit_h).
            config: without a checkpoint: a name of `SAM_CONFIGS`, or the fields of a `SamConfig`; random weights.
            kwargs: for the constructor.
        """
        if checkpoint is not None:
            teacher = SamTeacher.from_checkpoint(checkpoint)
        elif isinstance(config, str):
            teacher = SamTeacher.random(config)
        else:
            sizes = SamConfig(**config)
            teacher = SamTeacher(build_sam(sizes), sizes)
        method = cls(teacher.sam, **kwargs)
        method.sam_config = teacher.config
        return method

    def sizes_of_weights(self, built_with: Mapping[str, Any]) -> dict[str, Any]:
        """SAM's sizes, which a checkpoint decides."""
        return {} if self.sam_config is None else {"config": asdict(self.sam_config)}

    def train(self, mode: bool = True) -> PersamMethod:
        """SAM is frozen and stays in eval mode."""
        super().train(mode)
        self.sam.eval()
        return self

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> PersamMemory:
        """The object's mean feature, pooled over all shots; shapes as in `FewShotMethod`."""
        batch = len(support_images)
        features = self._embed(support_images.flatten(0, 1))  # (B*K, D, h, w)
        weights = F.adaptive_avg_pool2d(support_masks.flatten(0, 1)[:, None], features.shape[-1])
        tokens = features.flatten(2).transpose(1, 2).reshape(batch, -1, features.shape[1])  # (B, K*h*w, D)
        return PersamMemory(masked_average(tokens, weights.reshape(batch, -1).to(tokens.dtype)))

    def similarity(self, memory: PersamMemory, features: Tensor) -> Tensor:
        """Cosine (B, 1, h, w) of features (B, D, h, w) to the prototype, with a memory of batch B or 1."""
        prototype = F.normalize(memory.prototype.to(features.dtype), dim=1)[..., None, None]
        return (F.normalize(features, dim=1) * prototype).sum(1, keepdim=True)

    def decode_query(self, memory: PersamMemory, query_image: Tensor) -> SegmenterOutput:
        """Prompt SAM; of its three masks, the best by predicted IoU."""
        features = self._embed(query_image)
        own = torch.arange(len(features), device=features.device)  # one prompt an image
        similarity = self.similarity(memory, features)
        points, labels = self._clicks(similarity)
        prompt = None
        if self.dense:
            # Cosines of SAM features lie close together; mask prompts were logits of about -10 to 10 in SAM's training.
            prompt = (2 * minmax(similarity, dims=3) - 1) * CERTAIN
            prompt = F.interpolate(prompt, scale_factor=4, mode="bilinear", align_corners=False)
        for _ in range(1 + self.refinements):
            masks, ious = decode_prompts(self.sam, features, own, points, labels, masks=prompt)
            # A click is an ambiguous prompt, for which SAM's three masks are meant; mask 0 is for certain ones.
            best = 1 + ious[:, 1:].argmax(1)
            mask_logits, iou_pred = masks[own, best][:, None], ious[own, best][:, None]
            prompt = mask_logits
        # SAM never says that an object is absent, so the object counts as present.
        return SegmenterOutput(mask_logits, iou_pred, torch.full_like(iou_pred, CERTAIN))

    def _embed(self, images: Tensor) -> Tensor:
        pixels = (images * 255 - self.sam.pixel_mean) / self.sam.pixel_std
        return self.sam.image_encoder(pixels.to(next(self.sam.parameters()).dtype))

    def _clicks(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Most and least similar place as clicks: (B, P, 2) pixel centres as (x, y), and labels (B, P)."""
        grid = similarity.shape[-1]
        flat = similarity.flatten(1)
        places = [flat.argmax(1)] + ([flat.argmin(1)] if self.negative else [])
        index = torch.stack(places, dim=1)  # (B, P)
        # The middle of a grid cell, in pixels whose centres are whole numbers.
        centres = (torch.stack([index % grid, index // grid], dim=-1) + 0.5) * (self.img_size / grid) - 0.5
        labels = torch.tensor([1, 0], device=index.device)[: len(places)].expand(len(index), -1)
        return centres, labels
