"""Thresholds that a class's references agree on, beside the model's: `python -m benchmarks.accuracy.own_threshold`.

Episodes of several references, drawn by a seed, of classes that the model was not trained on. Both masks of an episode
are of one answer, cut as `fsdino predict` does with and without `--threshold references`; nothing is chosen here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.chain import ROOT, WEIGHTS, ends
from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from fsdino import load
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.registry import build
from fsdino.data.catalog import open_data_set
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.metrics.bootstrap import resampled_miou
from fsdino.metrics.few_shot import intersection_union
from fsdino.models.config import preset
from fsdino.predict.finish import finished
from fsdino.predict.threshold import threshold_of

KEY = ("model", "data", "shots")
Counts = tuple[int, str, np.ndarray, float]


def keep_maps(method: FewShotMethod) -> None:
    """Let a method's frozen encoder see each square once: every reference comes back in many memories."""
    encoder = method.shared_encoder()
    forward, known = encoder.forward, dict[str, list[Tensor]]()

    def one(image: Tensor) -> list[Tensor]:
        key = hashlib.sha1(image.numpy().tobytes()).hexdigest()
        if key not in known:
            known[key] = [found.half() for found in forward(image[None])]
        return [found.float() for found in known[key]]

    encoder.forward = lambda images, last_tap=None: [torch.cat(maps) for maps in zip(*map(one, images))]


def counts(method: FewShotMethod, index: ClassIndex, episodes: EpisodeList) -> Iterator[Counts]:
    """Class, query, (2, 2) intersection and union at the model's and at the own threshold, and the latter."""
    for episode in episodes.episodes:
        of_class = episode.class_id
        references = [
            Reference(index.load_image(name), mask=index.load_mask(name, of_class) == 1, name=name)
            for name in episode.support
        ]
        image, truth = index.load_image(episode.query), index.load_mask(episode.query, of_class)
        joined = method.join([method.remember(references)])
        own, found = threshold_of(method, references), list(method.find(joined, image))
        table = []
        for limit in (None, own):
            # The gate is off: both thresholds cut the same answer.
            (cut,) = finished(found, image, method.threshold, [0.0], own=[limit])
            inter, union = intersection_union(torch.from_numpy(cut.mask), torch.from_numpy(truth))
            table.append([int(inter[1]), int(union[1])])
        yield of_class, episode.query, np.array(table), method.threshold if own is None else own


def row(found: list[Counts], folds: list[int]) -> Row:
    """mIoU of both in percent, with intervals, and the quartiles of the own thresholds."""
    classes, queries = np.array([f[0] for f in found]), np.array([f[1] for f in found])
    table = np.stack([f[2] for f in found])
    drawn = [
        100 * resampled_miou(classes, table[:, i, 0], table[:, i, 1], np.array(folds), 1000, seed=0, groups=queries)
        for i in range(2)
    ]
    result: Row = {}
    for name, values in zip(("fixed", "own"), drawn):
        told = ends(values, name)
        result |= {name: told[name], f"{name}_low": told["low"], f"{name}_high": told["high"]}
    quartiles = np.quantile([f[3] for f in found], (0.25, 0.5, 0.75))
    middle = dict(zip(("lower", "median", "upper"), (round(float(value), 3) for value in quartiles)))
    return (
        result | ends(drawn[1] - drawn[0], "difference") | middle | {"episodes": len(found), "classes": len({*classes})}
    )


def main(
    model: str = "chain",
    data: str = "coco386",
    root: Path | None = ROOT,
    folds: list[int] = [0, 1, 2, 3],  # noqa: B006 - never changed
    shots: int = 5,
    number: int = 60,
    most: int | None = None,
    csv: Path = RESULTS / "own_threshold.csv",
) -> None:
    """Measure one model on one data set.

    Args:
        model: chain, a checkpoint of FS-DINO, or what else `fsdino.load` takes.
        data: name of the data set.
        root: its folder; null where it needs none.
        folds: whose novel classes are asked for.
        shots: references an episode.
        number: episodes a fold.
        most: of them, to try the script; all where left out.
    """
    if model == "chain":
        config = preset("photos")
        method = build("chain", encoder=config.encoder, img_size=config.img_size, encoder_weights=str(WEIGHTS)).eval()
    else:
        method = load(model).eval()
    keep_maps(method)
    index, found, of_fold = (
        open_data_set(data, None if root is None else str(root), "test"),
        list[Counts](),
        list[int](),
    )
    for fold in folds:
        listed = EpisodeList.draw(index, fold, shots, number, seed=7, skip_rare=True)
        some = list(islice(counts(method, index, listed), most))
        found, of_fold = found + some, of_fold + [fold] * len(some)
        print(f"{model} on {data}, fold {fold}: {len(some)} episodes", flush=True)
    head = {"model": f"FS-DINO {method.config.variant}" if method.name == "fsdino" else method.name, "data": data}
    head |= {"shots": shots, "folds": "".join(map(str, folds)), "threshold": method.threshold}
    about = provenance(seed=7, protocol="episodes drawn by the seed; 1000 bootstrap samples of the query images")
    result = head | row(found, of_fold)
    print(*result.values())
    update_rows(csv, [result | about], KEY)


if __name__ == "__main__":
    run_script(main)
