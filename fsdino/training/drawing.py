"""Stage 4: SAM's prompted half learns to draw from what the student sees.

EdgeSAM (arXiv 2312.06660) puts prompts into the loop of distillation: the decoder is asked, and asked again where it
was wrong. Here this comes last, on the finished model and the cached maps of the annotated images, and only the parts
learn that `segment` does not run: masks found from references stay as they are, bit for bit.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import Dataset

from fsdino.base.checkpoint import CHECKPOINT_KEY
from fsdino.base.memory import image_tensor
from fsdino.base.ranges import Batch, Count, Number, Share, Weight, check_fields
from fsdino.base.reference import BOX_END, BOX_START
from fsdino.base.resize import Resize
from fsdino.base.storage import describe
from fsdino.data.splits import TrainSet
from fsdino.models.clicks import SamPrompter, prompter
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.training.episode_data import CachedMaps
from fsdino.training.epoch_data import EpochData
from fsdino.training.optim import OptimizerName, build_optimizer, build_schedule
from fsdino.training.prompted import PromptedLoss, objects_of
from fsdino.training.teacher_data import ClassObjects, object_masks


@dataclass
class DrawPart:
    """Stage 4, for promptable models: SAM's prompted half learns clicks and boxes on the masks of the trained classes.

    Args:
        epochs: epochs in all; 0 leaves the stage out, and SAM's decoder stays as it came.
        epoch_length: images an epoch.
        batch_size: images a step and device.
        max_objects: objects of an image that are asked for in a step.
        correct_prob: probability of a second round, with a click where the first was wrong.
        lr: peak learning rate.
        optimizer: "adamw" or "muon".
    """

    epochs: Number = 4
    epoch_length: Count = 800
    batch_size: Batch = 32
    max_objects: Count = 2
    correct_prob: Share = 0.3
    lr: Weight = 2e-3
    optimizer: OptimizerName = "muon"

    def __post_init__(self) -> None:
        check_fields(self)


class DrawModule(LightningModule):
    """Stage 4: the mask decoder and the own adapter of a model's prompted half learn, and nothing else.

    A batch is `dict(masks (B, M, S, S) uint8 {0, 1, 255 = ignore}, valid (B, M) bool)` with either `feats`
    (B, L, C, h, w), cached maps of the encoder, or `image` (B, 3, S, S) float in [0, 1].

    Args:
        model: promptable; it is changed.
        seed: of new weights, and of all prompts, which depend on (seed, step, process) alone.
    """

    def __init__(self, model: FewShotSegmenter, part: DrawPart | None = None, seed: int = 0) -> None:
        super().__init__()
        self.part = part = part or DrawPart()
        self.model, self.seed = with_sight_(model, seed).requires_grad_(False).eval(), seed
        sam = prompter(model).learn_()
        # One click in two of three steps: more clicks are easier, and a scribble is many.
        self.loss = PromptedLoss(Asked(sam), correct_prob=part.correct_prob, clicks=(1, 1, 4), ambiguous=False)

    def train(self, mode: bool = True) -> DrawModule:
        """As `Module.train`, but the model stays in evaluation mode, as it is used."""
        super().train(mode)
        self.model.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and its schedule over the whole run."""
        optimizer = build_optimizer(self.model, self.part.optimizer, self.part.lr)
        return build_schedule(optimizer, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The checkpoint is a trained model."""
        checkpoint[CHECKPOINT_KEY] = describe(self.model)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean loss over all prompts of a batch."""
        embedding = self.embed(batch)
        image, masks = objects_of(batch)
        # Images without an object must still take part in a distributed step, with a gradient of zero.
        if len(image) == 0:
            return torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum() * 0
        # From the step, not from a running generator: a resumed run repeats its prompts, and processes differ.
        draw = (self.seed * 1_000_003 + self.global_step) * 1024 + self.global_rank
        generator = torch.Generator(self.device).manual_seed(draw)
        loss = self.loss(embedding, image, masks, generator).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["masks"]))
        return loss

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """What is drawn on, (B, D, h, w), of a batch."""
        model = self.model
        with torch.no_grad():
            feats = list(batch["feats"].float().unbind(1)) if "feats" in batch else model.encoder(batch["image"])
            embedding = model.adapter(feats[model.encoder.taps.index(model.config.adapter_tap)])
        return prompter(model).see(embedding, feats)


@dataclass(frozen=True)
class Asked:
    """A prompted half under the arguments of `fsdino.training.prompted.Decode`."""

    sam: SamPrompter

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
        """See `Decode`."""
        where, kinds = [], []
        if points is not None and labels is not None:
            where.append(points)
            kinds.append(labels.long())
        if boxes is not None:
            where.append(boxes.reshape(-1, 2, 2))
            kinds.append(torch.tensor([[BOX_START, BOX_END]], device=boxes.device).expand(len(boxes), 2))
        output = self.sam(embedding[image], torch.cat(where, dim=1), torch.cat(kinds, dim=1), masks)
        return output.mask_logits, output.iou_pred


class DrawScenes(Dataset):
    """Random images with some of their objects, as `fsdino.training.teacher_data.ObjectScenes`, or with cached maps.

    Item i depends on (seed, epoch, i) alone; it has `masks`, `valid`, and `feats` (L, C, h, w) or `image` (3, S, S).

    Args:
        maps: of the objects' images; None reads the images.
    """

    def __init__(
        self,
        objects: ClassObjects,
        resize: Resize,
        part: DrawPart,
        *,
        maps: CachedMaps | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self.objects, self.resize, self.part, self.maps = objects, resize, part, maps
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return self.part.epoch_length

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, 15_485_863, self.epoch, i])
        number = int(rng.integers(len(self.objects)))
        flip = bool(rng.random() < 0.5) and (self.maps is None or self.maps.mirrored)
        labels, name = self.objects.labels(number), self.objects.images[number]
        item = object_masks(labels, self.resize, self.part.max_objects, rng)
        if flip:  # the square, as cached views are: what fills it up is mirrored with it
            item["masks"] = item["masks"].flip(-1)
        if self.maps is not None:
            view = "hflip" if flip else "plain"
            return item | {"feats": self.maps.cache.view(self.maps.place[name], view)}
        image = self.resize.image(image_tensor(self.objects.index.load_image(name)))
        return item | {"image": image.flip(-1) if flip else image}


class DrawData(EpochData):
    """`DrawScenes` of the trained classes; held-out classes are asked for nowhere."""

    def __init__(
        self,
        chosen: TrainSet,
        part: DrawPart,
        resize: Resize,
        *,
        maps: CachedMaps | None = None,
        num_workers: int = 0,
        prefetch: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(part.batch_size, num_workers, prefetch)
        objects = ClassObjects(chosen.index, tuple(chosen.classes), tuple(chosen.ignore_classes))
        self.scenes = DrawScenes(objects, resize, part, maps=maps, seed=seed)

    def train_dataset(self, epoch: int) -> Dataset:
        """Images of an epoch."""
        # A copy: which images show an object is looked up once for all epochs.
        scenes = copy(self.scenes)
        scenes.epoch = epoch
        return scenes


def with_sight_(model: FewShotSegmenter, seed: int = 0) -> FewShotSegmenter:
    """Give a promptable model's prompted half the adapter that it learns to see by; returns the model."""
    old = prompter(model)
    if old.sight is not None:
        return model
    # The threshold lives in the model once it is tuned.
    model.config = replace(model.config, learnt_drawing=True, threshold=model.threshold)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = model.encoder
        model.sam = SamPrompter(model.config, encoder.grid_size, encoder.num_maps * encoder.dim).to(model.device)
    model.sam.load_state_dict({**model.sam.state_dict(), **old.state_dict()})
    return model
