"""Training of a small SAM2 from images with masks: prompts on one view, tracking into another view.

What SAM2's paper does with videos (Ravi et al. 2024, section 5 and appendix D), in small: the second frame of a pair
is the first one moved, turned, scaled and recoloured. So the model learns to find the *same object* again, which is
all that SANSA and FSSAM take for granted; it never sees two objects of one class as a pair.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fsdino.methods.sam2.net import Decoded, Frame, Sam2
from fsdino.methods.sam2.sizes import Sam2Version, sam2_config
from fsdino.teachers.prompting import central_clicks, mask_ious, noisy_boxes, sample_clicks
from fsdino.training.losses import bce_loss, dice_loss
from fsdino.training.optim import OptimizerName, build_optimizer, build_schedule


class Sam2PretrainModule(LightningModule):
    """Trains every part of a SAM2 on still images.

    A batch is `dict(image (B, 3, H, H) float in [0, 1], masks (B, M, H, H) uint8 {0, 1}, valid (B, M) bool)`, as
    `SceneData` gives it; it is brought to the model's size. All draws depend on (seed, step) alone.

    Args:
        size: a name of `SIZES`.
        click_share: share of objects prompted by a click; the others get a box.
        absent_share: share of objects that are looked for in another image, where only "absent" is learnt.
        predicted_share: share of tracked objects whose memory holds the model's own mask in place of the true one.
    """

    def __init__(
        self,
        size: str = "mini",
        img_size: int = 128,
        version: Sam2Version = "2.1",
        lr: float = 1e-3,
        optimizer: OptimizerName = "adamw",
        objects_per_image: int = 2,
        click_share: float = 0.5,
        absent_share: float = 0.1,
        predicted_share: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.sam2 = Sam2(sam2_config(size, img_size, version)).train()
        self.lr, self.optimizer_name = lr, optimizer
        self.objects_per_image = objects_per_image
        self.click_share, self.absent_share, self.predicted_share = click_share, absent_share, predicted_share
        self.seed = seed

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule over the whole run."""
        optimizer = build_optimizer(self.sam2, self.optimizer_name, self.lr)
        return build_schedule(optimizer, int(self.trainer.estimated_stepping_batches))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean loss over prompted and tracked objects."""
        draw = (self.seed * 1_000_003 + self.global_step) * 1024 + self.global_rank
        generator = torch.Generator(self.device).manual_seed(draw)
        parts = self.losses(batch, generator)
        loss = torch.stack(list(parts.values())).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(batch["image"]))
        return loss

    def losses(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars `click`, `box`, `track` and `object`; zero where a batch has no such object."""
        images, image, masks = self._objects(batch, generator)
        moved, moved_masks = second_view(images, image, masks, generator)
        first, second = self.sam2.encode(images), self.sam2.encode(moved)
        count, device = len(image), images.device
        frame = first.take(image)
        clicked = torch.rand(count, generator=generator, device=device) < self.click_share
        guess = frame.embedding.new_zeros(count, 1, *first.high_res[0].shape[-2:])
        parts = {}
        for name, rows in (("click", clicked.nonzero()[:, 0]), ("box", (~clicked).nonzero()[:, 0])):
            found = self._prompted(frame.take(rows), masks[rows], name, generator)
            parts[name] = mask_loss(found, masks[rows]).sum() / count
            # Detached: what a memory holds is given, and tracking must not teach the prompted masks.
            guess[rows] = found.best().mask_logits.detach()
        absent = torch.rand(count, generator=generator, device=device) < self.absent_share
        own = torch.rand(count, generator=generator, device=device) < self.predicted_share
        probs = torch.where(own[:, None, None, None], self.sam2.to_input_size(guess), masks[:, None].float())
        # The next image stands for one without the object; a batch of one has no such image.
        target = torch.where(absent, (image + 1) % len(images), image) if len(images) > 1 else image
        tracked = self._track(frame, probs, second.take(target))
        there = moved_masks.flatten(1).any(1) & (target == image)
        parts["track"] = (mask_loss(tracked, moved_masks) * there).sum() / count
        parts["object"] = F.binary_cross_entropy_with_logits(tracked.object_logits[:, 0].float(), there.float())
        return parts

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Mean IoU after a central click, and of tracking the true mask into the second view."""
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        images, image, masks = self._objects(batch, generator)
        moved, moved_masks = second_view(images, image, masks, generator)
        frame = self.sam2.encode(images).take(image)
        points = central_clicks(masks)[:, None]
        labels = torch.ones(len(image), 1, dtype=torch.long, device=self.device)
        clicked = self.sam2.decode(frame, self.sam2.without_memory(frame), points, labels).best()
        tracked = self._track(frame, masks[:, None].float(), self.sam2.encode(moved).take(image)).best()
        for name, found, truth in (("click_iou", clicked, masks), ("track_iou", tracked, moved_masks)):
            logits = F.interpolate(found.mask_logits, truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
            score = mask_ious(logits > 0, truth).mean()
            self.log(f"val/{name}", score, prog_bar=True, batch_size=len(image), sync_dist=True)

    def _objects(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S), and of some objects of each: image (N,) and mask (N, S, S) bool."""
        size = (self.sam2.img_size, self.sam2.img_size)
        images = F.interpolate(batch["image"], size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
        masks = F.interpolate(batch["masks"].float(), size, mode="nearest-exact") == 1  # (B, M, S, S)
        usable = batch["valid"].bool() & masks.flatten(2).any(-1)
        # Draws are below 1, so 2 sorts what cannot be used behind all usable ones, which come in random order.
        order = torch.rand(usable.shape, generator=generator, device=images.device).masked_fill(~usable, 2.0)
        chosen = order.argsort(1)[:, : self.objects_per_image]
        image, place = usable.gather(1, chosen).nonzero(as_tuple=True)
        return images, image, masks[image, chosen[image, place]]

    def _prompted(self, frame: Frame, masks: Tensor, kind: str, generator: torch.Generator) -> Decoded:
        """Three masks after a click, the single mask after a box."""
        embedding = self.sam2.without_memory(frame)
        if kind == "click":
            points = sample_clicks(masks, generator)[:, None] if len(masks) else masks.new_zeros(0, 1, 2).float()
            labels = torch.ones(len(masks), 1, dtype=torch.long, device=masks.device)
            return self.sam2.decode(frame, embedding, points, labels)
        # SAM2 takes a box as two points, its corners, under labels 2 and 3.
        points = noisy_boxes(masks, generator).reshape(-1, 2, 2)
        labels = torch.tensor([2, 3], device=masks.device).expand(len(masks), -1)
        return self.sam2.decode(frame, embedding, points, labels, multimask=False)

    def _track(self, frame: Frame, probs: Tensor, target: Frame) -> Decoded:
        tokens, pointers = self.sam2.encode_memory(frame, probs), self.sam2.mask_pointer(frame, probs)
        ages = torch.ones(1, device=tokens.device)
        pointer_tokens, codes = self.sam2.split_pointers(pointers[:, None], self.sam2.pointer_code(ages))
        where = self.sam2.memory_position(tokens.device) + self.sam2.temporal_code(0)
        memory = torch.cat([tokens, pointer_tokens], dim=1)
        embedding = self.sam2.attend(target, memory, torch.cat([where, codes]), pointer_tokens.shape[1])
        return self.sam2.decode(target, embedding)


def mask_loss(found: Decoded, masks: Tensor) -> Tensor:
    """(N,): BCE + Dice of the one of M masks that fits (N, S, S) bool best, and the error of every predicted IoU."""
    logits = found.mask_logits.float()  # (N, M, s, s)
    truth = F.adaptive_avg_pool2d(masks[:, None].float(), logits.shape[-1]).expand_as(logits)
    valid = torch.ones_like(logits)
    losses = bce_loss(logits, truth, valid) + dice_loss(logits, truth, valid)  # (N, M)
    with torch.no_grad():
        iou = mask_ious(logits > 0, truth > 0.5)
    # Only the best mask is taught, or all would become the same average; every IoU head learns, to rank them later.
    return losses.amin(1) + ((found.iou_pred.float() - iou) ** 2).mean(1)


def second_view(images: Tensor, image: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Another view of each image: mirrored, turned up to 30 degrees, scaled by up to 1.4, moved, and recoloured.

    Args:
        images: (B, 3, S, S) in [0, 1].
        image: (N,) long, the image of each mask.
        masks: (N, S, S) bool.

    Returns:
        The views (B, 3, S, S) in [0, 1], black beyond the border, and the masks in them (N, S, S) bool.
    """

    def draw(low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(len(images), *shape, generator=generator, device=images.device)
        return low + (high - low) * unit

    angle, scale = draw(-math.pi / 6, math.pi / 6), draw(-math.log(1.4), math.log(1.4)).exp()
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    shift = draw(-0.25, 0.25, 2)
    rows = torch.stack([cosine * mirror, -sine, shift[:, 0], sine * mirror, cosine, shift[:, 1]], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    gain, lift = draw(0.8, 1.2, 3, 1, 1), draw(-0.08, 0.08, 1, 1, 1)
    views = (F.grid_sample(images, grid, align_corners=False) * gain + lift).clamp(0, 1)
    moved = F.grid_sample(masks[:, None].float(), grid[image], mode="nearest", align_corners=False)[:, 0] > 0.5
    return views, moved
