"""Training of a promptable SAM from masks: clicks, boxes and corrections, decoded for all objects at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from segment_anything.modeling import Sam
from torch import Tensor

from fsdino.base.ranges import Batch, Count, Number, Weight, check_fields
from fsdino.teachers.architecture import SamConfig, build_sam
from fsdino.teachers.prompting import (
    central_clicks,
    decode_prompts,
    mask_ious,
    noisy_boxes,
    sample_clicks,
    tight_boxes,
)
from fsdino.training.losses import bce_loss, dice_loss
from fsdino.training.optim import OptimizerName, build_optimizer, build_schedule


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
        self.click_share, self.box_share, self.correct_prob = click_share, box_share, correct_prob
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
        image, masks = _objects(batch)
        # Scenes without an annotated object must still take part in a distributed step, with a gradient of zero.
        if len(image) == 0:
            return embedding.sum() * 0
        # From the step, not from a running generator: a resumed run repeats its prompts, and processes differ.
        draw = (self.seed * 1_000_003 + self.global_step) * 1024 + self.global_rank
        generator = torch.Generator(self.device).manual_seed(draw)
        losses = [
            self._group_loss(embedding, image[rows], masks[rows], use_click, use_box, generator=generator)
            for rows, use_click, use_box in self._groups(len(image), generator)
        ]
        loss = torch.cat(losses).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Mean IoU over objects after one central click and after the tight box."""
        embedding = self.embed(batch["image"])
        image, masks = _objects(batch)
        if len(image) == 0:
            return
        scores = evaluate_prompts(self.sam, embedding, image, masks)
        for name, score in scores.items():
            self.log(f"val/{name}", score.mean(), prog_bar=True, batch_size=len(image), sync_dist=True)

    def _groups(self, count: int, generator: torch.Generator) -> list[tuple[Tensor, bool, bool]]:
        """Splits the objects at random into prompted by click, by box, by both."""
        order = torch.randperm(count, generator=generator, device=self.device)
        draws = torch.rand(1, generator=generator, device=self.device).item()
        # Stochastic rounding keeps the shares right in small batches.
        first = int(self.click_share * count + draws)
        second = max(first, int((self.click_share + self.box_share) * count + draws))
        parts = [(order[:first], True, False), (order[first:second], False, True), (order[second:], True, True)]
        return [part for part in parts if len(part[0])]

    def _group_loss(
        self,
        embedding: Tensor,
        image: Tensor,
        masks: Tensor,
        use_click: bool,
        use_box: bool,
        generator: torch.Generator,
    ) -> Tensor:
        truth = masks == 1
        points = labels = boxes = None
        if use_click:
            points = sample_clicks(truth, generator)[:, None]
            labels = torch.ones(points.shape[:2], device=points.device)
        if use_box:
            boxes = noisy_boxes(truth, generator)
        logits, iou_pred = decode_prompts(self.sam, embedding, image, points, labels, boxes=boxes)
        # One click is ambiguous, so its three masks compete; the single mask learns from every prompt.
        loss, best = self._mask_losses(logits, iou_pred, masks, multimask=not use_box)
        # A second round shows the model its own mask and a click where it was wrong, as a person would.
        if torch.rand(1, generator=generator, device=self.device).item() >= self.correct_prob:
            return loss
        previous = logits[torch.arange(len(best), device=best.device), best][:, None].detach()
        click, label = _corrective_click(previous[:, 0], masks, generator)
        points = click[:, None] if points is None else torch.cat([points, click[:, None]], dim=1)
        labels = label[:, None] if labels is None else torch.cat([labels, label[:, None]], dim=1)
        logits, iou_pred = decode_prompts(self.sam, embedding, image, points, labels, boxes=boxes, masks=previous)
        corrected, _ = self._mask_losses(logits, iou_pred, masks, multimask=False)
        return torch.cat([loss, corrected])

    def _mask_losses(self, logits: Tensor, iou_pred: Tensor, masks: Tensor, multimask: bool) -> tuple[Tensor, Tensor]:
        """Losses (N,) of the mask(s) that the prompt asks for, and the index (N,) of the mask that goes on."""
        masks = F.interpolate(masks[:, None].float(), logits.shape[-2:], mode="nearest-exact")
        truth, valid = (masks == 1).float(), (masks != 255).float()
        logits, iou_pred = (logits, iou_pred) if multimask else (logits[:, :1], iou_pred[:, :1])
        truth, valid = truth.expand_as(logits), valid.expand_as(logits)
        # BCE in place of SAM's focal loss, with which a small model sits longer at predicting no mask at all.
        losses = bce_loss(logits, truth, valid) + dice_loss(logits, truth, valid)
        with torch.no_grad():
            iou = mask_ious(logits > 0, truth > 0, valid > 0)
        score_loss = (iou_pred - iou) ** 2
        if not multimask:
            return losses[:, 0] + score_loss[:, 0], torch.zeros(len(losses), dtype=torch.long, device=losses.device)
        # Only the best of three is taught, or all three would become the same average; the single mask always learns.
        smallest, best = losses[:, 1:].min(dim=1)
        return 0.5 * (smallest + losses[:, 0]) + score_loss.mean(1), best + 1


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


def _objects(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Image index (N,) and mask (N, S, S) of the valid objects that have a pixel."""
    masks = batch["masks"]
    keep = batch["valid"].bool() & (masks == 1).flatten(2).any(-1)
    image, index = keep.nonzero(as_tuple=True)
    return image, masks[image, index]


def _corrective_click(logits: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A click (N, 2) in the error region of a prediction, with its label (N,); on the object if nothing is wrong."""
    logits = F.interpolate(logits[:, None], masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    truth = masks == 1
    error = ((logits > 0) != truth) & (masks != 255)
    # A perfect prediction leaves no error to click on, yet every object of the batch needs a click.
    error = torch.where(error.flatten(1).any(1)[:, None, None], error, truth)
    click = sample_clicks(error, generator)
    column, row = click.long().unbind(-1)
    label = truth[torch.arange(len(truth), device=truth.device), row, column].float()
    return click, label
