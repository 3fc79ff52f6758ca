"""Supervised dense pre-training of the tiny DINOv2-architecture encoder on the embedded world's pretrain classes.

Self-supervision does not pay at this size and budget (it stays at chance for minutes); predicting each patch's shape
and texture does. Most steps see patches side by side, the last ones overlapping patches (four times the tokens), as
DINOv2 raises its resolution at the end. In between, a step may see a random half of the overlapping patches: each pixel
still lies in two of them, at half the cost.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from fsdino.data.world.shapes import NUM_SHAPES
from fsdino.data.world.textures import NUM_TEXTURES
from fsdino.models.encoder import create_vit, set_stride_
from fsdino.training.optim import build_optimizer, build_schedule

# Of a patch without an object, beside one full of it: most patches show none and would drown the others.
BACKGROUND_WEIGHT = 0.15


class PretrainModule(LightningModule):
    """Trains a timm ViT to name the shape and the texture that each patch shows.

    A batch is `dict(image (B, 3, S, S) float in [0, 1], shape_map, texture_map (B, S, S) long, -1 = background)`.

    Args:
        stride: pixels between patches in use and in the last steps.
        fine_share: share of the epochs, at the end, at that stride; before, patches lie side by side.
        thin_share: share of those fine epochs, at their start, in which a step sees a random half of the patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: str = "vit_small_patch14_dinov2",
        encoder_kwargs: dict[str, Any] | None = None,
        img_size: int = 112,
        stride: int = 7,
        fine_share: float = 0.2,
        thin_share: float = 0.0,
        lr: float = 2e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.img_size, self.stride, self.fine_share, self.thin_share = img_size, stride, fine_share, thin_share
        self.lr = lr
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.vit = create_vit(encoder, img_size, encoder_kwargs or {}, stride=stride)
            _initialise(self.vit)
            # timm's place for dropping patches, after the positions are added: what is kept knows where it lies.
            self.vit.patch_drop = self.thinning = RandomPatches(self.vit.num_prefix_tokens)
            for stat in ("mean", "std"):
                value = torch.tensor(self.vit.pretrained_cfg[stat]).view(1, 3, 1, 1)
                self.register_buffer(stat, value, persistent=False)
            self.shape_head = nn.Linear(self.vit.embed_dim, NUM_SHAPES + 1)
            self.texture_head = nn.Linear(self.vit.embed_dim, NUM_TEXTURES + 1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule over the whole run."""
        optimizer = build_optimizer(self, "muon", self.lr)
        return build_schedule(optimizer, int(self.trainer.estimated_stepping_batches), warmup=0.03)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patch logits (B, h * w, NUM_SHAPES + 1) and (B, h * w, NUM_TEXTURES + 1); the last entry is background."""
        tokens = self.vit.forward_features((images - self.mean) / self.std)[:, self.vit.num_prefix_tokens :]
        return self.shape_head(tokens), self.texture_head(tokens)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy against the share of each variant among a patch's pixels."""
        epochs = self.trainer.max_epochs or 1
        coarse = round((1 - self.fine_share) * epochs)
        fine = self.current_epoch >= coarse
        thin = fine and self.current_epoch < coarse + round(self.thin_share * (epochs - coarse))
        side = self.vit.patch_embed.proj.kernel_size[0]
        loss, accuracy = self._score(batch, self.stride if fine else side, 0.5 if thin else 1.0)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/shape", accuracy[0], prog_bar=True)
        self.log("train/texture", accuracy[1], prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Share of object patches whose shape and texture variant is right, with overlapping patches."""
        loss, accuracy = self._score(batch, self.stride)
        count = batch["image"].shape[0]
        self.log("val/loss", loss, batch_size=count)
        self.log("val/shape", accuracy[0], prog_bar=True, batch_size=count)
        self.log("val/texture", accuracy[1], prog_bar=True, batch_size=count)

    def encoder_state(self) -> dict[str, Tensor]:
        """Weights of the encoder alone, as timm names them."""
        return {k: v.detach().clone() for k, v in self.vit.state_dict().items()}

    def _score(self, batch: dict[str, Tensor], stride: int, share: float = 1.0) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        set_stride_(self.vit, stride)
        self.thinning.share = share
        images = batch["image"]
        grid = images.shape[-1] // stride
        heads = self(images)
        losses, accuracies = [], []
        for logits, key in zip(heads, ("shape_map", "texture_map")):
            target = self.thinning.same(patch_shares(batch[key], logits.shape[-1] - 1, grid))
            weight = 1 - (1 - BACKGROUND_WEIGHT) * target[..., -1]
            cross = -(target * logits.float().log_softmax(-1)).sum(-1)
            losses.append((weight * cross).sum() / weight.sum())
            label = target.argmax(-1)
            of_object = label < logits.shape[-1] - 1
            hits = (logits[..., :-1].argmax(-1) == label)[of_object]
            accuracies.append(hits.float().mean() if hits.numel() else torch.zeros((), device=images.device))
        return losses[0] + losses[1], (accuracies[0], accuracies[1])


class RandomPatches(nn.Module):
    """Keeps a random share of each image's patch tokens; stands where a timm ViT has its `patch_drop`."""

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.share = 1.0
        self.kept: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, prefix + N, C) to (B, prefix + share * N, C), another choice at each call."""
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        self.kept = None
        if self.share < 1:
            count = round(self.share * patches.shape[1])
            self.kept = torch.rand(patches.shape[:2], device=tokens.device).argsort(1)[:, :count]
        return torch.cat([prefix, self.same(patches)], dim=1)

    def same(self, values: Tensor) -> Tensor:
        """(B, N, C) to those of the positions that the last call kept."""
        if self.kept is None:
            return values
        return values.gather(1, self.kept.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def patch_shares(labels: Tensor, num_labels: int, grid: int) -> Tensor:
    """How much of each of `grid` x `grid` patches shows each label.

    Args:
        labels: (B, S, S) long, 0 to `num_labels` - 1, or -1 for background.

    Returns:
        (B, grid * grid, num_labels + 1) float, rows sum to 1; the last column is background.
    """
    side = labels.shape[-1]
    # A side that every patch divides evenly, so that all get the same number of samples.
    fine = grid * max(1, round(side / grid))
    labels = F.interpolate(labels[:, None].float(), (fine, fine), mode="nearest-exact")[:, 0].long()
    cell = fine // grid
    cells = labels.unflatten(2, (grid, cell)).unflatten(1, (grid, cell)).transpose(2, 3).flatten(3).flatten(1, 2)
    cells = torch.where(cells < 0, num_labels, cells)
    shares = torch.zeros(*cells.shape[:2], num_labels + 1, device=labels.device)
    return shares.scatter_add_(2, cells, torch.full(cells.shape, 1 / cell**2, device=labels.device))


def _initialise(vit: Any) -> None:
    """Xavier matrices and a sine-cosine position table."""
    # In place of timm's own start, because it made small ViTs learn within minutes.
    for block in vit.blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    side = round(vit.pos_embed.shape[1] ** 0.5)
    table = build_sincos2d_pos_embed([side, side], vit.embed_dim).reshape(1, -1, vit.embed_dim)
    extra = vit.pos_embed.shape[1] - table.shape[1]
    with torch.no_grad():
        vit.pos_embed.zero_()
        vit.pos_embed[:, extra:] = table * 0.5
