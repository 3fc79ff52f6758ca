"""Episode training of the SAM2 systems: the same episodes, losses and metric as FS-DINO, their own recipes.

SANSA (arXiv 2505.21795): AdamW, cosine to zero, BCE + Dice, one annotated reference and J targets in turn. FSSAM (arXiv
2505.14100): AdamW, polynomial decay, Dice on the query. Ignored pixels take part in no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fsdino.base.method import FewShotMethod, SegmenterOutput
from fsdino.base.processes import own_items
from fsdino.base.registry import CHECKPOINT_KEY, describe_method
from fsdino.methods.fssam.method import Fssam
from fsdino.methods.sansa.method import Sansa
from fsdino.metrics.threshold import CutCurve
from fsdino.training.losses import bce_loss, dice_loss, focal_loss
from fsdino.training.optim import learning_rate_factor, parameter_groups

LossName = Literal["bce_dice", "focal_dice", "dice"]
ScheduleName = Literal["cosine", "poly"]


class MethodModule(LightningModule):
    """Trains `method.trainable_parameters()` on batches of `collate_episodes`.

    Args:
        method: SANSA, FSSAM, or any method with trainable parameters.
        val_classes: Classes of the validation episodes; base classes, never novel ones.
        loss: "bce_dice" (SANSA's paper), "focal_dice" (20 focal + Dice) or "dice" (FSSAM).
        lr: Peak learning rate.
        weight_decay: Decay of matrices and kernels.
        schedule: "cosine" to zero, or "poly" with power 0.9.
        warmup: Share of the steps spent warming up.
        horizon: Length of the schedule over that of the run; FSSAM stops after a third of its schedule, so 3.
        num_targets: J. With more than one, the last J - 1 of an episode's references are targets too, segmented before
            the query, and each prediction becomes a reference for the next; SANSA alone can.
        iou_weight: Weight of the squared error of the predicted IoU; published 0.
        tune_threshold: Whether validation moves the method's threshold from 0.5, as it does FS-DINO's.

    Raises:
        ValueError: For unknown names, a method without trainable parameters, or targets that the method cannot chain.
    """

    def __init__(
        self,
        method: FewShotMethod,
        val_classes: Sequence[int] = (),
        loss: LossName = "bce_dice",
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        schedule: ScheduleName = "cosine",
        warmup: float = 0.0,
        horizon: float = 1.0,
        num_targets: int = 1,
        iou_weight: float = 0.0,
        tune_threshold: bool = True,
    ) -> None:
        super().__init__()
        if loss not in ("bce_dice", "focal_dice", "dice"):
            raise ValueError(f"unknown loss {loss!r}; use 'bce_dice', 'focal_dice' or 'dice'.")
        if schedule not in ("cosine", "poly"):
            raise ValueError(f"unknown schedule {schedule!r}; use 'cosine' or 'poly'.")
        if not method.trainable_parameters():  # type: ignore[operator]
            raise ValueError(f"{type(method).__name__} has nothing to train; train SANSA or FSSAM.")
        if num_targets > 1 and not isinstance(method, Sansa):
            raise ValueError(f"{type(method).__name__} has no chain of targets; set num_targets to 1.")
        if iou_weight == 0 and isinstance(method, Fssam):  # no loss would reach it, which DDP refuses
            method.sam2.net.mask_decoder.iou_prediction_head.requires_grad_(False)
        self.method = method
        self.loss_name: LossName = loss
        self.schedule: ScheduleName = schedule
        self.lr, self.weight_decay, self.warmup, self.horizon = lr, weight_decay, warmup, horizon
        self.num_targets, self.iou_weight, self.tune_threshold = num_targets, iou_weight, tune_threshold
        self.curve = CutCurve(val_classes)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with its schedule over the whole run."""
        optimizer = torch.optim.AdamW(parameter_groups(self.method, self.weight_decay), lr=self.lr)
        total = max(1, int(self.trainer.estimated_stepping_batches * self.horizon))
        warm = int(total * self.warmup)

        def factor(step: int) -> float:
            return learning_rate_factor(step, total, warm) if self.schedule == "cosine" else poly_factor(step, total)

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets `load_method` open the checkpoint."""
        checkpoint[CHECKPOINT_KEY] = describe_method(self.method)

    @property
    def model(self) -> FewShotMethod:
        """The method, under the name that callbacks know."""
        return self.method

    def forward(self, batch: dict[str, Tensor]) -> SegmenterOutput:
        """Predict the queries of a batch of episodes, from cached maps of FSSAM's encoder where it holds them."""
        if isinstance(self.method, Fssam) and "query_features" in batch:
            found, wanted = batch["support_features"].float(), batch["query_features"].float()
            memory = self.method.encode_support(batch["support_images"], batch["support_masks"], found)
            return self.method.decode_query(memory, batch["query_image"], wanted)
        return self.method(batch["query_image"], batch["support_images"], batch["support_masks"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean loss over the targets of a batch."""
        parts = [self.losses(output, truth) for output, truth in self._targets(batch)]
        losses = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        loss = torch.stack(list(losses.values())).sum()
        count = len(batch["query_mask"])
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=count)
        self.log("train/lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def _targets(self, batch: dict[str, Tensor]) -> list[tuple[SegmenterOutput, Tensor]]:
        """Predictions and truths of the J targets in turn, the query last."""
        if self.num_targets == 1:
            return [(self(batch), batch["query_mask"])]
        images, masks = batch["support_images"], batch["support_masks"]
        given = images.shape[1] - (self.num_targets - 1)
        if given < 1:
            raise ValueError(
                f"{self.num_targets} targets need episodes of at least {self.num_targets} shots (one annotated, the "
                f"others are targets), got {images.shape[1]}; set shots to {self.num_targets}."
            )
        targets = torch.cat([images[:, given:], batch["query_image"][:, None]], dim=1)  # (B, J, 3, S, S)
        truths = [*batch["support_truths"][:, given:].long().unbind(1), batch["query_mask"]]
        assert isinstance(self.method, Sansa)
        return list(zip(self.method.forward_targets(targets, images[:, :given], masks[:, :given]), truths))

    def losses(self, output: SegmenterOutput, truth: Tensor) -> dict[str, Tensor]:
        """The weighted parts of the loss.

        Args:
            output: Of the method.
            truth: (B, S, S) in {0, 1, 255}; 255 takes part in nothing.

        Returns:
            Scalars by name; their sum is the loss.
        """
        logits = output.mask_logits[:, 0].float()
        valid = F.adaptive_avg_pool2d((truth != 255).float(), logits.shape[-1])
        soft = F.adaptive_avg_pool2d((truth == 1).float(), logits.shape[-1]) / valid.clamp(min=1e-6)
        parts = {"dice": dice_loss(logits, soft, valid).mean()}
        if self.loss_name == "bce_dice":
            parts["bce"] = bce_loss(logits, soft, valid).mean()
        elif self.loss_name == "focal_dice":
            parts["focal"] = 20 * focal_loss(logits, soft, valid).mean()
        if self.iou_weight > 0:
            found, wanted = logits.detach() > 0, soft > 0.5
            both, either = (((found & wanted) * valid).sum((1, 2)), ((found | wanted) * valid).sum((1, 2)))
            error = output.iou_pred[:, 0].float() - both / either.clamp(min=1)
            parts["iou"] = self.iou_weight * (error**2).mean()
        return parts

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Counts at every cut, on episodes of classes that are not trained on."""
        output, truth = self(batch), batch["query_mask"]
        logits = F.interpolate(output.mask_logits.float(), truth.shape[-2:], mode="bilinear", align_corners=False)
        own = own_items(batch["episode_index"], self.trainer.global_rank, self.trainer.world_size)
        self.curve.update(logits[own, 0].sigmoid(), truth[own], batch["class_id"][own])
        loss = torch.stack(list(self.losses(output, truth).values())).sum()
        self.log("val/loss", loss, batch_size=len(truth), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Logs mIoU and FB-IoU at the method's cut, which is the best one where it is tuned, and mIoU at 0.5."""
        cut, half = self.curve.best()[0], self.curve.at(0.5)["miou"]
        chosen = self.curve.at(cut if self.tune_threshold else 0.5)
        self.log("val/miou", chosen["miou"], prog_bar=True)
        self.log("val/fb_iou", chosen["fb_iou"])
        self.log("val/miou_at_half", half)
        self.log("val/cut", cut)
        if self.tune_threshold:
            self.method.threshold = cut
        self.curve.reset()


def poly_factor(step: int, total_steps: int, power: float = 0.9) -> float:
    """Polynomial decay from 1 to 0.

    Args:
        step: Optimiser steps taken.
        total_steps: Steps until 0.
        power: Of the remaining share.

    Returns:
        Factor in [0, 1].
    """
    return max(0.0, 1 - step / total_steps) ** power
