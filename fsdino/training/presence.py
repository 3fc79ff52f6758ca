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
from fsdino.base.resize import Resize
from fsdino.base.storage import load, rewrite_checkpoint
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode import TrainEpisodes, collate_episodes
from fsdino.data.splits import TrainSet
from fsdino.models.presence import PresenceHead
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.training.episode_data import CachedMaps, EpisodesWithMaps

STEPS, CHECK_EVERY = 600, 20
LOOKED_AT, MIN_LACKING = 64, 0.2  # images per class that are looked at, and the part that must lack it


@dataclass(frozen=True)
class Evidence:
    """What the presence head judges, with the truth.

    Args:
        inputs: (N, E) of `FewShotSegmenter.presence_evidence`.
        present: (N,) float in {0, 1}.
    """

    inputs: Tensor
    present: Tensor


@dataclass
class PresencePart:
    """Stage 3: the presence head learns from queries that lack the class, all else frozen, and is calibrated.

    Args:
        episodes: to train on, half of them without the object; half as many calibrate. 0 leaves the stage out.
    """

    episodes: int = 1600


@dataclass(frozen=True)
class PresenceData:
    """Where the episodes come from.

    Args:
        chosen: the training side; its held-out classes stop and calibrate, without any usable one the trained do.
        shots: references per episode.
        maps: cached maps of the frozen encoder; None runs it.
        seed: of the draws.
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

    def _absentable(self, index: ClassIndex, classes: Sequence[int]) -> list[int]:
        """Classes that a fair part of the images lack; of each class at most 64 are looked at."""
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
            epoch=1_000_000 + int(held_out),  # past every epoch of episode training, so that no draw repeats
            ignore_classes=self.chosen.ignore_classes,
            absent_prob=0.5,
        )
        return drawn if self.maps is None else EpisodesWithMaps(drawn, self.maps)


@torch.no_grad()
def collect_evidence(
    model: FewShotSegmenter, episodes: Dataset[dict[str, Any]], batch_size: int = 16, num_workers: int = 0
) -> Evidence:
    """Run a segmenter over episodes and keep what its presence head judges.

    Args:
        model: on the device to compute on.
        episodes: with pixels or cached maps.
        batch_size: episodes at a time.
        num_workers: loader processes.

    Returns:
        Evidence on the CPU; an episode counts as present if its query mask has a pixel of the object.
    """
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
        present.append((batch["query_mask"] == 1).flatten(1).any(1).float())
    return Evidence(torch.cat(inputs), torch.cat(present))


def fit_head(dim: int, train: Evidence, held_out: Evidence, lr: float = 5e-3, seed: int = 0) -> PresenceHead:
    """Train a presence head and calibrate it.

    Args:
        dim: width of the mask token.
        train: to learn from.
        held_out: to keep the best step and to calibrate.
        lr: learning rate.
        seed: of the first weights.

    Returns:
        A head with statistics whose sigmoid is a probability.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = PresenceHead(dim, statistics=True)
    # Token and statistics have different scales; weight decay must weigh them alike.
    mean, std = train.inputs.mean(0), train.inputs.std(0).clamp_min(1e-3)
    seen, other = ((part.inputs - mean) / std for part in (train, held_out))
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.1)
    best, state = float("inf"), copy.deepcopy(head.state_dict())
    for step in range(STEPS):
        if step % CHECK_EVERY == 0:  # a few thousand examples are soon learnt by heart; the best step is kept
            with torch.no_grad():
                loss = float(F.binary_cross_entropy_with_logits(head(other)[:, 0], held_out.present))
            if loss < best:
                best, state = loss, copy.deepcopy(head.state_dict())
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(head(seen)[:, 0], train.present).backward()
        optimizer.step()
    head.load_state_dict(state)
    with torch.no_grad():  # the inputs' scale goes into the first layer, the calibration into the last
        head.hidden.weight.div_(std)
        head.hidden.bias.sub_(head.hidden.weight @ mean)
        scale, shift = platt(head(held_out.inputs)[:, 0], held_out.present)
        head.out.weight.mul_(scale)
        head.out.bias.mul_(scale).add_(shift)
    return head


def platt(logits: Tensor, present: Tensor, steps: int = 50) -> tuple[float, float]:
    """Scale and shift that turn logits into calibrated ones (Platt, 1999), by Newton's method.

    Args:
        logits: (N,).
        present: (N,) in {0, 1}; softened as Platt does, so that few examples do not end in certainty.
        steps: of Newton's method.

    Returns:
        Scale, above 0, and shift; the logits as they are where they do not rise with presence.
    """
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
        solution = solution - step * min(1.0, 2.0 / float(step.abs().max().clamp_min(1e-12)))
    scale, shift = (float(value) for value in solution)
    return (scale, shift) if scale > 0 else (1.0, 0.0)


def train_presence(
    model: FewShotSegmenter, data: PresenceData, count: int, batch_size: int = 16, num_workers: int = 0
) -> FewShotSegmenter:
    """A segmenter's copy with a presence head that has seen absent objects.

    Args:
        model: a trained segmenter, on the device to compute on; it stays as it is.
        data: base classes.
        count: episodes to train on; half as many calibrate.
        batch_size: episodes at a time.
        num_workers: loader processes.

    Returns:
        The copy on the CPU, in evaluation mode; all weights but the presence head's are the same.
    """
    dim = model.config.prompt_dim
    wider = copy.deepcopy(model)
    wider.presence = PresenceHead(dim, statistics=True).to(model.device)
    seen, held_out = (
        collect_evidence(wider.eval(), data.episodes(model.resize, size, other), batch_size, num_workers)
        for size, other in ((count, False), (max(2, count // 2), True))
    )
    wider.presence = fit_head(dim, seen, held_out, seed=data.seed)
    wider.config = replace(wider.config, presence_statistics=True)
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
    """Stage 3 of a run: the checkpoint of stage 2 with a new presence head.

    Args:
        trained: checkpoint of stage 2.
        folder: the stage's folder; a finished checkpoint in it is kept.
        data: base classes.
        part: how many episodes.
        batch_size: episodes at a time.
        num_workers: loader processes.
        device: where the model runs.

    Returns:
        The checkpoint to go on with: `trained` itself where the stage is left out or no image lacks its class.
    """
    target = folder / trained.name
    if part.episodes == 0:
        return trained

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
