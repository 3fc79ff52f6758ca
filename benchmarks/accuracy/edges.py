"""What sharpens the edges of a coarse mask on real photographs: `python -m benchmarks.accuracy.edges`.

Every way is measured on the same episodes as bilinear interpolation of a 28 x 28 map: mIoU, boundary IoU and boundary
F, each with the paired difference and its interval (query images drawn anew), and the time and memory of one image.
Ways are chosen on base classes of two folds (`--part base`); what gains in both goes to the fixed lists (`--part
lists`). `edges.csv` also has what did not gain on base classes and was taken out again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.refinements import REFINEMENTS, Refinement
from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from benchmarks.cost.timing import resident_mb
from fsdino.base.memory import image_tensor
from fsdino.base.registry import build
from fsdino.data.catalog import open_data_set
from fsdino.data.class_index import ClassIndex, SubsetIndex
from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec
from fsdino.data.images import read_image
from fsdino.data.splits import validation_episodes
from fsdino.evaluation.episode_choice import spread
from fsdino.methods.chain import ChainMethod
from fsdino.metrics.bootstrap import percentile_interval, resampled_miou
from fsdino.metrics.davis import boundary_f
from fsdino.metrics.edges import band_counts
from fsdino.models.memory import SupportMemory

BASELINE = "bilinear"
BASE_FOLDS = (0, 1)
Part = Literal["base", "lists"]


def chain(shared: Path) -> ChainMethod:
    """The training-free chain on the small real ViT at 448 pixels; its means are of 40 pictures of another data set."""
    weights = str(shared / "weights" / "vit_tiny_patch16_224.safetensors")
    method = build("chain", encoder="vit_tiny_patch16_224", img_size=448, encoder_weights=weights)
    assert isinstance(method, ChainMethod)
    paths = sorted((shared / "data" / "regions" / "images").iterdir())
    return method.fit_means(read_image(path) for path in paths[:: len(paths) // 40]).eval()


class Subject:
    """A method that keeps its memory of an episode's references, and its square logits of images."""

    def __init__(self, method: ChainMethod, index: ClassIndex) -> None:
        self.method, self.index = method, index
        self._memory: dict[tuple[int, tuple[str, ...]], SupportMemory] = {}

    @torch.no_grad()
    def memory(self, spec: EpisodeSpec) -> SupportMemory:
        """What was remembered of an episode's references."""
        key = (spec.class_id, spec.support)
        if key not in self._memory:
            images = torch.stack([self._square(self.index.load_image(name)) for name in spec.support])
            masks = [self.index.load_mask(name, spec.class_id) == 1 for name in spec.support]
            soft = torch.stack([self.method.resize.soft_mask(torch.from_numpy(mask)) for mask in masks])
            self._memory = {key: self.method.encode_support(images[None], soft[None])}
        return self._memory[key]

    @torch.no_grad()
    def logits(self, spec: EpisodeSpec, image: np.ndarray) -> np.ndarray:
        """Logits (s, s) of an image (H, W, 3) uint8."""
        output = self.method.decode_query(self.memory(spec), self._square(image)[None])
        return output.mask_logits[0, 0].float().numpy()

    def _square(self, image: np.ndarray) -> Tensor:
        return self.method.resize.image(image_tensor(image))


@dataclass
class Measured:
    """Counts of one way, a value an episode."""

    area: list[tuple[int, int]] = field(default_factory=list)
    band: list[tuple[int, int]] = field(default_factory=list)
    f: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    extra_mb: float = float("nan")

    def add(self, logits: np.ndarray, truth: np.ndarray, seconds: float) -> None:
        mask, valid, positive = logits > 0, truth != 255, truth == 1
        self.area.append((int((mask & positive).sum()), int(((mask | positive) & valid).sum())))
        self.band.append(band_counts(mask, truth))
        self.f.append(boundary_f(mask, truth))
        self.seconds.append(seconds)

    def scores(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Numerators and denominators of every score."""
        area, band = np.array(self.area).T, np.array(self.band).T
        f = np.array(self.f)
        return {"miou": (area[0], area[1]), "boundary_iou": (band[0], band[1]), "boundary_f": (f, np.ones(len(f)))}


def base_episodes(index: ClassIndex, listed: EpisodeList, number: int) -> EpisodeList:
    """Episodes of a fold's base classes, on photographs that its list does not show."""
    return validation_episodes(
        SubsetIndex.without_images(index, listed.images), index.base_classes(listed.fold), 1, number
    )


def measure(
    ways: Mapping[str, Refinement], subject: Subject, index: ClassIndex, specs: Iterable[EpisodeSpec]
) -> dict[str, Measured]:
    """Measure every way on every episode, in turn; the time is that of segmenting, without remembering."""
    found = {name: Measured() for name in ways}
    for spec in specs:
        subject.memory(spec)
        image, truth = index.load_image(spec.query), index.load_mask(spec.query, spec.class_id)
        started = time.process_time()
        logits = subject.logits(spec, image)
        segmenting = time.process_time() - started
        for name, way in ways.items():
            first = len(found[name].f) == 1  # the first time memory is taken that is kept
            if first:
                Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            before, started = resident_mb() or 0.0, time.process_time()
            fine = way(logits, image)
            seconds = segmenting + time.process_time() - started
            if first:
                found[name].extra_mb = (resident_mb("VmHWM") or float("nan")) - before
            found[name].add(fine, truth, seconds)
    return found


def rows_of(
    found: dict[str, Measured], classes: np.ndarray, folds: np.ndarray, queries: np.ndarray, name: str
) -> list[Row]:
    """One row a way: scores in percent, differences from bilinear with their intervals, time and memory."""

    def samples(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return 100 * resampled_miou(classes, *pair, folds, num_resamples=1000, seed=0, groups=queries)

    plain = {score: samples(pair) for score, pair in found[BASELINE].scores().items()}
    rows = []
    for way, measured in found.items():
        row: Row = {"part": name, "way": way, "episodes": len(classes)}
        for score, pair in measured.scores().items():
            values = samples(pair)
            gain = percentile_interval(values - plain[score])
            numbers = {"": values[0], "_gain": gain.value, "_low": gain.low, "_high": gain.high}
            row |= {f"{score}{end}": round(float(value), 3) for end, value in numbers.items()}
        ratio = np.median(np.array(measured.seconds) / np.array(found[BASELINE].seconds))
        rows.append(row | {"time_ratio": round(float(ratio), 2), "extra_mb": round(measured.extra_mb, 1)})
    return rows


def main(
    part: Part = "base",
    folds: tuple[int, ...] = BASE_FOLDS,
    number: int = 60,
    only: tuple[str, ...] = (),
    shared: Path = Path("../shared"),
    csv: Path = RESULTS / "edges.csv",
) -> None:
    """Measure ways (all, or some by name) on so many episodes of each fold, and add rows to the CSV."""
    torch.set_num_threads(1)
    index = open_data_set("coco386", str(shared / "data" / "coco386"), "test")
    subject = Subject(chain(shared), index)
    chosen = {name: way for name, way in REFINEMENTS.items() if not only or name in (BASELINE, *only)}
    parts, keys = [], []
    for fold in folds:
        listed = EpisodeList.load(shared / "data" / "coco386" / "episodes" / f"fold{fold}_1shot.json", index.name)
        episodes = base_episodes(index, listed, number) if part == "base" else spread(listed, number)
        parts.append(measure(chosen, subject, index, episodes))
        keys += [(spec.class_id, fold, spec.query) for spec in episodes]
    merged = {}
    for name in chosen:
        all_folds = [one[name] for one in parts]
        kinds = ("area", "band", "f", "seconds")
        joined = [[value for one in all_folds for value in getattr(one, kind)] for kind in kinds]
        merged[name] = Measured(*joined, extra_mb=max(one.extra_mb for one in all_folds))
    classes, of_fold, queries = (np.array(column) for column in zip(*keys))
    rows = rows_of(merged, classes, of_fold, queries, f"{part}, folds {' '.join(map(str, folds))}")
    for fold, one in zip(folds, parts):
        chosen_rows = of_fold == fold
        rows += rows_of(one, classes[chosen_rows], of_fold[chosen_rows], queries[chosen_rows], f"{part}, fold {fold}")
    protocol = f"chain, ViT-Tiny at 448 px, coco386, {number} one-shot episodes a fold, image's own size"
    about = provenance(seed=0, protocol=protocol)
    update_rows(csv, [row | about for row in rows], ("part", "way"))
    for row in rows:
        gains = "  ".join(
            f"{score} {row[score]:.2f} {row[f'{score}_gain']:+.2f} "
            f"({row[f'{score}_low']:+.2f} to {row[f'{score}_high']:+.2f})"
            for score in ("miou", "boundary_iou", "boundary_f")
        )
        print(f"{row['part']:<18}{row['way']:<34}{gains}  x{row['time_ratio']} {row['extra_mb']} MB")


if __name__ == "__main__":
    run_script(main)
