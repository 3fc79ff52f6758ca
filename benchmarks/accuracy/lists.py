"""Other lists of episodes over the same photographs: `python -m benchmarks.accuracy.lists`.

The trained models of `experiments photos` and the training-free chain on lists that other seeds draw, from the images
of each fold's fixed list alone, since the others were trained on. `lists.csv` has, for each list, the mIoU of both over
the four folds and their difference; the models' seeds are averaged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.accuracy.chain import RememberedEncoder, ends
from benchmarks.accuracy.experiments import RUNS, measure, trained_run
from benchmarks.accuracy.grids import photos
from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from fsdino.base.storage import load
from fsdino.data.class_index import SubsetIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.splits import TestSet
from fsdino.evaluation.measure import read_rows as read_episodes
from fsdino.methods.chain import ChainMethod, default_taps
from fsdino.metrics.bootstrap import resampled_miou
from fsdino.models.config import preset

Counts = dict[tuple[str, int], list[pd.DataFrame]]  # method and seed of its training -> rows of each fold


def redrawn(test: TestSet, seed: int, most: int | None = None) -> TestSet:
    """As many one-shot episodes of the same classes in the same images, drawn by a seed; 0 is the list as it is."""
    listed, count = test.episodes, most or len(test.episodes)
    if seed == 0:
        kept = EpisodeList(listed.dataset, listed.fold, listed.shots, listed.seed, listed.episodes[:count])
        return TestSet(test.index, kept)
    # An image counts for the classes that it shows in the list: others are too small there.
    shown: dict[int, set[str]] = {}
    for episode in listed:
        shown.setdefault(episode.class_id, set()).update((episode.query, *episode.support))
    view = SubsetIndex(test.index, {class_id: sorted(images) for class_id, images in shown.items()})
    return TestSet(test.index, EpisodeList.draw(view, listed.fold, 1, count, seed, skip_rare=True))


def counts(lists: list[int], seeds: list[int], folds: list[int], runs: Path, most: int | None,
           overrides: list[str]) -> dict[int, Counts]:  # fmt: skip
    """The rows of both methods on each list."""
    found: dict[int, Counts] = {number: {} for number in lists}
    grid = dict(photos())
    for fold in folds:
        for seed in seeds:
            name = f"full-fold{fold}-seed{seed}"
            job, checkpoint = trained_run("photos", name, [*grid[name], *overrides], runs)
            methods = {("FS-DINO full", seed): load(checkpoint, method="fsdino")}
            if seed == seeds[0]:
                config = preset(job.recipe.preset, **job.recipe.model)
                # It reads pixels, and all lists are of the same images.
                remembered = RememberedEncoder(config.encoder, config.img_size, config.encoder_weights, runs / "maps")
                reader = remembered.reading(default_taps(remembered.depth))
                chain = ChainMethod(reader, resize_mode=config.resize_mode)
                methods["chain", 0] = chain.eval()
            whole = job.test
            for number in lists:
                job.test = redrawn(whole, number, most)
                for (method, trained_by), one in methods.items():
                    place = f"list-{number}-{method.replace(' ', '-')}"
                    measure(job, place, one)
                    rows = read_episodes(job.folder / "evaluate" / place).assign(fold=fold)
                    found[number].setdefault((method, trained_by), []).append(rows)
    return found


def rows_of(number: int, found: Counts) -> list[Row]:
    """mIoU of both over the folds, and the difference, with intervals that draw query images."""
    drawn: dict[str, list[np.ndarray]] = {}
    for (method, _), parts in found.items():
        whole = pd.concat(parts).sort_values(["fold", "episode"])
        columns = [whole[name].to_numpy(np.int64) for name in ("class_id", "inter_fg", "union_fg", "fold")]
        queries = whole["query"].to_numpy(str)
        drawn.setdefault(method, []).append(100 * resampled_miou(*columns, num_resamples=1000, seed=0, groups=queries))
    means = {method: np.mean(samples, axis=0) for method, samples in drawn.items()}
    means["FS-DINO full − chain"] = means["FS-DINO full"] - means["chain"]
    rows = []
    for method, samples in means.items():
        seeds = len(drawn.get(method, drawn["FS-DINO full"]))
        rows.append({"list": number, "method": method, "seeds": seeds, **ends(samples)})
    return rows


def main(
    lists: list[int] = [0, 1, 2, 3],  # noqa: B006 - never changed
    seeds: list[int] = [0, 1],  # noqa: B006
    folds: list[int] = [0, 1, 2, 3],  # noqa: B006
    most: int | None = None,
    csv: Path = RESULTS / "lists.csv",
    runs: Path = RUNS,
    overrides: list[str] | None = None,
) -> None:
    """Measure both methods on each list.

    Args:
        lists: seeds of the lists; 0 is the fixed one.
        seeds: of the trained models; those that are not there are trained.
        folds: which.
        most: episodes of a list, to try the script; 250 where left out.
        runs: folder of the runs, as of `experiments`.
        overrides: of the recipe, after those of the run.
    """
    about = provenance(protocol="1000 bootstrap samples of the query images, both drawn alike")
    for number, found in counts(lists, seeds, folds, runs, most, overrides or []).items():
        rows = rows_of(number, found)
        update_rows(csv, [row | about for row in rows], ("list", "method"))
        for row in rows:
            print(*row.values())


if __name__ == "__main__":
    run_script(main)
