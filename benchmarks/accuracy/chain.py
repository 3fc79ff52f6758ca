"""The training-free chain beside the plain prototype, on real photographs: `python -m benchmarks.accuracy.chain`.

Both choose their blocks and cut in every fold on episodes of base classes, from images that the fold's test list does not
show; then both are measured as `fsdino evaluate` does, at each image's own size. Lists are the fixed ones of the data
set's folder, or with `--seed` drawn anew. Intervals draw query images, with all of their episodes. Every image goes
through the encoder once, whatever asks for its maps. `chain.csv` keeps the rows of other lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from benchmarks.cost.timing import interleaved
from fsdino.base.method import FewShotMethod
from fsdino.base.resize import Resize
from fsdino.data.splits import TestSet
from fsdino.evaluation.baseline import choose_chain, choose_prototype
from fsdino.evaluation.episode_choice import EpisodeChoice
from fsdino.evaluation.measure import Evaluation, evaluate
from fsdino.evaluation.method_choice import identity
from fsdino.metrics.bootstrap import percentile_interval, resampled_miou
from fsdino.models.config import preset
from fsdino.models.encoder import FeatureEncoder

ROOT, WEIGHTS = Path("../shared/data/coco386"), Path("../shared/weights/vit_tiny_patch16_224.safetensors")
KEY = ("part", "list", "shots", "fold", "method")
TIME_BAR = "<= 1.15"


class RememberedEncoder(FeatureEncoder):
    """A frozen encoder that keeps the maps of all blocks of each image that it has seen."""

    def __init__(self, name: str, img_size: int, weights: str) -> None:
        super().__init__(name, img_size, (0,), weights=weights)
        self.seen: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, images: Tensor, last_tap: int | None = None) -> list[Tensor]:
        """As of `FeatureEncoder`."""
        every = torch.stack([self._blocks(image) for image in images])  # (N, depth, C, h, w)
        return [every[:, tap] for tap in self.taps if last_tap is None or tap <= last_tap]

    def _blocks(self, image: Tensor) -> Tensor:
        key = hashlib.sha1(image.numpy().tobytes()).hexdigest()
        if key not in self.seen:
            plain = FeatureEncoder.forward(self.reading(), image[None])
            self.seen[key] = torch.cat(plain)
        return self.seen[key]


def measure_fold(
    encoder: RememberedEncoder, resize: Resize, test: EpisodeChoice, one: TestSet, runs: Path
) -> dict[str, tuple[FewShotMethod, float, Evaluation]]:
    """Choose and measure both methods on one fold's list: method, mIoU on base classes in percent, and its counts."""
    plain = choose_prototype(encoder.reading(), resize, *test.base(one))
    chain = choose_chain(encoder, resize, *test.base(one, all_classes=True))
    found = {}
    for choice in (plain, chain):
        method = choice.build(encoder.reading(), resize).eval()
        folder = runs / f"{method.name}-fold{one.episodes.fold}-{identity(method)}"
        measured = evaluate(method, one.index, one.episodes, folder, fingerprint=identity(method))
        found[method.name] = (method, 100 * choice.miou, measured)
        print(f"fold {one.episodes.fold}, {method.name} ({method.remark()}): {100 * measured.score.miou:.2f}", flush=True)
    return found


def samples(parts: Sequence[tuple[int, Evaluation]]) -> np.ndarray:
    """(1 + 1000,) mIoU in percent, the first of the episodes as they are, then with query images drawn anew."""
    rows = pd.concat([found.rows.assign(fold=fold) for fold, found in parts])
    columns = [rows[name].to_numpy(np.int64) for name in ("class_id", "inter_fg", "union_fg", "fold")]
    return 100 * resampled_miou(*columns, num_resamples=1000, seed=0, groups=rows["query"].to_numpy(str))


def score_rows(folds: dict[int, dict[str, tuple[FewShotMethod, float, Evaluation]]], head: Row) -> list[Row]:
    """A row for each method and fold, one for the mean of the folds, and the paired differences."""
    rows: list[Row] = []
    for fold in (*folds, "mean"):
        some = [fold] if fold in folds else list(folds)
        drawn = {}
        for name in ("prototype", "chain"):
            drawn[name] = samples([(number, folds[number][name][2]) for number in some])
            remark = folds[fold][name][0].remark() if fold in folds else ""  # type: ignore[index]
            base = float(np.mean([folds[number][name][1] for number in some]))
            about = {"method": name, "choice": remark, "base_miou": round(base, 2)}
            rows.append({"part": "mIoU", "fold": fold, **head, **about, **ends(drawn[name])})
        about = {"method": "chain − prototype", "choice": "", "base_miou": ""}
        rows.append({"part": "paired", "fold": fold, **head, **about, **ends(drawn["chain"] - drawn["prototype"])})
    return rows


def ends(values: np.ndarray) -> Row:
    """Value and 95 % interval."""
    interval = percentile_interval(values)
    return {name: round(getattr(interval, name), 3) for name in ("value", "low", "high")}


def time_row(encoder: FeatureEncoder, method: FewShotMethod, head: Row) -> Row:
    """What an image costs beside the bare encoder that reads the same blocks, in turn in one process."""
    size = encoder.img_size
    image, mask = torch.rand(1, 3, size, size), torch.zeros(1, 1, size, size)
    mask[..., : size // 3, : size // 3] = 1
    memory = method.encode_support(image[:, None], mask)
    with torch.no_grad():
        timed = interleaved(
            {"bare encoder": lambda: encoder(image), "chain": lambda: method.decode_query(memory, image)}, 15, 2
        )
    cost = timed.row("chain", "bare encoder", TIME_BAR)
    return {"part": "time", "fold": "", **head, "method": "chain", "choice": method.remark(), **cost}


def main(
    root: Path = ROOT,
    weights: Path = WEIGHTS,
    shots: list[int] = [1],  # noqa: B006 - never changed
    seed: int | None = None,
    csv: Path = RESULTS / "chain.csv",
    runs: Path = Path("runs/chain"),
) -> None:
    """Measure both methods on the four folds.

    Args:
        root: folder of coco386.
        weights: of the photographs' encoder, preset photos.
        shots: references of an episode; a list for each.
        seed: draws lists of 250 episodes with it, in place of the fixed ones (which are of one shot).
    """
    config = preset("photos")
    encoder = RememberedEncoder(config.encoder, config.img_size, str(weights))
    resize = Resize(config.img_size, config.resize_mode)
    for number in shots:
        fixed = str(root / "episodes" / "fold{fold}_{shots}shot.json") if seed is None else None
        drawn = None if seed is None else 250
        test = EpisodeChoice("coco386", str(root), shots=number, list=fixed, episodes=drawn, seed=seed, skip_rare=True)
        index = test.open()
        head = {"list": "fixed" if seed is None else f"seed {seed}", "shots": number}
        folds = {}
        for episodes in test.lists(index):
            one = TestSet(index, episodes)
            folds[episodes.fold] = measure_fold(encoder, resize, test, one, runs / f"{head['list']}-{number}")
        rows = score_rows(folds, head)
        bare = FeatureEncoder(config.encoder, config.img_size, (0,), weights=str(weights))
        method = folds[0]["chain"][0]
        fresh = bare.reading(method.encoder.taps)
        method.encoder = fresh
        rows.append(time_row(fresh, method, head))
        about = provenance(seed=seed, protocol="1000 bootstrap samples of the query images, both drawn alike")
        update_rows(csv, [row | about for row in rows], KEY)
        for row in rows:
            print({key: row[key] for key in ("fold", "method", "value", "low", "high", "ratio") if key in row})


if __name__ == "__main__":
    run_script(main)
