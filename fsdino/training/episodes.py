"""Episodic training: with the encoder frozen, prompts, reader and decoder learn to segment from references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fsdino.base.method import SegmenterOutput
from fsdino.base.processes import own_items
from fsdino.base.storage import CHECKPOINT_KEY, describe
from fsdino.metrics.threshold import CutCurve
from fsdino.models.config import SegmenterConfig
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.training.losses import bce_loss, dice_loss
from fsdino.training.optim import OptimizerName, build_optimizer, build_schedule


class MetaModule(LightningModule):
    """Stage 2 of FS-DINO (arXiv 2504.15669): BCE + Dice on episodes of base classes.

    A batch is what `collate_episodes` makes, from pixels (`query_image`, `support_images`) or from cached maps of the
    frozen encoder (`query_feats` (B, L, C, h, w), `support_feats` (B, K, L, C, h, w)), with `support_masks`,
    `query_mask` {0, 1, 255} and `class_id`.

    Args:
        model: what to build.
        val_classes: classes of the validation episodes; base classes, never novel ones.
        lr: peak learning rate.
        weight_decay: decay of matrices and kernels.
        warmup: share of the steps spent warming up.
        optimizer: "adamw" or "muon".
        dice_weight: weight of the Dice loss beside BCE.
        iou_weight: weight of the squared error of the predicted IoU.
        presence_weight: weight of the presence head's BCE; matters where episodes without the object are drawn.
        seed: of the new weights.
    """

    def __init__(
        self,
        model: SegmenterConfig,
        val_classes: Sequence[int] = (),
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        optimizer: OptimizerName = "adamw",
        dice_weight: float = 1.0,
        iou_weight: float = 0.2,
        presence_weight: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = FewShotSegmenter(model).select_trainable_("episodes")
        self.lr, self.weight_decay, self.warmup, self.optimizer_name = lr, weight_decay, warmup, optimizer
        self.dice_weight, self.iou_weight, self.presence_weight = dice_weight, iou_weight, presence_weight
        self.curve = CutCurve(val_classes)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule over the whole run."""
        optimizer = build_optimizer(self.model, self.optimizer_name, self.lr, self.weight_decay)
        return build_schedule(optimizer, int(self.trainer.estimated_stepping_batches), self.warmup)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets `fsdino.load` open the checkpoint."""
        checkpoint[CHECKPOINT_KEY] = describe(self.model)

    def forward(self, batch: dict[str, Tensor]) -> SegmenterOutput:
        """Predict a batch of episodes, from cached maps where the batch has them."""
        if "query_feats" not in batch:
            return self.model(batch["query_image"], batch["support_images"], batch["support_masks"])
        support = list(batch["support_feats"].flatten(0, 1).unbind(1))
        memory = self.model.encode_support_feats(support, batch["support_masks"])
        return self.model.decode_query_feats(memory, list(batch["query_feats"].unbind(1)))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch of episodes."""
        losses = self.losses(self(batch), batch["query_mask"])
        loss = losses["bce"] + self.dice_weight * losses["dice"]
        loss = loss + self.iou_weight * losses["iou"] + self.presence_weight * losses["presence"]
        count = len(batch["query_mask"])
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=count)
        self.log("train/lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def losses(self, output: SegmenterOutput, truth: Tensor) -> dict[str, Tensor]:
        """The parts of the loss.

        Args:
            output: of the model.
            truth: (B, S, S) in {0, 1, 255}; 255 takes part in nothing.

        Returns:
            Scalars `bce`, `dice`, `iou`, `presence`.
        """
        logits = output.mask_logits[:, 0].float()
        valid = F.adaptive_avg_pool2d((truth != 255).float(), logits.shape[-1])
        soft = F.adaptive_avg_pool2d((truth == 1).float(), logits.shape[-1]) / valid.clamp(min=1e-6)
        present = (truth == 1).flatten(1).any(1).float()
        with torch.no_grad():
            both = (((logits > 0) & (soft > 0.5)) * valid).sum((1, 2))
            either = (((logits > 0) | (soft > 0.5)) * valid).sum((1, 2))
            iou = both / either.clamp(min=1)
        iou_error = (output.iou_pred[:, 0].float() - iou) ** 2
        dice = dice_loss(logits, soft, valid)
        return {
            "bce": bce_loss(logits, soft, valid).mean(),
            "dice": (dice * present).sum() / present.sum().clamp(min=1),  # Dice says nothing of an empty truth
            "iou": (iou_error * present).sum() / present.sum().clamp(min=1),
            "presence": F.binary_cross_entropy_with_logits(output.presence_logit[:, 0].float(), present),
        }

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Counts at every cut, on episodes of classes that are not trained on."""
        output = self(batch)
        truth = batch["query_mask"]
        probs = F.interpolate(output.mask_logits.float(), truth.shape[-2:], mode="bilinear", align_corners=False)
        own = own_items(batch["episode_index"], self.trainer.global_rank, self.trainer.world_size)
        self.curve.update(probs[own, 0].sigmoid(), truth[own], batch["class_id"][own])
        self.log("val/loss", self.losses(output, truth)["bce"], batch_size=len(truth), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Logs mIoU and FB-IoU at the best cut, which becomes the model's threshold, and mIoU at 0.5."""
        cut, best = self.curve.best()
        self.log("val/miou", best, prog_bar=True)
        self.log("val/fb_iou", self.curve.at(cut)["fb_iou"])
        self.log("val/miou_at_half", self.curve.at(0.5)["miou"])
        self.log("val/cut", cut)
        self.model.threshold = cut
        self.curve.reset()
