"""The training-free chain beside the plain prototype, on real photographs: `python -m benchmarks.accuracy.chain`.

Both choose block and cut in every fold on episodes of base classes, from images that the fold's test list does not
show; then both are measured as `fsdino evaluate` does, at each image's own size. Lists are the fixed ones in the data
set's folder, or with `--seed` drawn anew. Intervals draw query images, with all of their episodes. Every image goes
through the encoder once, whoever asks for its maps; `chain.csv` has a row for
each list. The photographs' table has the chain as it is without a choice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from benchmarks.cost.timing import interleaved
from fsdino.base.registry import build
from fsdino.base.resize import Resize
from fsdino.data.splits import TestSet
from fsdino.evaluation.baseline import choose_chain, choose_prototype
from fsdino.evaluation.episode_choice import EpisodeChoice, spread
from fsdino.evaluation.measure import Evaluation, evaluate
from fsdino.evaluation.method_choice import identity
from fsdino.methods.chain import default_taps
from fsdino.metrics.bootstrap import percentile_interval, resampled_miou
from fsdino.models.config import preset
from fsdino.models.encoder import FeatureEncoder

ROOT, WEIGHTS = Path("../shared/data/coco386"), Path("../shared/weights/vit_tiny_patch16_224.safetensors")
KEY = ("part", "list", "shots", "fold", "method")
TIME_BAR = "<= 1.15"


class RememberedEncoder(FeatureEncoder):
    """A frozen encoder that keeps the maps of all blocks of each image that it has seen, in a folder."""

    def __init__(self, name: str, img_size: int, weights: str | None, folder: Path) -> None:
        super().__init__(name, img_size, (0,), weights=weights)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def forward(self, images: Tensor, last_tap: int | None = None) -> list[Tensor]:
        """As of `FeatureEncoder`."""
        taps = [tap for tap in self.taps if last_tap is None or tap <= last_tap]
        found = [self._blocks(image)[taps] for image in images]
        return list(torch.from_numpy(np.stack(found, axis=1)))

    def _blocks(self, image: Tensor) -> np.ndarray:
        path = self.folder / f"{hashlib.sha1(image.numpy().tobytes()).hexdigest()}.npy"
        if not path.is_file():
            part = path.with_suffix(f".{os.getpid()}.part.npy")
            np.save(part, torch.cat(FeatureEncoder.forward(self.reading(), image[None])).numpy())
            part.replace(path)
        maps: np.ndarray = np.load(path, mmap_mode="r")
        return maps


@dataclass(frozen=True)
class Measured:
    """One method on one fold: what was chosen, mIoU there in percent, and its counts on the test list."""

    remark: str
    base_miou: float
    found: Evaluation


def measure_fold(
    fold: int, test: EpisodeChoice, weights: Path, runs: Path, most: int | None = None
) -> dict[str, Measured]:
    """Choose and measure both methods on one fold's list; `most` episodes of base classes are chosen on."""
    torch.set_num_threads(1)
    config = preset("photos")
    encoder = RememberedEncoder(config.encoder, config.img_size, str(weights), runs / "maps")
    resize, index = Resize(config.img_size, config.resize_mode), test.open()
    (episodes,) = (one for one in test.lists(index) if one.fold == fold)
    one = TestSet(index, episodes)
    held_out, whole = (test.base(one, all_classes=every) for every in (False, True))
    if most is not None:
        held_out, whole = ((images, spread(listed, most)) for images, listed in (held_out, whole))
    choices = (
        choose_prototype(encoder.reading(), resize, *held_out),
        choose_chain(encoder, resize, *whole, [default_taps(encoder.depth)]),
    )
    measured = {}
    for choice in choices:
        method = choice.build(encoder.reading(), resize).eval()
        folder = runs / f"{method.name}-fold{fold}-{episodes.content_hash[:8]}-{identity(method)}"
        found = evaluate(method, one.index, one.episodes, folder, fingerprint=identity(method))
        measured[method.name] = Measured(method.remark(), 100 * choice.miou, found)
        print(f"fold {fold}, {method.name} ({method.remark()}): {100 * found.score.miou:.2f}", flush=True)
    return measured


def samples(parts: Sequence[tuple[int, Evaluation]]) -> np.ndarray:
    """(1 + 1000,) mIoU in percent, the first of the episodes as they are, then with query images drawn anew."""
    rows = pd.concat([found.rows.assign(fold=fold) for fold, found in parts])
    columns = [rows[name].to_numpy(np.int64) for name in ("class_id", "inter_fg", "union_fg", "fold")]
    return 100 * resampled_miou(*columns, num_resamples=1000, seed=0, groups=rows["query"].to_numpy(str))


def score_rows(folds: dict[int, dict[str, Measured]], head: Row) -> list[Row]:
    """A row for each method and fold, one for the mean of the folds, and the paired differences."""
    rows: list[Row] = []
    for fold, some in (*((fold, [fold]) for fold in folds), ("mean", list(folds))):
        drawn = {}
        for name in ("prototype", "chain"):
            parts = [folds[number][name] for number in some]
            drawn[name] = samples([(number, folds[number][name].found) for number in some])
            base = round(float(np.mean([part.base_miou for part in parts])), 2)
            about = {"method": name, "choice": "" if fold == "mean" else parts[0].remark, "base_miou": base}
            rows.append({"part": "mIoU", "fold": fold, **head, **about, **ends(drawn[name])})
        about = {"method": "chain − prototype", "choice": "", "base_miou": ""}
        rows.append({"part": "paired", "fold": fold, **head, **about, **ends(drawn["chain"] - drawn["prototype"])})
    return rows


def ends(values: np.ndarray, name: str = "value") -> Row:
    """Value and 95 % interval."""
    interval = percentile_interval(values)
    return {name: round(interval.value, 3), "low": round(interval.low, 3), "high": round(interval.high, 3)}


def time_row(weights: Path) -> Row:
    """What an image costs beside the bare encoder that reads the same blocks, in turn in one process."""
    config = preset("photos")
    method = build("chain", encoder=config.encoder, img_size=config.img_size, encoder_weights=str(weights))
    image, mask = (
        torch.rand(1, 3, method.img_size, method.img_size),
        torch.zeros(1, 1, method.img_size, method.img_size),
    )
    mask[..., :100, :100] = 1
    memory = method.encode_support(image[:, None], mask)
    actions = {"bare encoder": lambda: method.encoder(image), "chain": lambda: method.decode_query(memory, image)}
    with torch.no_grad():
        cost = interleaved(actions, 21, 2).row("chain", "bare encoder", TIME_BAR)
    return {"part": "time", "list": "", "shots": "", "fold": "", "method": "chain", "choice": method.remark(), **cost}


def main(
    root: Path = ROOT,
    weights: Path = WEIGHTS,
    shots: list[int] = [1],  # noqa: B006 - never changed
    seed: int | None = None,
    folds: list[int] = [0, 1, 2, 3],  # noqa: B006
    episodes: int = 250,
    most: int | None = None,
    time: bool = False,
    processes: int = 4,
    csv: Path = RESULTS / "chain.csv",
    runs: Path = Path("runs/chain"),
) -> None:
    """Measure both methods on the folds.

    Args:
        root: folder of coco386.
        weights: of the photographs' encoder, preset photos.
        shots: references of an episode; a list for each.
        seed: draws lists with it, in place of the fixed ones (which are of one shot).
        folds: which.
        episodes: of a list that is drawn.
        most: episodes of base classes that block and cut are chosen on, to try the script; all where left out.
        time: measure the cost of an image in place of scores.
        processes: folds measured at once.
        runs: folder of maps and counts.
    """
    if time:
        update_rows(csv, [time_row(weights) | provenance()], KEY)
        return
    for number in shots:
        fixed = str(root / "episodes" / "fold{fold}_{shots}shot.json") if seed is None else None
        drawn = None if seed is None else episodes
        test = EpisodeChoice("coco386", str(root), shots=number, list=fixed, episodes=drawn, seed=seed, skip_rare=True)
        measure = partial(measure_fold, test=test, weights=weights, runs=runs, most=most)
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            found = dict(zip(folds, pool.map(measure, folds)))
        rows = score_rows(found, {"list": "fixed" if seed is None else f"seed {seed}", "shots": number})
        about = provenance(seed=seed or 0, protocol="1000 bootstrap samples of the query images, both drawn alike")
        update_rows(csv, [row | about for row in rows], KEY)
        for row in rows:
            print(" ".join(str(row[key]) for key in ("part", "fold", "method", "value", "low", "high")))


if __name__ == "__main__":
    run_script(main)
