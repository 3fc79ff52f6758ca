"""What is compared, on episodes of base classes of real photographs: `python -m benchmarks.accuracy.compared`.

The training-free chain on block outputs, on attention outputs and on both, as they are and less their mean over images.
Episodes are of base classes of each fold, from images that its fixed list does not show; each way has the cut that is
best for all of them. `compared.csv` has a row for each way, with the difference from block outputs as they are; from
it the `photos` preset took what it compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accuracy.chain import ROOT, WEIGHTS, ends
from benchmarks.common import RESULTS, provenance, run_script, write_rows
from fsdino.base.memory import image_tensor
from fsdino.base.resize import Resize
from fsdino.data.episodes.episode import EpisodeData
from fsdino.data.splits import TestSet
from fsdino.evaluation.baseline import CUTS, MEAN_IMAGES
from fsdino.evaluation.episode_choice import EpisodeChoice, spread
from fsdino.methods.chain import ChainMethod
from fsdino.metrics.bootstrap import resampled_miou
from fsdino.metrics.few_shot import intersection_union
from fsdino.metrics.threshold import choose_threshold
from fsdino.models.config import preset
from fsdino.models.encoder import FeatureEncoder

BLOCKS = tuple(range(5, 12))
WAYS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # block outputs, attention outputs
    "blocks 5 to 11": (BLOCKS, ()),
    "blocks 6, 8, 11": ((6, 8, 11), ()),
    "attention of 5 to 9, block 11": ((11,), (5, 6, 7, 8, 9)),
    "attention of 5 to 9, blocks 6, 8, 11": ((6, 8, 11), (5, 6, 7, 8, 9)),
    "attention of 5 to 9, blocks 5 to 11": (BLOCKS, (5, 6, 7, 8, 9)),
    "attention and blocks 5 to 11": (BLOCKS, BLOCKS),
}
SIDE = 112  # pixels that are scored, four to a position


def base_episodes(root: Path, number: int, resize: Resize) -> Iterator[tuple[int, EpisodeData]]:
    """The episodes of each fold."""
    choice = EpisodeChoice("coco386", str(root), list=str(root / "episodes" / "fold{fold}_{shots}shot.json"))
    index = choice.open()
    for listed in choice.lists(index):
        images, episodes = choice.base(TestSet(index, listed), all_classes=True)
        yield listed.fold, EpisodeData(images, spread(episodes, number), resize)


@torch.no_grad()
def main(
    root: Path = ROOT, weights: Path = WEIGHTS, number: int = 100, csv: Path = RESULTS / "compared.csv", most: int = 99
) -> None:
    """Score the ways.

    Args:
        root: folder of coco386.
        weights: of the photographs' encoder, preset photos.
        number: episodes a fold.
        most: ways, from the first on, to try the script.
    """
    config = preset("photos")
    whole = FeatureEncoder(config.encoder, config.img_size, BLOCKS, weights=str(weights), attention=BLOCKS)
    resize = Resize(config.img_size, config.resize_mode)
    folds = dict(base_episodes(root, number, resize))

    @cache
    def maps(name: str) -> list[Tensor]:
        image = resize.image(image_tensor(next(iter(folds.values())).index.load_image(name)))
        return [m.half() for m in whole(image[None])]

    episodes = [(fold, data[i]) for fold, data in folds.items() for i in range(len(data))]
    names = sorted({name for _, item in episodes for name in (item["query_id"], *item["support_ids"])})
    some = names[:: -(-len(names) // MEAN_IMAGES)]
    means = torch.stack([torch.stack([m.float().mean((0, 2, 3)) for m in maps(name)]) for name in some]).mean(0)
    truths = [F.interpolate(item["query_mask"][None, None].float(), (SIDE, SIDE), mode="nearest-exact")[0, 0]
              for _, item in episodes]  # fmt: skip
    classes = [int(item["class_id"]) for _, item in episodes]
    queries = [f"{fold} {item['query_id']}" for fold, item in episodes]
    rows, plain = [], None
    for (way, (blocks, attention)), centred in [(w, c) for w in list(WAYS.items())[:most] for c in (False, True)]:
        at = [*map(BLOCKS.index, blocks), *(len(BLOCKS) + BLOCKS.index(block) for block in attention)]
        method = ChainMethod(whole.reading(blocks, attention), mirror=False, resize_mode=resize.mode).eval()
        if centred:
            method.means.copy_(means[at])
        scores = []
        for _, item in episodes:
            support, query = (
                [maps(name)[i].float() for i in at] for name in (item["support_ids"][0], item["query_id"])
            )
            memory = method.encode_support_maps(support, item["support_masks"][None].float())
            score = method.relative_scores(memory, method.encode_query_maps(query))
            scores.append(F.interpolate(score, (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0])
        cut = choose_threshold(scores, truths, classes, CUTS).threshold
        counts = [
            [int(both[1]) for both in intersection_union(score > cut, truth)] for score, truth in zip(scores, truths)
        ]
        inter, union = np.array(counts).T
        group, fold = np.array(queries), np.array([fold for fold, _ in episodes])
        drawn = 100 * resampled_miou(np.array(classes), inter, union, fold, 1000, 0, groups=group)
        plain = drawn if plain is None else plain
        about = {"maps": way, "centred": centred, "number": len(at), "cut": cut, "episodes": len(episodes)}
        over = {f"over_{key}": value for key, value in ends(drawn - plain).items()}
        rows.append(about | ends(drawn, "miou") | over)
        print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    protocol = "one-shot episodes of base classes, 1000 bootstrap samples of the query images, both drawn alike"
    write_rows(csv, [row | provenance(seed=0, protocol=protocol) for row in rows])


if __name__ == "__main__":
    run_script(main)
