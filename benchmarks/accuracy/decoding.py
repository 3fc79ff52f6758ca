"""What decoding photographs smaller costs in mIoU: `python -m benchmarks.accuracy.decoding`.

The chain on the fixed lists of 386 photographs, at sides of the network so small that JPEGs are decoded at a half or a
quarter; every mask is scored at the photograph's own size. The same method reads the same episodes twice, whole and
decoded smaller, so the difference is that of the decoding alone. Rows of a smaller `enough` than the package's show why
that was chosen. Intervals draw query images, with all of their episodes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy.chain import ROOT, WEIGHTS, ends, samples
from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from fsdino.base.image import ENOUGH
from fsdino.base.memory import image_tensor
from fsdino.base.registry import build
from fsdino.data.class_index import SubsetIndex
from fsdino.data.episodes.episode import EpisodeData
from fsdino.evaluation.episode_choice import EpisodeChoice
from fsdino.evaluation.measure import Evaluation, evaluate
from fsdino.evaluation.method_choice import identity
from fsdino.models.config import preset

KEY, UNLABELLED = ("side", "enough"), 40


class SmallerIndex(SubsetIndex):
    """Images that are decoded as if `enough` were what the second resize needs; None decodes them whole."""

    def __init__(self, index: SubsetIndex, enough: float | None) -> None:
        super().__init__(index, {class_id: index.images(class_id) for class_id in index.class_names})
        self.folds, self.enough = index.folds, enough

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        """As of `ClassIndex`."""
        assert self.enough is not None  # whole images are asked for otherwise
        return self.index.load_reduced(image_id, round(side * self.enough / ENOUGH))


def closeness(index: SubsetIndex, method: torch.nn.Module, enough: float) -> Row:
    """How many images are decoded smaller, and how far their squares are from those of whole ones, in levels of 255."""
    smaller, resize = SmallerIndex(index, enough), method.resize
    images, squares = index.all_images(), []
    for name in images:
        whole, (found, _) = index.load_image(name), smaller.load_reduced(name, resize.source_side)
        if found.shape != whole.shape:
            squares.append(
                [resize.image(image_tensor(whole)), resize.image(image_tensor(resize.shrink(found, whole.shape[:2])))]
            )
    rmse = [255 * float((a - b).square().mean().sqrt()) for a, b in squares]
    return {"images": len(images), "smaller": len(squares), "rmse": round(float(np.mean(rmse or [0])), 2)}


def main(
    root: Path = ROOT,
    weights: Path = WEIGHTS,
    sides: list[int] = [112, 160, 224],  # noqa: B006 - never changed
    enough: list[float] = [ENOUGH, 1.0],  # noqa: B006
    folds: list[int] = [0, 1, 2, 3],  # noqa: B006
    episodes: int = 250,
    csv: Path = RESULTS / "decoding.csv",
    runs: Path = Path("runs/decoding"),
) -> None:
    """Measure the chain at each side, whole and decoded smaller.

    Args:
        root: folder of coco386.
        weights: of the photographs' encoder, preset photos.
        sides: of the network, in pixels.
        enough: sides of the network's square that both sides of a decoded image keep.
        folds: lists that are measured.
        episodes: of each list, from its start.
        runs: folder of counts.
    """
    torch.set_num_threads(1)
    test = EpisodeChoice("coco386", str(root), list=str(root / "episodes" / "fold{fold}_{shots}shot.json"))
    index = test.open()
    lists = [replace(one, episodes=one.episodes[:episodes]) for one in test.lists(index) if one.fold in folds]
    for side in sides:
        encoder = preset("photos").encoder
        method = build("chain", encoder=encoder, img_size=side, encoder_weights=str(weights)).eval()
        method.fit_means(
            index.load_image(name) for name in index.all_images()[:: -(-len(index.all_images()) // UNLABELLED)]
        )
        found: dict[float | None, list[tuple[int, Evaluation]]] = {}
        for factor in (None, *enough):
            smaller = SmallerIndex(index, factor)
            for one in lists:
                folder = runs / f"{side}-{factor}-fold{one.fold}-{identity(method)}"
                data = EpisodeData(smaller, one, method.resize, reduce=factor is not None)
                counts = evaluate(method, smaller, one, folder, fingerprint=identity(method), data=data)
                found.setdefault(factor, []).append((one.fold, counts))
        whole = samples(found[None])
        about = provenance(seed=0, protocol="1000 bootstrap samples of the query images, both drawn alike")
        for factor in enough:
            drawn = samples(found[factor])
            row = {
                "side": side,
                "enough": factor,
                **closeness(index, method, factor),
                "episodes": sum(len(one) for one in lists),
            }
            row |= {"whole": ends(whole)["value"], "decoded_smaller": ends(drawn)["value"]}
            row |= ends(drawn - whole, "difference")
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            update_rows(csv, [row | about], KEY)


if __name__ == "__main__":
    run_script(main)
