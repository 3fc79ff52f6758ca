"""Touching instances told apart, on real photographs: `python -m benchmarks.accuracy.instances`.

The mask of an episode's class becomes instances by its connected parts, or by cutting it at its necks, and COCO's mask
AP over the class's instances says which is better; the true masks, cut alike, say what the cutting alone is worth.
Options are chosen on base classes of two folds (`--part base`), reported on the fixed lists (`--part lists`). Intervals
draw query images anew, both ways alike.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.accuracy.edges import BASE_FOLDS, Part, Subject, base_episodes, chain
from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from fsdino.base.parts import touching_parts
from fsdino.base.result import Segmentation
from fsdino.data.catalog import open_data_set
from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec
from fsdino.evaluation.episode_choice import spread
from fsdino.metrics.bootstrap import percentile_interval

Heights = Literal["distance", "probability", "both"]
Split = Callable[[Segmentation], np.ndarray]  # -> (H, W) int32, 0 off the mask, then a number a part
CONNECTED = "connected parts"


def connected(found: Segmentation) -> np.ndarray:
    """Connected parts, as `Segmentation.instances` has them."""
    return cv2.connectedComponents(found.mask.astype(np.uint8), connectivity=8)[1]


def cut(found: Segmentation, heights: Heights, neck: float, least: float) -> np.ndarray:
    """Parts cut at the saddles of distances, of probabilities above the least one of the mask, or of their product."""
    if not found.mask.any():
        return np.zeros(found.mask.shape, np.int32)
    values = np.ones(found.mask.shape, np.float32)
    if heights != "probability":
        values = cv2.distanceTransform(found.mask.astype(np.uint8), cv2.DIST_L2, 5)
    if heights != "distance":
        floor = found.probs[found.mask].min() - 1e-3
        values = values * (cv2.GaussianBlur(found.probs, (0, 0), 4) - floor).clip(1e-4)
    return touching_parts(np.where(found.mask, values, 0).astype(np.float32), neck, least)


SPLITS: dict[str, Split] = {CONNECTED: connected} | {
    f"{heights}, neck {neck}, least {least}": partial(cut, heights=heights, neck=neck, least=least)
    for heights, neck, least in (
        ("distance", 0.4, 0.3),
        ("distance", 0.5, 0.5),
        ("distance", 0.6, 0.3),
        ("distance", 0.6, 0.5),
        ("distance", 0.7, 0.5),
        ("distance", 0.8, 0.5),
        ("probability", 0.6, 0.5),
        ("probability", 0.8, 0.5),
        ("both", 0.5, 0.5),
        ("both", 0.7, 0.5),
    )
}


@dataclass(frozen=True)
class Asked:
    """One episode: the class's annotations in its query, and what was found there (or the truth as if found)."""

    spec: EpisodeSpec
    fold: int
    truth: list[dict[str, Any]]
    found: dict[str, Segmentation]


def ask(coco: COCO, subject: Subject, spec: EpisodeSpec, fold: int) -> Asked:
    """The method's mask of an episode, and the true one."""
    number = next(i for i, entry in coco.imgs.items() if entry["file_name"] == spec.query)
    notes = coco.loadAnns(coco.getAnnIds(imgIds=[number], catIds=[spec.class_id]))
    truth = [{"rle": coco.annToRLE(note), "iscrowd": int(note.get("iscrowd", 0))} for note in notes]
    image, index = subject.index.load_image(spec.query), subject.index
    height, width = image.shape[:2]
    logits = cv2.resize(subject.logits(spec, image), (width, height), interpolation=cv2.INTER_LINEAR)
    probs = (1 / (1 + np.exp(-logits))).astype(np.float32)
    exact = index.load_mask(spec.query, spec.class_id) == 1
    found = {
        "method": Segmentation(probs > 0.5, probs, 1.0, True),
        "truth": Segmentation(exact, exact.astype(np.float32), 1.0, True),
    }
    return Asked(spec, fold, truth, found)


class Precision:
    """COCO's AP of one way over episodes, an image each, and of samples of them."""

    def __init__(self, asked: Sequence[Asked], source: str, split: Split) -> None:
        notes: list[dict[str, Any]] = []
        answers: list[dict[str, Any]] = []
        self.count = 0
        for image, one in enumerate(asked, start=1):
            about = {"image_id": image, "category_id": one.spec.class_id}
            for note in one.truth:
                area = float(rle_tools.area(note["rle"]))
                box = rle_tools.toBbox(note["rle"]).tolist()
                whole = {"id": len(notes) + 1, "area": area, "bbox": box, "iscrowd": note["iscrowd"]}
                notes.append(about | whole | {"segmentation": note["rle"]})
            found = one.found[source]
            parts = split(found)
            for part in range(1, int(parts.max()) + 1):
                mask = parts == part
                score = float(found.probs[mask].mean()) if source == "method" else float(mask.sum())
                answers.append(
                    about | {"segmentation": rle_tools.encode(np.asfortranarray(mask, np.uint8)), "score": score}
                )
                self.count += 1
        truth = COCO()
        categories = sorted({one.spec.class_id for one in asked})
        sizes = [one.found[source].mask.shape for one in asked]
        truth.dataset = {
            "images": [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes, start=1)],
            "annotations": notes,
            "categories": [{"id": category} for category in categories],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
            self.coco = COCOeval(truth, truth.loadRes(answers), "segm")
            self.coco.params.areaRng, self.coco.params.areaRngLbl = [[0, 1e10]], ["all"]
            self.coco.params.maxDets = [100]
            self.coco.evaluate()
        self._points = self.coco.params.recThrs
        matched = np.array(self.coco.evalImgs, dtype=object).reshape(len(categories), len(asked))
        self._classes = [_by_score(row) for row in matched]

    def of(self, weights: np.ndarray) -> np.ndarray:
        """(R, 2) AP and AP50 in percent of R samples; weights (R, episodes) say how often each holds an episode.

        A class's detections are in one order in all samples, so that samples differ by weights alone; COCO's
        `accumulate` would sort them anew each time, to the same end.
        """
        found = np.full((len(self._classes), len(weights), 10), np.nan)
        for k, (number, episodes, right, wrong) in enumerate(self._classes):
            wanted = weights @ number  # (R,)
            each = weights[:, episodes][:, None]  # (R, 1, D)
            hits, misses = (each * right).cumsum(-1), (each * wrong).cumsum(-1)  # (R, 10, D)
            precision = hits / np.maximum(hits + misses, 1e-9)
            precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
            recall = hits / np.maximum(wanted, 1)[:, None, None]
            for r, t in np.ndindex(*recall.shape[:2]):
                at = np.searchsorted(recall[r, t], self._points, side="left")
                found[k, r, t] = np.append(precision[r, t], 0.0)[at].mean() if wanted[r] else np.nan
        return 100 * np.stack([np.nanmean(found.mean(-1), axis=0), np.nanmean(found[..., 0], axis=0)], axis=-1)


Matched = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _by_score(images: Sequence[dict[str, Any] | None]) -> Matched:
    """A class's wanted instances of each episode; its detections, the best first: episodes, right, wrong (10, D)."""
    number = np.array([0 if one is None else int((np.array(one["gtIgnore"]) == 0).sum()) for one in images])
    there = [(i, one) for i, one in enumerate(images) if one is not None and len(one["dtScores"])]
    if not there:
        return number, np.zeros(0, int), np.zeros((10, 0)), np.zeros((10, 0))
    scores = np.concatenate([one["dtScores"] for _, one in there])
    order = np.argsort(-scores, kind="mergesort")
    matches, ignored = (np.concatenate([one[key] for _, one in there], axis=1) for key in ("dtMatches", "dtIgnore"))
    counted = ~ignored.astype(bool)[:, order]
    right = (matches != 0)[:, order] & counted
    episodes = np.concatenate([np.full(len(one["dtScores"]), i) for i, one in there])[order]
    return number, episodes, right, counted & ~right


def samples(ways: Sequence[Precision], asked: Sequence[Asked], number: int) -> np.ndarray:
    """(ways, 1 + number, 2) AP and AP50, averaged over folds: of all episodes, then of samples of query images."""
    rng, by_fold = np.random.default_rng(0), []
    for fold in sorted({one.fold for one in asked}):
        here = np.array([one.fold == fold for one in asked])
        queries, place = np.unique([one.spec.query for one in asked if one.fold == fold], return_inverse=True)
        draws = rng.multinomial(len(queries), np.full(len(queries), 1 / len(queries)), size=number)
        weights = np.zeros((1 + number, len(asked)), int)
        weights[:, here] = np.concatenate([np.ones((1, here.sum()), int), draws[:, place]])
        by_fold.append([way.of(weights) for way in ways])
    return np.mean(by_fold, axis=0)


def main(
    part: Part = "base",
    folds: tuple[int, ...] = BASE_FOLDS,
    number: int = 60,
    only: tuple[str, ...] = (),
    resamples: int = 300,
    shared: Path = Path("../shared"),
    csv: Path = RESULTS / "instances.csv",
) -> None:
    """Measure ways (all, or some by name) on so many episodes of each fold, and add rows to the CSV."""
    torch.set_num_threads(1)
    root = shared / "data" / "coco386"
    index = open_data_set("coco386", str(root), "test")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(root / "instances.json"))
    subject, asked = Subject(chain(shared), index), []
    for fold in folds:
        listed = EpisodeList.load(root / "episodes" / f"fold{fold}_1shot.json", index.name)
        episodes = base_episodes(index, listed, number) if part == "base" else spread(listed, number)
        asked += [ask(coco, subject, spec, fold) for spec in episodes]
    chosen = {name: split for name, split in SPLITS.items() if not only or name in (CONNECTED, *only)}
    named = f"{part}, folds {' '.join(map(str, folds))}"
    rows: list[Row] = []
    for source in ("method", "truth"):
        ways = [Precision(asked, source, split) for split in chosen.values()]
        values = samples(ways, asked, resamples)
        for name, way, of_way in zip(chosen, ways, values):
            row: Row = {"part": named, "masks": source, "way": name, "episodes": len(asked), "instances": way.count}
            for score, column in (("ap", 0), ("ap50", 1)):
                gain = percentile_interval(of_way[:, column] - values[0][:, column])
                numbers = {"": of_way[0, column], "_gain": gain.value, "_low": gain.low, "_high": gain.high}
                row |= {f"{score}{end}": round(float(value), 3) for end, value in numbers.items()}
            rows.append(row)
            print("  ".join(str(value) for value in row.values()), flush=True)
    protocol = f"chain, ViT-Tiny at 448 px, coco386, {number} one-shot episodes a fold, COCO's mask AP of the class"
    about = provenance(seed=0, protocol=protocol)
    update_rows(csv, [row | about for row in rows], ("part", "masks", "way"))


if __name__ == "__main__":
    run_script(main)
