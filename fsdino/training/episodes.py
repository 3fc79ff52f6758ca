"""Episode training of every method: what learns, from which losses, and how the threshold is chosen meanwhile.

FS-DINO (arXiv 2504.15669): BCE + Dice, predicted IoU and presence. SANSA (arXiv 2505.21795): BCE + Dice, one annotated
reference and three targets in turn. FSSAM (arXiv 2505.14100): Dice, polynomial decay. Ignored pixels take part in no
loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fsdino.base.checkpoint import CHECKPOINT_KEY
from fsdino.base.memory import SegmenterOutput
from fsdino.base.method import FewShotMethod
from fsdino.base.processes import own_items
from fsdino.base.ranges import Batch, Count, Number, Share, Shots, Weight, check_fields
from fsdino.base.storage import describe
from fsdino.metrics.threshold import ThresholdCurve
from fsdino.training.losses import bce_loss, dice_loss, focal_loss
from fsdino.training.optim import OptimizerName, ScheduleName, build_optimizer, build_schedule

LossName = Literal["bce_dice", "focal_dice", "dice"]


@dataclass
class TrainPart:
    """Stage 2: episodes of base classes. The defaults are FS-DINO's; recipes of other methods name their own.

    Args:
        epochs: epochs.
        epoch_length: episodes an epoch.
        batch_size: episodes a step and device.
        lr: peak learning rate.
        weight_decay: decay of matrices and kernels.
        optimizer: "adamw" or "muon".
        beta2: decay of the optimiser's average of squared gradients.
        schedule: "cosine" to zero, or "poly" with power 0.9.
        warmup: share of the steps spent warming up.
        horizon: length of the schedule over that of the run; FSSAM stops after a third of its schedule, so 3.
        loss: of the mask: "bce_dice", "focal_dice" (20 focal + Dice) or "dice".
        dice_weight: weight of Dice beside the others.
        iou_weight: weight of the squared error of the predicted IoU.
        presence_weight: weight of the presence head's BCE. With 0 nothing but the mask can say that an object is
            absent, so that Dice counts such queries as well.
        num_targets: targets of an episode. With more than one, the last references are targets too, segmented before
            the query, and each prediction becomes a reference for the next; SANSA alone can.
        tune_threshold: whether validation on held-out base classes moves the method's threshold.
        absent_prob: share of episodes whose query lacks the class.
        augment: random crops and colours; only without cached features.
        sam_decoder: FS-DINO: start the decoder from the teacher's; False starts it anew.
        init_from: a trained model to adapt: what `fsdino.load` opens; its configuration holds, and neither teacher nor
            distillation is asked for. None trains a new one.
    """

    epochs: Number = 10
    epoch_length: Count = 1000
    batch_size: Batch = 16
    lr: Weight = 1e-3
    weight_decay: Weight = 0.05
    optimizer: OptimizerName = "adamw"
    beta2: Share = 0.95
    schedule: ScheduleName = "cosine"
    warmup: Share = 0.05
    horizon: Weight = 1.0
    loss: LossName = "bce_dice"
    dice_weight: Weight = 1.0
    iou_weight: Weight = 0.2
    presence_weight: Weight = 0.1
    num_targets: Shots = 1
    tune_threshold: bool = True
    absent_prob: Share = 0.0
    augment: bool = False
    sam_decoder: bool = True
    init_from: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class EpisodeModule(LightningModule):
    """Trains a method on batches of `collate_episodes`, with pixels or with cached maps of its frozen encoder.

    Args:
        val_classes: classes of the validation episodes; base classes, never novel ones.

    Raises:
        ValueError: for a method without trainable parameters.
    """

    def __init__(self, model: FewShotMethod, val_classes: Sequence[int] = (), part: TrainPart | None = None) -> None:
        super().__init__()
        self.part = part = part or TrainPart()
        if not model.trainable_parameters():
            raise ValueError(f"{type(model).__name__} has nothing to train; train FS-DINO, SANSA or FSSAM.")
        # Before the optimiser is made, which takes what requires a gradient.
        model.prepare_training_(iou_weight=part.iou_weight, presence_weight=part.presence_weight)
        # Loaded and built methods are in eval mode and Lightning keeps that, so their dropout would never act.
        self.model = model.train()
        self.curve = ThresholdCurve(val_classes)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule over the whole run."""
        part = self.part
        optimizer = build_optimizer(self.model, part.optimizer, part.lr, part.weight_decay, (0.9, part.beta2))
        steps = int(self.trainer.estimated_stepping_batches)
        return build_schedule(optimizer, steps, part.warmup, part.schedule, part.horizon)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets `fsdino.load` open the checkpoint."""
        checkpoint[CHECKPOINT_KEY] = describe(self.model)

    def forward(self, batch: dict[str, Tensor]) -> SegmenterOutput:
        """Predict the queries of a batch of episodes."""
        return self.model.predict_episodes(batch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch, the mean over its targets."""
        targets = [self.losses(*target) for target in self.model.predict_targets(batch, self.part.num_targets)]
        # Parts first, then their mean over the targets: a chain of three weighs as much as a single query.
        losses = {name: torch.stack([losses[name] for losses in targets]).mean() for name in targets[0]}
        loss, count = self.total(losses), len(batch["query_mask"])
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=count)
        return loss

    def losses(self, output: SegmenterOutput, truth: Tensor) -> dict[str, Tensor]:
        """The parts of the loss, before their weights.

        Args:
            output: of the method.
            truth: (B, S, S) in {0, 1, 255}; 255 takes part in nothing.

        Returns:
            Scalars, of `bce`, `focal`, `dice`, `iou` and `presence` those that the part asks for.
        """
        part, logits = self.part, output.mask_logits[:, 0].float()
        # The truth comes to the logits' grid as shares: a cell at the border of an object is partly object.
        valid = F.adaptive_avg_pool2d((truth != 255).float(), logits.shape[-1])
        soft = F.adaptive_avg_pool2d((truth == 1).float(), logits.shape[-1]) / valid.clamp(min=1e-6)
        present = (truth == 1).flatten(1).any(1).float()

        def over_queries(values: Tensor) -> Tensor:
            # Where a presence head answers for absent objects, Dice and IoU have nothing to say of an empty truth.
            if part.presence_weight == 0:
                return values.mean()
            return (values * present).sum() / present.sum().clamp(min=1)

        losses: dict[str, Tensor] = {}
        if part.loss == "bce_dice":
            losses["bce"] = bce_loss(logits, soft, valid).mean()
        elif part.loss == "focal_dice":
            # SAM's 20 : 1 (arXiv 2304.02643, appendix A): focal loss discounts most pixels, so it is small beside Dice.
            losses["focal"] = 20 * focal_loss(logits, soft, valid).mean()
        losses["dice"] = over_queries(dice_loss(logits, soft, valid))
        if part.iou_weight > 0:
            # The head learns to tell the mask's quality; the mask must not move towards an easy guess, so detached.
            found, wanted = logits.detach() > 0, soft > 0.5
            both, either = ((found & wanted) * valid).sum((1, 2)), ((found | wanted) * valid).sum((1, 2))
            losses["iou"] = over_queries((output.iou_pred[:, 0].float() - both / either.clamp(min=1)) ** 2)
        if part.presence_weight > 0:
            logit = output.presence_logit[:, 0].float()
            losses["presence"] = F.binary_cross_entropy_with_logits(logit, present)
        return losses

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of what `losses` returned."""
        part = self.part
        weights = {"dice": part.dice_weight, "iou": part.iou_weight, "presence": part.presence_weight}
        return sum((weights.get(name, 1.0) * value for name, value in losses.items()), torch.zeros(()).to(self.device))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Counts at every threshold, on episodes of classes that are not trained on."""
        output, truth = self(batch), batch["query_mask"]
        # The threshold is chosen where it is used: on probabilities at the size of the truth, not on the logits' grid.
        logits = F.interpolate(output.mask_logits.float(), truth.shape[-2:], mode="bilinear", align_corners=False)
        # A distributed sampler repeats episodes to fill its last batch; each must count once for the threshold.
        own = own_items(batch["episode_index"], self.trainer.global_rank, self.trainer.world_size)
        self.curve.update(logits[own, 0].sigmoid(), truth[own], batch["class_id"][own])
        self.log("val/loss", self.total(self.losses(output, truth)), batch_size=len(truth), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Logs mIoU and FB-IoU at the method's threshold, the best one where it is tuned, and mIoU at 0.5."""
        # Before the checkpoint of this epoch is written, so that it holds the threshold that belongs to its weights.
        best = self.curve.best().threshold
        if self.part.tune_threshold:
            self.model.threshold = best
        chosen = self.curve.at(best if self.part.tune_threshold else 0.5)
        self.log("val/miou", chosen["miou"], prog_bar=True)
        self.log("val/fb_iou", chosen["fb_iou"])
        self.log("val/miou_at_half", self.curve.at(0.5)["miou"])
        self.log("val/threshold", best)
        self.curve.reset()
