"""Losses of masks under simulated prompts: clicks, noisy boxes, and a click where the answer was wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.teachers.prompting import mask_ious, noisy_boxes, sample_clicks
from fsdino.training.losses import bce_loss, dice_loss


class Decode(Protocol):
    """Prompts to masks; arguments and results as of `fsdino.teachers.prompting.decode_prompts`, without the model."""

    def __call__(
        self,
        embedding: Tensor,
        image: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        *,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See the class."""


@dataclass(frozen=True)
class PromptedLoss:
    """The loss of a promptable network as in SAM's training (arXiv 2304.02643, section 3 and appendix A), in small.

    Each object gets one prompt: clicks, a noisy box, or both; then with some probability a corrective click with its
    previous mask.

    Args:
        decode: the network.
        click_share: share of the objects prompted by clicks.
        box_share: share prompted by a box; the others get a box and a click.
        correct_prob: probability of a corrective round, for each kind of prompt.
        clicks: numbers of clicks, of which one is drawn for all objects that are prompted by clicks.
        ambiguous: whether a click is answered by three masks, of which the best learns; else the single mask alone.
    """

    decode: Decode
    click_share: float = 0.5
    box_share: float = 0.3
    correct_prob: float = 0.5
    clicks: tuple[int, ...] = (1,)
    ambiguous: bool = True

    def __call__(self, embedding: Tensor, image: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
        """One loss an object and round, at least (N,).

        Args:
            embedding: (B, D, h, w).
            image: (N,) long, the image of each object, N above 0.
            masks: (N, S, S) uint8 {0, 1, 255 = ignore}, each with a pixel of 1; S is the network's side in pixels.
            generator: on the device of `masks`.
        """
        losses = [
            self._group_loss(embedding, image[rows], masks[rows], use_click, use_box, generator=generator)
            for rows, use_click, use_box in self._groups(len(image), generator)
        ]
        return torch.cat(losses)

    def _groups(self, count: int, generator: torch.Generator) -> list[tuple[Tensor, bool, bool]]:
        """Splits the objects at random into prompted by click, by box, by both."""
        order = torch.randperm(count, generator=generator, device=generator.device)
        draws = torch.rand(1, generator=generator, device=generator.device).item()
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
            points = torch.stack([sample_clicks(truth, generator) for _ in range(self._clicks(generator))], dim=1)
            labels = torch.ones(points.shape[:2], device=points.device)
        if use_box:
            boxes = noisy_boxes(truth, generator)
        logits, iou_pred = self.decode(embedding, image, points, labels, boxes=boxes, masks=None)
        # One click is ambiguous, so its three masks compete; the single mask learns from every prompt.
        loss, best = self._mask_losses(logits, iou_pred, masks, multimask=self.ambiguous and not use_box)
        # A second round shows the model its own mask and a click where it was wrong, as a person would.
        if torch.rand(1, generator=generator, device=generator.device).item() >= self.correct_prob:
            return loss
        previous = logits[torch.arange(len(best), device=best.device), best][:, None].detach()
        click, label = _corrective_click(previous[:, 0], masks, generator)
        points = click[:, None] if points is None else torch.cat([points, click[:, None]], dim=1)
        labels = label[:, None] if labels is None else torch.cat([labels, label[:, None]], dim=1)
        logits, iou_pred = self.decode(embedding, image, points, labels, boxes=boxes, masks=previous)
        corrected, _ = self._mask_losses(logits, iou_pred, masks, multimask=False)
        return torch.cat([loss, corrected])

    def _clicks(self, generator: torch.Generator) -> int:
        """Clicks on each object."""
        if len(self.clicks) == 1:
            return self.clicks[0]
        return self.clicks[int(torch.randint(len(self.clicks), (1,), generator=generator, device=generator.device))]

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


def objects_of(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
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
