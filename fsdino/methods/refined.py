"""A method's masks redrawn by SAM: each part of the coarse mask prompts SAM, whose mask replaces it if the two agree.

The coarse map becomes a click on its best place, a box and a mask prompt, as in PerSAM (Zhang et al. 2023, arXiv
2305.03048, section 3.2); each connected part by itself, since SAM draws one object a prompt. SAM's encoder runs once an
image, whatever the number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.base import registry
from fsdino.base.memory import Memory, SegmenterOutput, Shape
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.resize import Resize
from fsdino.methods.prototype import CERTAIN
from fsdino.teachers.architecture import SamConfig, build_sam
from fsdino.teachers.prompting import decode_prompts, mask_ious, tight_boxes
from fsdino.teachers.sam import SamTeacher

PROMPTS_AT_ONCE = 16  # bounds the memory of SAM's decoder, whatever the number of classes and parts


class RefinedMethod(FewShotMethod):
    """A frozen SAM behind another method, which alone remembers and finds; score and presence stay that method's.

    Args:
        coarse: the method that finds; its own threshold decides what of its map is a part.
        teacher: the SAM.
        parts: connected parts of a mask that SAM redraws, the largest; smaller ones stay as they are.
        agreement: IoU with its part, in [0, 1], below which SAM's mask is not taken: what SAM drew is another thing.
    """

    name = "refined"
    title = "refined by SAM"
    memory_type = Memory

    def __init__(self, coarse: FewShotMethod, teacher: SamTeacher, parts: int = 8, agreement: float = 0.5) -> None:
        # One square for both, the larger one: neither sees less than it would alone.
        super().__init__(Resize(max(coarse.img_size, teacher.img_size), coarse.resize.mode))
        self.coarse, self.sam, self.sam_config = coarse, teacher.sam, teacher.config
        self.parts = parts
        self.agreement = agreement
        self.title = f"{coarse.title}, refined by SAM"  # type: ignore[misc]
        self.memory_type = coarse.memory_type  # type: ignore[misc]
        self.takes_negatives = coarse.takes_negatives  # type: ignore[misc]
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def build(
        cls,
        coarse: Mapping[str, Any],
        checkpoint: str | None = None,
        config: Mapping[str, Any] | None = None,
        coarse_threshold: float | None = None,
        **kwargs: Any,
    ) -> RefinedMethod:
        """The method from plain arguments.

        Args:
            coarse: {"method": name in the registry, and the arguments of its `build`}.
            checkpoint: what `SamTeacher.from_checkpoint` opens (a file, an address, or vit_b / vit_l / vit_h).
            config: without a checkpoint: the fields of a `SamConfig`, whose weights are random.
            coarse_threshold: probability above which a position is of a part; None: the coarse method's own.
            kwargs: as in the constructor.
        """
        finder = registry.build(coarse["method"], **{k: v for k, v in coarse.items() if k != "method"})
        finder.threshold = finder.threshold if coarse_threshold is None else coarse_threshold
        if checkpoint is not None:
            return cls(finder, SamTeacher.from_checkpoint(checkpoint), **kwargs)
        sizes = SamConfig(**(config or {}))
        return cls(finder, SamTeacher(build_sam(sizes), sizes), **kwargs)

    @classmethod
    def over(cls, coarse: FewShotMethod, checkpoint: str | Path) -> RefinedMethod:
        """A method that is there already, behind the SAM of a file; see `SamTeacher.from_checkpoint`."""
        return cls(coarse, SamTeacher.from_checkpoint(checkpoint).to(coarse.device))

    def arguments(self) -> dict[str, Any] | None:
        """See `FewShotMethod.arguments`; the fingerprint covers both, since masks come from both."""
        found = self.coarse.arguments()
        if found is None:
            return None
        return {
            "coarse": {"method": self.coarse.name, **found},
            "config": {**asdict(self.sam_config), "global_blocks": list(self.sam_config.global_blocks)},
            "coarse_threshold": self.coarse.threshold,
            "parts": self.parts,
            "agreement": self.agreement,
        }

    def summary(self) -> str:
        """See `FewShotMethod.summary`."""
        size = sum(p.numel() for p in self.sam.parameters()) / 1e6
        return f"{self.coarse.summary()}, redrawn by a SAM of {size:.1f} M parameters"

    # ---- what the coarse method does alone

    @property
    def takes_hints(self) -> bool:
        """As the coarse method."""
        return self.coarse.takes_hints

    def remember_references(self, references: Sequence[Reference]) -> Any:
        """As the coarse method."""
        return self.coarse.remember_references(references)

    def draw_mask(self, reference: Reference) -> np.ndarray:
        """As the coarse method."""
        return self.coarse.draw_mask(reference)

    def memory_shapes(self) -> dict[str, Shape]:
        """As the coarse method."""
        return self.coarse.memory_shapes()

    def join(self, memories: Sequence[Any]) -> list[Any]:
        """As the coarse method."""
        return self.coarse.join(memories)

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> Any:
        """As the coarse method, from squares that may be larger than its own."""
        masks = _to_side(support_masks.flatten(0, 1)[:, None], self.coarse.img_size).clamp(0.0, 1.0)
        images = _to_side(support_images.flatten(0, 1), self.coarse.img_size)
        shape = support_masks.shape[:2]
        return self.coarse.encode_support(images.unflatten(0, shape), masks[:, 0].unflatten(0, shape))

    # ---- what SAM adds

    def encode_query(self, query_image: Tensor) -> tuple[Any, Tensor]:
        """What the coarse method encodes, and SAM's embedding (B, D, h, w)."""
        pixels = _to_side(query_image, self.sam_config.img_size) * 255
        pixels = (pixels - self.sam.pixel_mean) / self.sam.pixel_std
        embedding = self.sam.image_encoder(pixels.to(next(self.sam.parameters()).dtype))
        return self.coarse.encode_query(_to_side(query_image, self.coarse.img_size)), embedding

    def decode_query(self, memory: Any, query_image: Tensor) -> SegmenterOutput:
        """See `FewShotMethod.decode_query`."""
        return self.decode_encoded(memory, self.encode_query(query_image))

    def decode_encoded(self, memory: Any, encoded: tuple[Any, Tensor]) -> SegmenterOutput:
        """The coarse method's answer with the masks redrawn, on SAM's grid (N, 1, 4h, 4w)."""
        inner, embedding = encoded
        found = self.coarse.decode_encoded(memory, inner)
        # Less the logit of its threshold, so that 0 cuts both the coarse method's masks and SAM's.
        coarse = _to_side(found.mask_logits.float(), 4 * embedding.shape[-1])[:, 0] - logit(self.coarse.threshold)
        rows, parts = largest_parts(coarse > 0, self.parts)  # coarse: (N, 4h, 4w)
        redrawn = torch.zeros_like(coarse).index_add_(0, rows, parts.to(coarse.dtype)) > 0
        logits = coarse.masked_fill(redrawn, -CERTAIN)
        for start in range(0, len(rows), PROMPTS_AT_ONCE):
            chosen = slice(start, start + PROMPTS_AT_ONCE)
            drawn = self._redraw(coarse[rows[chosen]], parts[chosen], embedding, rows[chosen])
            for row, mask in zip(rows[chosen].tolist(), drawn):
                logits[row] = torch.maximum(logits[row], mask)
        return SegmenterOutput(logits[:, None], found.iou_pred, found.presence_logit)

    def _redraw(self, coarse: Tensor, parts: Tensor, embedding: Tensor, rows: Tensor) -> Tensor:
        """SAM's masks (P, 4h, 4w) of parts (P, 4h, 4w) bool of coarse logits; the coarse ones where SAM disagrees."""
        side = parts.shape[-1]
        scale = self.sam_config.img_size / side
        own = coarse.masked_fill(~parts, -CERTAIN)
        best = own.flatten(1).argmax(1)
        # Cells to pixels whose centres are whole numbers; a box goes from the first cell's edge to the last one's.
        clicks = (torch.stack([best % side, best // side], dim=-1) + 0.5) * scale - 0.5
        boxes = (tight_boxes(parts) + parts.new_tensor([0, 0, 1, 1], dtype=torch.long)) * scale - 0.5
        image = rows if len(embedding) > 1 else torch.zeros_like(rows)
        # Mask prompts were logits of about -10 to 10 in SAM's training, whatever the coarse method's scale is.
        peak = own.flatten(1).amax(1)[:, None, None].clamp_min(1e-6)
        prompt = torch.where(parts, CERTAIN * own / peak, own.new_tensor(-CERTAIN))[:, None]
        masks, _ = decode_prompts(
            self.sam, embedding, image, points=clicks[:, None], labels=torch.ones_like(rows)[:, None], boxes=boxes,
            masks=prompt,
        )  # fmt: skip
        ious = mask_ious(masks > 0, parts[:, None].expand_as(masks))  # (P, 1 + num_multimask)
        agreed, which = ious.max(1)
        taken = masks[torch.arange(len(masks), device=masks.device), which]
        return torch.where((agreed >= self.agreement)[:, None, None], taken, own)


def logit(probability: float) -> float:
    """The logit of a probability in (0, 1)."""
    return log(probability / (1 - probability))


def largest_parts(masks: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The connected parts of masks (N, s, s) bool, at most so many of each, the largest first.

    Returns:
        Row (P,) long of each part's mask, and parts (P, s, s) bool.
    """
    rows, parts = [], []
    for row, mask in enumerate(masks.cpu().numpy().astype(np.uint8)):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        sizes = stats[1:, cv2.CC_STAT_AREA]  # the first is the background
        for number in np.argsort(-sizes, kind="stable")[:most]:
            rows.append(row)
            parts.append(labels == number + 1)
    found = np.stack(parts) if parts else np.zeros((0, *masks.shape[1:]), bool)
    return torch.tensor(rows, dtype=torch.long, device=masks.device), torch.from_numpy(found).to(masks.device)


def _to_side(images: Tensor, side: int) -> Tensor:
    """Squares (N, C, S, S) at another side, smoothed where they shrink."""
    if images.shape[-1] == side:
        return images
    shrinks = side < images.shape[-1]
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=shrinks)
