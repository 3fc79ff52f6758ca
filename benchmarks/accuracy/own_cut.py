"""Adapted encoders and cuts that references agree on: `python -m benchmarks.accuracy.own_cut`.

Episodes of several references on photographs, drawn by a seed, for the training-free chain as `fsdino predict` has it:
as it is, and adapted to folders of images as `fsdino adapt` does; each with its own cut and, as with
`--threshold references`, with those of the references. Nothing is trained, and nothing is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy.chain import ROOT, WEIGHTS, RememberedEncoder, ends
from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from fsdino.base.reference import Reference
from fsdino.data.catalog import open_data_set
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec
from fsdino.methods.chain import ChainMethod, default_taps
from fsdino.metrics.bootstrap import resampled_miou
from fsdino.metrics.few_shot import intersection_union
from fsdino.models.config import preset
from fsdino.predict.adapt import CENTRED, chosen_of
from fsdino.predict.cut import cut_of
from fsdino.predict.finish import finished
from fsdino.predict.images import find_images

KEY = ("data", "shots", "features", "cut")
PHOTOGRAPHS = Path("../shared/data/regions/images")
AS_IT_IS, OTHERS, OWN = "as they are", "adapted to other photographs", "adapted to the data set's images"
CUTS = ("the chain's", "the references'")
Counts = tuple[np.ndarray, float]


def methods(root: Path, weights: Path, photographs: Path, runs: Path) -> dict[str, ChainMethod]:
    """The chain on the photographs' encoder, as it is and adapted."""
    config = preset("photos")
    encoder = RememberedEncoder(config.encoder, config.img_size, str(weights), runs / "maps")
    reader = encoder.reading(default_taps(encoder.depth))
    found = {AS_IT_IS: ChainMethod(reader, resize_mode=config.resize_mode).eval()}
    for name, folder in ((OTHERS, photographs), (OWN, root / "images")):
        images = chosen_of(find_images(str(folder)))
        found[name] = ChainMethod(reader, cut=CENTRED, resize_mode=config.resize_mode).eval()
        found[name].fit_means(image.read() for image in images)
    return found


def counts(method: ChainMethod, index: ClassIndex, episodes: EpisodeList) -> Iterator[Counts]:
    """(2, 2) intersection and union at the chain's and at the class's own cut, and the latter."""
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
        yield np.array(table), method.cut if own is None else own


def rows(episodes: Sequence[EpisodeSpec], folds: list[int], found: dict[str, list[Counts]]) -> Iterator[Row]:
    """mIoU of each way in percent, and its difference from the first, with intervals; the quartiles of own cuts."""
    classes, queries = np.array([e.class_id for e in episodes]), np.array([e.query for e in episodes])
    first = None
    for features, of_method in found.items():
        tables, cuts = np.stack([one for one, _ in of_method]), [cut for _, cut in of_method]
        for i, name in enumerate(CUTS):
            inter, union = tables[:, i].T
            drawn = 100 * resampled_miou(classes, inter, union, np.array(folds), 1000, seed=0, groups=queries)
            first = drawn if first is None else first
            gain = {f"miou_{end}": value for end, value in ends(drawn - first, "gain").items()}
            quartiles = np.quantile(cuts, (0.25, 0.5, 0.75)).round(3) if i else ("", "", "")
            own = dict(zip(("lower", "median", "upper"), quartiles))
            about = {"episodes": len(episodes), "classes": len({*classes})}
            yield {"features": features, "cut": name} | ends(drawn, "miou") | gain | own | about


def main(
    data: str = "coco386",
    root: Path = ROOT,
    weights: Path = WEIGHTS,
    photographs: Path = PHOTOGRAPHS,
    folds: list[int] = [0, 1, 2, 3],  # noqa: B006 - never changed
    shots: int = 5,
    number: int = 60,
    runs: Path = Path("runs/benchmarks/own_cut"),
    csv: Path = RESULTS / "own_cut.csv",
) -> None:
    """Measure the chain on one data set.

    Args:
        data: name of the data set.
        root: its folder.
        weights: of the photographs' encoder, preset photos.
        photographs: of another kind, which an encoder is adapted to.
        folds: whose novel classes are asked for.
        shots: references an episode.
        number: episodes a fold.
        runs: keeps the encoder's maps: every reference comes back in many memories.
    """
    index, every = open_data_set(data, str(root), "test"), methods(root, weights, photographs, runs)
    lists = [EpisodeList.draw(index, fold, shots, number, seed=7, skip_rare=True) for fold in folds]
    found: dict[str, list[Counts]] = {name: [] for name in every}
    for name, method in every.items():
        for listed in lists:
            found[name] += counts(method, index, listed)
            print(f"{data}, fold {listed.fold}, {name}: {len(listed)} episodes", flush=True)
    whole, of_fold = [e for one in lists for e in one.episodes], [one.fold for one in lists for _ in one.episodes]
    head = {"data": data, "shots": shots, "folds": "".join(map(str, folds))}
    about = provenance(seed=7, protocol="episodes drawn by the seed; 1000 bootstrap samples of the query images")
    result = [head | row | about for row in rows(whole, of_fold, found)]
    for row in result:
        print(*list(row.values())[:10])
    update_rows(csv, result, KEY)


if __name__ == "__main__":
    run_script(main)
