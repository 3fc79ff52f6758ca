"""What is compared, on episodes of base classes: `python -m benchmarks.accuracy.compared`.

The training-free chain on block outputs, on attention outputs and on both, as they are and less their mean over images:
on real photographs (base classes of each fold, images that its fixed list does not show) and on the embedded world.
Each way has the cut that is best for all of its episodes. `compared.csv` has a row for each way, with the difference
from the first one. What the `photos` preset compares was chosen by such trials, on such episodes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accuracy.chain import ROOT, WEIGHTS, ends
from benchmarks.common import RESULTS, Row, provenance, run_script, write_rows
from fsdino.base.bundled import bundled_file
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

LATE, SOME = tuple(range(5, 12)), (5, 6, 7, 8, 9)
WAYS: dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {  # block outputs, attention outputs
    "photographs": {
        "blocks 5 to 11": (LATE, ()),
        "blocks 6, 8, 11": ((6, 8, 11), ()),
        "block 11, attention of 5 to 9": ((11,), SOME),
        "blocks 6, 8, 11, attention of 5 to 9": ((6, 8, 11), SOME),
        "blocks 5 to 11, attention of 5 to 9": (LATE, SOME),
        "blocks and attention of 5 to 11": (LATE, LATE),
    },
    "embedded": {
        "blocks 3 to 5": ((3, 4, 5), ()),
        "blocks and attention of 3 to 5": ((3, 4, 5), (3, 4, 5)),
        "blocks 3 to 5, attention of 5": ((3, 4, 5), (5,)),
    },
}


@dataclass
class World:
    """An encoder read everywhere, and episodes of base classes: their folds and items."""

    encoder: FeatureEncoder
    resize: Resize
    folds: list[int]
    data: list[EpisodeData]

    @classmethod
    def open(cls, name: str, root: Path, weights: Path, number: int) -> World:
        """ "photographs" or "embedded", with so many episodes a fold."""
        config = preset("photos" if name == "photographs" else "tiny")
        file = weights if name == "photographs" else bundled_file("tiny_encoder")
        blocks = sorted({block for way in WAYS[name].values() for part in way for block in part})
        how: dict[str, Any] = {"weights": str(file), "stride": config.encoder_stride, "attention": blocks}
        encoder = FeatureEncoder(config.encoder, config.img_size, blocks, config.encoder_kwargs, **how)
        fixed = str(root / "episodes" / "fold{fold}_{shots}shot.json")
        choice = EpisodeChoice("coco386", str(root), list=fixed) if name == "photographs" else EpisodeChoice()
        resize, index = Resize(config.img_size, config.resize_mode), choice.open()
        tests = [TestSet(index, listed) for listed in choice.lists(index)]
        bases = [choice.base(test, all_classes=True) for test in tests]
        data = [EpisodeData(images, spread(episodes, number), resize) for images, episodes in bases]
        return cls(encoder, resize, [test.episodes.fold for test in tests], data)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for fold, data in zip(self.folds, self.data):
            yield from ((fold, data[i]) for i in range(len(data)))

    def maps(self, name: str) -> list[Tensor]:
        """All maps of an image, in half precision."""
        image = self.resize.image(image_tensor(self.data[0].index.load_image(name)))
        return [m.half() for m in self.encoder(image[None])]


@torch.no_grad()
def rows(name: str, world: World, most: int | None) -> Iterator[Row]:
    """A row for each way."""
    episodes, maps = list(world), cache(world.maps)
    images = sorted({image for _, item in episodes for image in (item["query_id"], *item["support_ids"])})
    some = images[:: -(-len(images) // MEAN_IMAGES)]
    means = torch.stack([torch.stack([m.float().mean((0, 2, 3)) for m in maps(image)]) for image in some]).mean(0)
    side = 4 * world.encoder.grid_size
    truths = [F.interpolate(item["query_mask"][None, None].float(), (side, side), mode="nearest-exact")[0, 0]
              for _, item in episodes]  # fmt: skip
    classes, folds = [int(item["class_id"]) for _, item in episodes], [fold for fold, _ in episodes]
    groups = np.array([f"{fold} {item['query_id']}" for fold, item in episodes])
    first = None
    for way, (blocks, attention) in list(WAYS[name].items())[:most]:
        taps = world.encoder.taps
        at = [*map(taps.index, blocks), *(len(taps) + taps.index(block) for block in attention)]
        for centred in (False, True):
            reader = world.encoder.reading(blocks, attention)
            method = ChainMethod(reader, mirror=False, resize_mode=world.resize.mode).eval()
            method.means.copy_(means[at] if centred else 0 * means[at])
            scores = []
            for _, item in episodes:
                shown, asked = ([maps(image)[i].float() for i in at]
                                for image in (item["support_ids"][0], item["query_id"]))  # fmt: skip
                memory = method.encode_support_maps(shown, item["support_masks"][None].float())
                score = method.relative_scores(memory, method.encode_query_maps(asked))
                scores.append(F.interpolate(score, (side, side), mode="bilinear", align_corners=False)[0, 0])
            cut = choose_threshold(scores, truths, classes, CUTS).threshold
            counts = [intersection_union(score > cut, truth) for score, truth in zip(scores, truths)]
            inter, union = np.array([[int(both[1]) for both in pair] for pair in counts]).T
            drawn = 100 * resampled_miou(np.array(classes), inter, union, np.array(folds), 1000, 0, groups=groups)
            first = drawn if first is None else first
            gain = {f"miou_{end}": value for end, value in ends(drawn - first, "gain").items()}
            about = {"world": name, "maps": way, "centred": "yes" if centred else "", "number": len(at)}
            yield about | ends(drawn, "miou") | gain | {"cut": cut, "episodes": len(episodes)}


def main(
    root: Path = ROOT,
    weights: Path = WEIGHTS,
    worlds: list[str] = list(WAYS),  # noqa: B006 - never changed
    number: int = 100,
    csv: Path = RESULTS / "compared.csv",
    most: int | None = None,
) -> None:
    """Score the ways.

    Args:
        root: folder of coco386.
        weights: of the photographs' encoder, preset photos.
        worlds: photographs, embedded.
        number: episodes a fold of photographs; ten times as many of the embedded world, which has one fold.
        most: ways, from the first on, to try the script.
    """
    protocol = "one-shot episodes of base classes, 1000 bootstrap samples of the query images, both drawn alike"
    found = []
    for name in worlds:
        world = World.open(name, root, weights, number * (10 if name == "embedded" else 1))
        for row in rows(name, world, most):
            found.append(row | provenance(seed=0, protocol=protocol))
            print(" ".join(f"{key}={row[key]}" for key in ("world", "maps", "centred", "miou", "cut")), flush=True)
    write_rows(csv, found)


if __name__ == "__main__":
    run_script(main)
