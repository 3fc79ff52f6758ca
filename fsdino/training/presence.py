"""Stage 3: the presence head learns from images that lack the object, and its answer becomes a probability.

Everything else is frozen, so masks stay as they are. Base classes alone are used: some to train the head, the held-out
ones to stop it and to calibrate it (Platt scaling, folded into the head's last layer). A few thousand episodes of
cached features take seconds, so the stage has no checkpoints of its own: an interrupted one starts over.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsdino.base.processes import write_once
from fsdino.base.ranges import Number, check_fields
from fsdino.base.resize import Resize
from fsdino.base.storage import load, rewrite_checkpoint
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode import TrainEpisodes, collate_episodes
from fsdino.data.splits import TrainSet
from fsdino.models.presence import PresenceHead
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.training.episode_data import CachedMaps, EpisodesWithMaps, needs_pixels

STEPS, CHECK_EVERY = 1500, 20
LOOKED_AT, MIN_LACKING = 64, 0.2  # images per class that are looked at, and the part that must lack it


@dataclass(frozen=True)
class Evidence:
    """What the presence head judges, (N, E) of `FewShotSegmenter.presence_evidence`, with the truth (N,) in {0, 1}."""

    inputs: Tensor
    present: Tensor


@dataclass
class PresencePart:
    """Stage 3: the presence head learns from queries that lack the class, all else frozen, and is calibrated.

    Args:
        episodes: to train on, half of them without the object; half as many calibrate. 0 leaves the stage out.
    """

    episodes: Number = 3200

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class PresenceData:
    """Where the episodes come from.

    Args:
        chosen: the training side; its held-out classes stop and calibrate, without any usable one the trained do.
        maps: cached maps of the frozen encoder; None runs it.
    """

    chosen: TrainSet
    shots: int = 1
    maps: CachedMaps | None = None
    seed: int = 0

    @cached_property
    def trained(self) -> list[int]:
        """Classes to train on that can be absent; none in a folder of one class."""
        return self._absentable(self.chosen.index, self.chosen.classes)

    @cached_property
    def held_out(self) -> tuple[ClassIndex, list[int]]:
        """Where to stop and to calibrate, and on which classes."""
        index = self.chosen.val_index
        absentable = self._absentable(index, self.chosen.val_classes)
        usable = [c for c in absentable if len(index.images(c)) > self.shots]
        return (index, usable) if usable else (self.chosen.index, self.trained)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of which a model learns to say that they are absent."""
        index, held_out = self.held_out
        # As users call them: a reference's class is no class of a certain data set.
        known = {*map(self.chosen.index.own_name, self.trained), *map(index.own_name, held_out)}
        return tuple(sorted(known))

    def _absentable(self, index: ClassIndex, classes: Sequence[int]) -> list[int]:
        """Classes that a fair part of the images lack."""
        # A large data set has far more images than an estimate needs, so of each class some are looked at; an image
        # that several classes draw is read once.
        shows: dict[str, set[int]] = {}
        found = []
        for class_id in classes:
            pool = index.candidates(class_id)
            chosen = np.random.default_rng([self.seed, 97, class_id]).permutation(len(pool))[:LOOKED_AT].tolist()
            for i in chosen:
                if pool[i] not in shows:
                    shows[pool[i]] = index.classes_in(pool[i])
            lacking = sum(class_id not in shows[pool[i]] for i in chosen)
            if lacking >= MIN_LACKING * max(1, len(chosen)):
                found.append(class_id)
        return found

    def episodes(self, resize: Resize, count: int, held_out: bool) -> Dataset[dict[str, Any]]:
        """So many episodes, half of which have a query without the object."""
        index, classes = self.held_out if held_out else (self.chosen.index, self.trained)
        drawn = TrainEpisodes(
            index,
            classes,
            resize,
            shots=self.shots,
            length=count,
            seed=self.seed,
            # Past every epoch of episode training, so that no draw repeats.
            epoch=1_000_000 + int(held_out),
            ignore_classes=self.chosen.ignore_classes,
            absent_prob=0.5,
            pixels=needs_pixels(self.maps),
            side=resize.source_side if self.chosen.reduce else None,
        )
        return drawn if self.maps is None else EpisodesWithMaps(drawn, self.maps)


@torch.no_grad()
def collect_evidence(
    model: FewShotSegmenter, episodes: Dataset[dict[str, Any]], batch_size: int = 16, num_workers: int = 0
) -> Evidence:
    """Run a segmenter over episodes, on its own device, and keep on the CPU what its presence head judges."""
    loader = DataLoader(episodes, batch_size, num_workers=num_workers, collate_fn=collate_episodes)
    inputs, present = [], []
    for batch in loader:
        masks = batch["support_masks"].to(model.device)
        if "query_feats" in batch:
            support = list(batch["support_feats"].to(model.device).flatten(0, 1).unbind(1))
            query = list(batch["query_feats"].to(model.device).unbind(1))
        else:
            support = model.encoder(batch["support_images"].to(model.device).flatten(0, 1))
            query = model.encoder(batch["query_image"].to(model.device))
        inputs.append(model.presence_evidence(model.encode_support_feats(support, masks), query).float().cpu())
        # Present is what shows a pixel, not what was drawn as present: a thin object can vanish at the network's size.
        present.append((batch["query_mask"] == 1).flatten(1).any(1).float())
    return Evidence(torch.cat(inputs), torch.cat(present))


def fit_head(
    dim: int, layers: int, train: Evidence, held_out: Evidence, lr: float = 1e-3, seed: int = 0
) -> PresenceHead:
    """Train the presence head of a model of `dim` and `layers` and calibrate it: its sigmoid is a probability."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = PresenceHead(dim, layers)
    # The numbers have different scales; weight decay must weigh them alike.
    mean, std = train.inputs.mean(0), train.inputs.std(0).clamp_min(1e-3)
    seen, other = ((part.inputs - mean) / std for part in (train, held_out))
    # Slowly and with much decay: faster, the best step comes so early that chance decides how good it is.
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=1.0)
    best, state = float("inf"), copy.deepcopy(head.state_dict())
    for step in range(STEPS):
        # A few thousand examples are soon learnt by heart, so the best step on others is kept.
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                loss = float(F.binary_cross_entropy_with_logits(head(other)[:, 0], held_out.present))
            if loss < best:
                best, state = loss, copy.deepcopy(head.state_dict())
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(head(seen)[:, 0], train.present).backward()
        optimizer.step()
    head.load_state_dict(state)
    # The inputs' scale goes into the first layer and the calibration into the last: the head stays a plain head.
    with torch.no_grad():
        head.hidden.weight.div_(std)
        head.hidden.bias.sub_(head.hidden.weight @ mean)
        scale, shift = platt(head(held_out.inputs)[:, 0], held_out.present)
        head.out.weight.mul_(scale)
        head.out.bias.mul_(scale).add_(shift)
    return head


def platt(logits: Tensor, present: Tensor, steps: int = 50) -> tuple[float, float]:
    """Scale, above 0, and shift that turn logits (N,) into calibrated ones (Platt, 1999), by Newton's method.

    (1, 0), which changes nothing, where the logits do not rise with presence.
    """
    # Targets are softened as Platt does, so that few examples do not end in certainty.
    positives = float(present.sum())
    negatives = len(present) - positives
    targets = torch.where(present > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2)).double()
    inputs = torch.stack([logits.double(), torch.ones_like(logits, dtype=torch.float64)], dim=1)  # (N, 2)
    solution = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(steps):
        probs = (inputs @ solution).sigmoid()
        gradient = inputs.T @ (probs - targets)
        curvature = inputs.T @ (inputs * (probs * (1 - probs))[:, None]) + 1e-6 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curvature, gradient)
        # Without a bound the first steps overshoot where the two sides are nearly separable.
        solution = solution - step * min(1.0, 2.0 / float(step.abs().max().clamp_min(1e-12)))
    scale, shift = (float(value) for value in solution)
    return (scale, shift) if scale > 0 else (1.0, 0.0)


def train_presence(
    model: FewShotSegmenter, data: PresenceData, count: int, batch_size: int = 16, num_workers: int = 0
) -> FewShotSegmenter:
    """A segmenter's copy on the CPU with a presence head that has seen absent objects; nothing else differs."""
    dim, layers = model.config.prompt_dim, len(model.compared)
    wider = copy.deepcopy(model)
    wider.presence = PresenceHead(dim, layers).to(model.device)
    seen, held_out = (
        collect_evidence(wider.eval(), data.episodes(model.resize, size, other), batch_size, num_workers)
        for size, other in ((count, False), (max(2, count // 2), True))
    )
    wider.presence = fit_head(dim, layers, seen, held_out, seed=data.seed)
    wider.config = replace(wider.config, presence_likeness=True)
    wider.missed_classes = data.class_names
    return wider.cpu()


def presence_stage(
    trained: Path,
    folder: Path,
    data: PresenceData,
    part: PresencePart,
    *,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Path:
    """Stage 3 of a run: the checkpoint of stage 2, `trained`, with a new presence head in `folder`, or as it is."""
    target = folder / trained.name
    if part.episodes == 0:
        return trained

    # One process writes, the others wait: each would train the same head, and two would write one file.
    def make() -> None:
        if target.is_file():
            return
        if not data.trained:
            print("presence: no image lacks the class, so 'absent' cannot be learnt; the head stays as it is")
            return
        model = load(trained, device=device, method="fsdino")
        rewrite_checkpoint(train_presence(model, data, part.episodes, batch_size, num_workers), trained, target)

    write_once(make)
    return target if target.is_file() else trained
