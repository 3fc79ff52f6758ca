"""References of every kind on the embedded world: `python -m benchmarks.accuracy.prompts`.

Simulated users: a click in the middle of the object, three random clicks inside, a tight box, a stroke along it. How
well is the object drawn on the reference itself, how well is it then found in another image, what do corrective
clicks and "not this" bring. Novel classes decide nothing; what had to be chosen was chosen with `--split base`.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import ONE_SHOT, RESULTS, Row, mean_interval, provenance, run_script, write_rows
from fsdino.base.bundled import bundled_file
from fsdino.base.memory import image_tensor
from fsdino.base.reference import Reference, prompt_points
from fsdino.base.storage import fingerprint, load
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.splits import held_out_classes, validation_episodes
from fsdino.data.world.index import SyntheticWorld
from fsdino.models import clicks as model_clicks
from fsdino.models.clicks import prompter
from fsdino.models.memory import SupportMemory
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.teachers.prompting import central_clicks, decode_prompts, mask_ious, sample_clicks, tight_boxes
from fsdino.teachers.sam import SamTeacher

KINDS = ("one click", "three clicks", "box", "scribble")
CORRECTIONS = 3
Scores = dict[tuple[str, str], list[float]]


@dataclass
class Bench:
    """A model, a data set, and what was scored.

    Args:
        model: promptable.
        teacher: the SAM that it was distilled from.
        index: the data set.
    """

    model: FewShotSegmenter
    teacher: SamTeacher
    index: ClassIndex

    def __post_init__(self) -> None:
        self.scores: Scores = defaultdict(list)
        self.generator = torch.Generator().manual_seed(0)
        self.old_decoder = copy.deepcopy(self.model)
        assert self.old_decoder.sam is not None
        self.old_decoder.sam.mask_decoder.load_state_dict(self.model.decoder.state_dict())

    def image(self, name: str) -> Tensor:
        """(1, 3, S, S) in [0, 1]."""
        return self.model.resize.image(image_tensor(self.index.load_image(name)))[None]

    def truth(self, name: str, class_id: int) -> Tensor:
        """(H, W) bool."""
        return torch.from_numpy(self.index.load_mask(name, class_id) == 1)

    def full(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (1, 1, s, s) at an image's own size, (H, W)."""
        return self.model.resize.invert(logits[0, 0].float(), size)

    def points(self, reference: Reference, on_object: bool = True) -> tuple[Tensor, Tensor]:
        """What a reference points at, (1, P, 2) in the square, and labels (1, P)."""
        size = (reference.image.shape[0], reference.image.shape[1])  # type: ignore[union-attr]
        given = prompt_points(reference, size, self.model.resize.content_size(*size), on_object)
        return torch.from_numpy(given[0])[None], torch.from_numpy(given[1])[None]

    def add(self, part: str, name: str, mask: Tensor, truth: Tensor) -> None:
        """Note the IoU of one mask."""
        self.scores[part, name].append(float(mask_ious(mask, truth)))

    def found(self, memory: SupportMemory, feats: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The mask that `segment` gives, presence aside."""
        logits = self.model.decode_query_feats(memory, feats).mask_logits
        return self.full(logits, size).sigmoid() > self.model.threshold


def prompts(mask: Tensor, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    """What simulated users give for an object, as arguments of `Reference`."""
    one = mask[None]
    yield "one click", {"points": central_clicks(one).numpy()}
    yield "three clicks", {"points": torch.cat([sample_clicks(one, generator) for _ in range(3)]).numpy()}
    yield "box", {"box": (tight_boxes(one)[0] + torch.tensor([0.0, 0.0, 1e-3, 1e-3])).tolist()}
    yield "scribble", {"scribble": stroke(mask.numpy())}


def stroke(mask: np.ndarray) -> np.ndarray:
    """A line along an object's longest direction, one pixel wide, a tenth short of both ends; (H, W) uint8."""
    pixels = np.argwhere(mask).astype(float)  # row, column
    around = pixels - pixels.mean(0)
    _, _, axes = np.linalg.svd(around, full_matrices=False)
    near = np.abs(around @ axes[1]) < 1.0 if len(axes) > 1 else np.ones(len(pixels), bool)
    line, along = pixels[near], (around @ axes[0])[near]
    low, high = np.quantile(along, (0.1, 0.9))
    kept = line[(along >= low) & (along <= high)].astype(int)
    drawn = np.zeros(mask.shape, np.uint8)
    drawn[kept[:, 0], kept[:, 1]] = 1
    return drawn


def largest_part(mask: Tensor) -> Tensor:
    """The largest connected part of a mask (H, W)."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.numpy().astype(np.uint8), connectivity=8)
    return torch.from_numpy(parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


def references(bench: Bench, episodes: EpisodeList) -> None:
    """Draw objects from prompts, then find them in another image."""
    model = bench.model
    for spec in episodes:
        support, query = spec.support[0], spec.query
        whole, truth = bench.truth(support, spec.class_id), bench.truth(query, spec.class_id)
        target, size = largest_part(whole), (truth.shape[0], truth.shape[1])
        image = bench.index.load_image(support)
        feats, asked = model.encoder(bench.image(support)), model.encoder(bench.image(query))
        memory = model.encode_support_feats(feats, model.resize.soft_mask(whole.float())[None, None])
        bench.add("found", "mask", bench.found(memory, asked, size), truth)
        embedding = model.adapter(feats[model.encoder.taps.index(model.config.adapter_tap)])
        seen = bench.teacher.embed(bench.image(support))
        for kind, given in prompts(target, bench.generator):
            points, labels = bench.points(Reference(image, **given))
            first, other = prompter(model), prompter(bench.old_decoder)
            for name, sam, on in (
                ("SAM's decoder", first, first.see(embedding, feats)),
                ("trained decoder", other, embedding),
            ):
                logits = sam(on, points, labels).mask_logits[:, :1]
                bench.add(f"drawn, {name}", kind, bench.full(logits, size) > 0, target)
            logits = model_clicks.draw(model, feats, points, labels)
            bench.add("drawn", kind, bench.full(logits, size) > 0, target)
            soft = F.interpolate(logits, (model.img_size,) * 2, mode="bilinear", align_corners=False).sigmoid()
            bench.add("found", kind, bench.found(model.encode_support_feats(feats, soft), asked, size), truth)
            logits = teachers_logits(bench, seen, points, labels)
            bench.add("drawn, teacher", kind, bench.full(logits, size) > 0, target)


def teachers_logits(bench: Bench, embedding: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """What the teacher draws for the same points, (1, 1, s, s)."""
    box = points[labels >= 2].reshape(1, 4) if bool((labels >= 2).any()) else None
    clicks = (points, labels.float()) if box is None else (None, None)
    logits, _ = decode_prompts(bench.teacher.sam, embedding, torch.zeros(1, dtype=torch.long), *clicks, boxes=box)
    return logits[:, :1]


def corrections(bench: Bench, episodes: EpisodeList) -> None:
    """Clicks in the middle of the largest error, one after the other."""
    model = bench.model
    for spec in episodes:
        support, query = spec.support[0], spec.query
        truth = bench.truth(query, spec.class_id)
        memory = model.remember([Reference(bench.index.load_image(support), mask=bench.truth(support, spec.class_id))])
        feats, size = model.encoder(bench.image(query)), (truth.shape[0], truth.shape[1])
        mask = bench.found(memory, feats, size)
        bench.add("corrected", "no click", mask, truth)
        clicks: list[Tensor] = []
        for number in range(1, CORRECTIONS + 1):
            error = mask != truth
            if bool(error.any()):
                clicks.append(central_clicks(largest_part(error)[None])[0])
                marks = [int(truth[int(y), int(x)]) for x, y in clicks]
                given = Reference(bench.index.load_image(query), points=torch.stack(clicks).numpy(), labels=marks)
                points, labels = bench.points(given, on_object=False)
                logits = model_clicks.correct(model, memory, feats, points, labels).mask_logits
                mask = bench.full(logits, size).sigmoid() > model.threshold
            bench.add("corrected", f"{number} click{'s'[: number - 1]}", mask, truth)


def not_this(bench: Bench, episodes: EpisodeList) -> None:
    """Queries with another class beside the object, once without and once with a reference of that class."""
    model = bench.model
    for spec in episodes:
        others = sorted(bench.index.classes_in(spec.query) - {spec.class_id})
        if not others:
            continue
        taken = {spec.query, *spec.support}
        shown = [p for p in bench.index.images(others[0]) if p not in taken]
        truth = bench.truth(spec.query, spec.class_id)
        size = (truth.shape[0], truth.shape[1])
        feats = model.encoder(bench.image(spec.query))
        mine = Reference(bench.index.load_image(spec.support[0]), mask=bench.truth(spec.support[0], spec.class_id))
        other = Reference(bench.index.load_image(shown[0]), mask=bench.truth(shown[0], others[0]), negative=True)
        for name, given in (("without", [mine]), ("with", [mine, other])):
            mask = bench.found(model.remember(given), feats, size)
            bench.add("not this", name, mask, truth)
            elsewhere = bench.truth(spec.query, others[0]) & ~truth
            bench.scores["mistaken", name].append(float(mask[elsewhere].float().mean()) if bool(elsewhere.any()) else 0)


def rows(scores: Scores) -> list[Row]:
    """Means with 95 % bootstrap intervals, in percent."""
    rng, found = np.random.default_rng(0), []
    for (part, name), values in scores.items():
        numbers = dict(zip(("iou", "low", "high"), mean_interval(values, rng)))
        found.append({"part": part, "prompt": name, "number": len(values)} | numbers)
    return found


@torch.no_grad()
def main(
    model: str = "tiny",
    split: Literal["base", "novel"] = "novel",
    episodes: int = 200,
    csv: Path = RESULTS / "prompts.csv",
) -> None:
    """Measure the first episodes; base classes are for choosing and are not written to the CSV."""
    index = SyntheticWorld(split)
    if split == "base":
        val = held_out_classes(list(index.class_names), 0.2)
        chosen = validation_episodes(index, val, 1, episodes, seed=5)
    else:
        whole = EpisodeList.load(ONE_SHOT)
        chosen = replace(whole, episodes=whole.episodes[:episodes])
    bench = Bench(load(model, method="fsdino"), SamTeacher.from_checkpoint(bundled_file("tiny_sam")), index)
    for measure in (references, corrections, not_this):
        measure(bench, chosen)
    measured = rows(bench.scores)
    if split == "novel":
        about = provenance(seed=0, protocol=f"first {episodes} one-shot episodes, {split} classes")
        write_rows(csv, [row | {"model": fingerprint(bench.model)} | about for row in measured])
    for row in measured:
        print(*row.values())


if __name__ == "__main__":
    run_script(main)
