"""Training of a promptable SAM from masks: clicks, boxes and corrections, decoded for all objects at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from segment_anything.modeling import Sam
from torch import Tensor

from fsdino.base.ranges import Batch, Count, Number, Weight, check_fields
from fsdino.teachers.architecture import SamConfig, build_sam
from fsdino.teachers.prompting import central_clicks, decode_prompts, mask_ious, tight_boxes
from fsdino.training.optim import OptimizerName, build_optimizer, build_schedule
from fsdino.training.prompted import PromptedLoss, objects_of


@dataclass
class TeacherPart:
    """The SAM that is distilled.

    Args:
        checkpoint: "tiny" (bundled), "own" (trained first, see `TeachPart`), vit_b, vit_l, vit_h, or a .pth or
            .safetensors file or URL in SAM's format.
        sha256: the file's digest.
        bf16: its image encoder computes in bfloat16, for caches and in live steps.
        compile: its image encoder goes through torch.compile, which takes a minute or so at the start.
    """

    checkpoint: str = "tiny"
    sha256: str | None = None
    bf16: bool = False
    compile: bool = False


@dataclass
class TeachPart:
    """Stage 0, for `teacher.checkpoint: own`: a promptable SAM from the masks of the training data.

    Args:
        sam: fields of `fsdino.teachers.architecture.SamConfig`.
        vit: weights of a plain ViT under timm's names that its image encoder starts from; None = from nothing.
        prompting: SAM whose prompt encoder and mask decoder it starts from: "tiny" (bundled), a file, or None.
        regions: folders of class-agnostic region maps.
        objects: also learn from the masks of base classes; False makes one teacher that fits every fold.
        region_epochs: epochs on the regions alone before the others; they depend on no fold, and runs share them.
        epochs: epochs on everything.
        epoch_length: images an epoch.
        batch_size: images a step and device.
        max_objects: masks of an image.
        lr: peak learning rate.
        optimizer: "adamw" or "muon".
    """

    sam: dict[str, Any] = field(default_factory=dict)
    vit: str | None = None
    prompting: str | None = None
    regions: list[str] = field(default_factory=list)
    objects: bool = True
    region_epochs: Number = 0
    epochs: Number = 4
    epoch_length: Count = 400
    batch_size: Batch = 4
    max_objects: Count = 6
    lr: Weight = 1e-3
    optimizer: OptimizerName = "muon"

    def __post_init__(self) -> None:
        check_fields(self)


class TeachModule(LightningModule):
    """Trains a SAM as its paper does (section 3 and appendix A), in small.

    A batch is `dict(image (B, 3, S, S) float in [0, 1], masks (B, M, S, S) uint8 {0, 1, 255 = ignore},
    valid (B, M) bool)`; S is the model's `img_size`. Each valid object gets one prompt: a click, a noisy
    box, or both; then with some probability a corrective click with its previous mask.

    Args:
        click_share: share of the objects prompted by one click.
        box_share: share prompted by a box; the others get a box and a click.
        correct_prob: probability of a corrective round in a step.
        seed: of the weights and of all prompts; prompts depend on (seed, step) alone.

    Raises:
        ValueError: for an unknown optimiser, or a batch of another size.
    """

    def __init__(
        self,
        config: SamConfig | None = None,
        lr: float = 2e-3,
        optimizer: OptimizerName = "muon",
        click_share: float = 0.5,
        box_share: float = 0.3,
        correct_prob: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config or SamConfig()
        self.sam = build_sam(self.config, seed=seed).train()
        self.lr, self.optimizer_name = lr, optimizer
        self.loss = PromptedLoss(partial(decode_prompts, self.sam), click_share, box_share, correct_prob)
        self.seed = seed

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule over the whole run."""
        optimizer = build_optimizer(self.sam, self.optimizer_name, self.lr)
        return build_schedule(optimizer, int(self.trainer.estimated_stepping_batches))

    def embed(self, images: Tensor) -> Tensor:
        """Image embeddings (B, D, S / patch, S / patch), with gradient, of images (B, 3, S, S) float in [0, 1]."""
        size = self.config.img_size
        if images.shape[-2:] != (size, size):
            raise ValueError(
                f"expected images of {size}x{size} px (the model's img_size), got "
                f"{images.shape[-2]}x{images.shape[-1]}; resize the images or set img_size."
            )
        return self.sam.image_encoder((images * 255 - self.sam.pixel_mean) / self.sam.pixel_std)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean loss over all prompts of a batch."""
        embedding = self.embed(batch["image"])
        image, masks = objects_of(batch)
        # Scenes without an annotated object must still take part in a distributed step, with a gradient of zero.
        if len(image) == 0:
            return embedding.sum() * 0
        # From the step, not from a running generator: a resumed run repeats its prompts, and processes differ.
        draw = (self.seed * 1_000_003 + self.global_step) * 1024 + self.global_rank
        generator = torch.Generator(self.device).manual_seed(draw)
        loss = self.loss(embedding, image, masks, generator).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Mean IoU over objects after one central click and after the tight box."""
        embedding = self.embed(batch["image"])
        image, masks = objects_of(batch)
        if len(image) == 0:
            return
        scores = evaluate_prompts(self.sam, embedding, image, masks)
        for name, score in scores.items():
            self.log(f"val/{name}", score.mean(), prog_bar=True, batch_size=len(image), sync_dist=True)


@torch.no_grad()
def evaluate_prompts(sam: Sam, embedding: Tensor, image: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """IoU of each object after one central click and after its tight box.

    Args:
        embedding: (B, D, h, w).
        image: (N,) long, the image of each object.
        masks: (N, S, S) uint8 {0, 1, 255 = ignore}, S the model's `img_size`.

    Returns:
        `click_iou` (the best of three by the predicted IoU), `click_single_iou` (the single mask),
        `box_iou`: (N,) each.
    """
    truth, valid = masks == 1, masks != 255
    clicks = central_clicks(truth)[:, None]
    labels = torch.ones(clicks.shape[:2], device=clicks.device)

    def score(logits: Tensor) -> Tensor:
        full = F.interpolate(logits[:, None], truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return mask_ious(full > 0, truth, valid)

    logits, iou_pred = decode_prompts(sam, embedding, image, clicks, labels)
    best = 1 + iou_pred[:, 1:].argmax(1)
    boxed, _ = decode_prompts(sam, embedding, image, boxes=tight_boxes(truth))
    return {
        "click_iou": score(logits[torch.arange(len(best), device=best.device), best]),
        "click_single_iou": score(logits[:, 0]),
        "box_iou": score(boxed[:, 0]),
    }
