"""Cuts that a class's references agree on, beside the chain's: `python -m benchmarks.accuracy.own_cut`.

Episodes of several references on photographs, drawn by a seed. Both masks of an episode are of one answer, cut as
`fsdino predict` does with and without `--threshold references`; nothing is trained, and nothing is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy.chain import ROOT, WEIGHTS, RememberedEncoder, ends
from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from fsdino.base.reference import Reference
from fsdino.data.catalog import open_data_set
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.methods.chain import ChainMethod, default_taps
from fsdino.metrics.bootstrap import resampled_miou
from fsdino.metrics.few_shot import intersection_union
from fsdino.models.config import preset
from fsdino.predict.cut import cut_of
from fsdino.predict.finish import finished

KEY = ("data", "shots")
Counts = tuple[int, str, np.ndarray, float]


def counts(method: ChainMethod, index: ClassIndex, episodes: EpisodeList) -> Iterator[Counts]:
    """Class, query, (2, 2) intersection and union at the chain's and at the class's own cut, and the latter."""
    for episode in episodes.episodes:
        of_class = episode.class_id
        references = [
            Reference(index.load_image(name), mask=index.load_mask(name, of_class) == 1, name=name)
            for name in episode.support
        ]
        image, truth = index.load_image(episode.query), index.load_mask(episode.query, of_class)
        joined = method.join([method.remember(references)])
        own, found = cut_of(method, references), list(method.find(joined, image))
        table = []
        for cut in (None, own):
            (one,) = finished(found, image, method.threshold, cuts=[cut])
            inter, union = intersection_union(torch.from_numpy(one.mask), torch.from_numpy(truth))
            table.append([int(inter[1]), int(union[1])])
        yield of_class, episode.query, np.array(table), method.cut if own is None else own


def row(found: list[Counts], folds: list[int]) -> Row:
    """mIoU of both in percent, with intervals, and the quartiles of the own cuts."""
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
    data: str = "coco386",
    root: Path = ROOT,
    weights: Path = WEIGHTS,
    folds: list[int] = [0, 1, 2, 3],  # noqa: B006 - never changed
    shots: int = 5,
    number: int = 60,
    runs: Path = Path("runs/benchmarks/own_cut"),
    csv: Path = RESULTS / "own_cut.csv",
) -> None:
    """Measure the chain, as `fsdino predict` has it, on one data set.

    Args:
        data: name of the data set.
        root: its folder.
        weights: of the photographs' encoder, preset photos.
        folds: whose novel classes are asked for.
        shots: references an episode.
        number: episodes a fold.
        runs: keeps the encoder's maps: every reference comes back in many memories.
    """
    config = preset("photos")
    encoder = RememberedEncoder(config.encoder, config.img_size, str(weights), runs / "maps")
    method = ChainMethod(encoder.reading(default_taps(encoder.depth)), resize_mode=config.resize_mode).eval()
    index, found, of_fold = open_data_set(data, str(root), "test"), list[Counts](), list[int]()
    for fold in folds:
        some = list(counts(method, index, EpisodeList.draw(index, fold, shots, number, seed=7, skip_rare=True)))
        found, of_fold = found + some, of_fold + [fold] * len(some)
        print(f"{data}, fold {fold}: {len(some)} episodes", flush=True)
    head = {"data": data, "shots": shots, "folds": "".join(map(str, folds)), "cut": method.cut}
    about = provenance(seed=7, protocol="episodes drawn by the seed; 1000 bootstrap samples of the query images")
    result = head | row(found, of_fold)
    print(*result.values())
    update_rows(csv, [result | about], KEY)


if __name__ == "__main__":
    run_script(main)
