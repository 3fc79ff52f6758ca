"""Distillation: the adapter learns to turn the frozen encoder's shallow map into the teacher's embedding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fsdino.base.checkpoint import CHECKPOINT_KEY
from fsdino.base.ranges import Batch, Count, Number, Side, Weight, check_fields
from fsdino.base.storage import describe
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.teachers.prompting import decode_prompts
from fsdino.teachers.sam import SamTeacher
from fsdino.training.losses import embedding_cosine_smooth_l1, embedding_mse, mask_agreement, resize_embedding
from fsdino.training.optim import OptimizerName, build_optimizer, build_schedule

EmbeddingLoss = Literal["mse", "cosine_smooth_l1"]
CLICKS = 4  # an image, of the mask loss


@dataclass
class DistillPart:
    """Stage 1: the adapter learns SAM's embedding, coarse to fine.

    Args:
        epochs: epochs in all; 0 leaves the stage out.
        sizes: image sides in pixels, in the order of the run.
        shares: part of the epochs of each size; None = equal.
        epoch_length: images an epoch; None = all.
        val_count: images held out to watch the error.
        batch_size: images a step and device.
        block: keep so many neighbours of the list near each other when it is shuffled, for caches on slow disks; of the
            size of the cache's shards it reads `BLOCKS` of them at a time. None = whole permutations.
        loss: "mse" (the paper's) or "cosine_smooth_l1".
        mask_weight: weight of the extra loss on the teacher's masks under random clicks.
        lr: peak learning rate.
        weight_decay: decay of matrices and kernels.
        optimizer: "adamw" or "muon".
    """

    epochs: Number = 6
    sizes: list[Side] = field(default_factory=lambda: [126, 252, 518])
    shares: list[Weight] | None = None
    epoch_length: Count | None = None
    val_count: Number = 64
    batch_size: Batch = 32
    block: Count | None = None
    loss: EmbeddingLoss = "mse"
    mask_weight: Weight = 0.0
    lr: Weight = 1e-3
    weight_decay: Weight = 0.05
    optimizer: OptimizerName = "adamw"

    def __post_init__(self) -> None:
        check_fields(self)


class DistillModule(LightningModule):
    """Stage 1 of FS-DINO (arXiv 2504.15669): only the blocks up to the adapter's tap run, only the adapter learns.

    A batch is `dict(image (B, 3, S, S) float in [0, 1])` with either `target` (B, D, h, w) float16, from a cache, or
    `teacher_image` (B, 3, T, T), which the teacher embeds now. S follows the schedule of `DistillData`.

    Args:
        teacher: needed for live targets and for the mask loss.
        seed: of the clicks, which depend on (seed, step) alone.

    Raises:
        ValueError: for a mask loss without a teacher, a teacher of another width, or a batch without
            any target.
    """

    teacher_mean: Tensor
    teacher_std: Tensor

    def __init__(
        self,
        model: FewShotSegmenter,
        part: DistillPart | None = None,
        teacher: SamTeacher | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.part = part = part or DistillPart()
        if part.mask_weight > 0 and teacher is None:
            raise ValueError("the mask loss needs the teacher's decoder; give a teacher or set mask_weight to 0.")
        dim = model.config.prompt_dim
        if teacher is not None and teacher.dim != dim:
            raise ValueError(
                f"teacher {teacher.name!r} gives {teacher.dim} channels, the adapter {dim}; "
                f"set prompt_dim to {teacher.dim}."
            )
        self.model, self.seed = model.select_trainable_("distill"), seed
        # `SamTeacher` is not an `nn.Module`, so checkpoints hold the student alone.
        self.teacher = teacher
        self.register_buffer("teacher_mean", torch.zeros(dim))
        self.register_buffer("teacher_std", torch.zeros(dim))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule over the whole run."""
        part = self.part
        optimizer = build_optimizer(self.model, part.optimizer, part.lr, part.weight_decay)
        return build_schedule(optimizer, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Marks the checkpoint as distilled, not yet trained on episodes."""
        checkpoint[CHECKPOINT_KEY] = describe(self.model, "distilled")

    def on_fit_start(self) -> None:
        """Moves the teacher to this device and takes its channel statistics, once."""
        if self.teacher is not None:
            self.teacher.to(self.device)
        if self.part.loss == "cosine_smooth_l1" and not self.teacher_std.any():
            # From training images alone, and kept in the checkpoint, so that a resumed run uses the same.
            rows = self.trainer.datamodule.sample_targets(self)  # type: ignore[attr-defined]
            flat = rows.float().transpose(0, 1).flatten(1)
            self.teacher_mean.copy_(flat.mean(1))
            self.teacher_std.copy_(flat.std(1).clamp(min=1e-4))

    def target(self, batch: dict[str, Tensor]) -> Tensor:
        """The teacher's embedding (B, D, h, w) of a batch, cached or live: float32 with float16's precision."""
        if "target" in batch:
            return batch["target"].float()
        if "teacher_image" not in batch or self.teacher is None:
            raise ValueError(
                "distillation has no targets: give DistillData a cache, or its teacher_size and the module a teacher."
            )
        # Rounded as a cache rounds, so that cached and live targets give the same losses.
        return self.teacher.embed(batch["teacher_image"]).half().float()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        target = self.target(batch)
        student = self.model.embed(batch["image"]).float()
        loss = self.embedding_loss(student, target)
        count = len(student)
        if self.part.mask_weight > 0:
            masks = self.mask_loss(student, target)
            self.log("train/mask_loss", masks, batch_size=count)
            loss = loss + self.part.mask_weight * masks
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        # Filled there: a number that is copied to a GPU makes the CPU wait.
        self.log("train/size", torch.full((), float(batch["image"].shape[-1]), device=self.device))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Error and cosine on held-out images at the final size."""
        target = self.target(batch)
        student = self.model.embed(batch["image"]).float()
        target = resize_embedding(target, (student.shape[-2], student.shape[-1]))
        cosine = F.cosine_similarity(student, target, dim=1).mean()
        self.log("val/mse", F.mse_loss(student, target), prog_bar=True, batch_size=len(student), sync_dist=True)
        self.log("val/cosine", cosine, prog_bar=True, batch_size=len(student), sync_dist=True)

    def embedding_loss(self, student: Tensor, target: Tensor) -> Tensor:
        """The distance of two embeddings (B, D, h, w), on the student's grid; a scalar."""
        target = resize_embedding(target, (student.shape[-2], student.shape[-1]))
        if self.part.loss == "mse":
            return embedding_mse(student, target)
        return embedding_cosine_smooth_l1(student, target, self.teacher_mean, self.teacher_std)

    def mask_loss(self, student: Tensor, target: Tensor) -> Tensor:
        """How far the teacher's decoder drifts when it reads the student's embedding (B, D, h, w); a scalar."""
        assert self.teacher is not None  # the constructor refused otherwise
        sam, size, grid = self.teacher.sam, self.teacher.img_size, self.teacher.grid
        count = len(student) * CLICKS
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.global_step)
        points = torch.rand(count, 1, 2, generator=generator, device=self.device) * (size - 1)
        labels = torch.ones(count, 1, device=self.device)
        image = torch.arange(len(student), device=self.device).repeat(CLICKS)
        # Of the teacher's three masks for one click, the one it trusts most; the student's is compared at that place.
        with torch.no_grad():
            teacher_logits, iou_pred = decode_prompts(sam, target, image, points, labels)
            best = 1 + iou_pred[:, 1:].argmax(1)
        logits, _ = decode_prompts(sam, resize_embedding(student, (grid, grid)), image, points, labels)
        rows = torch.arange(count, device=self.device)
        return mask_agreement(logits[rows, best], teacher_logits[rows, best])
