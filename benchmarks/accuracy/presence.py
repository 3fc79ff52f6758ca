"""'Absent' as an answer, on novel classes: `python -m benchmarks.accuracy.presence`.

Every episode of the fixed list is asked twice: with its own query, and with an image of the list that lacks the class,
drawn by a seed. The head learnt and was calibrated on base classes alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import mannwhitneyu, spearmanr
from torchmetrics.functional.classification import binary_calibration_error

from benchmarks.common import RESULTS, Row, provenance, run_script, write_rows
from fsdino.base.storage import fingerprint, load
from fsdino.cache.image_list import ImageList
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode import EpisodeData, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec
from fsdino.evaluation.measure import predict_episode
from fsdino.metrics.few_shot import FewShotIoU, intersection_union
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.pipeline.recipe import read_recipe
from fsdino.pipeline.run import Run
from fsdino.training.episode_data import EpisodesWithMaps

PROTOCOL = "{} one-shot episodes of novel classes, each also with a query that lacks the class"


@dataclass(frozen=True)
class Answers:
    """What was answered, one row a question.

    Args:
        present: (N,) float in {0, 1}, the truth.
        signals: name to (N,) scores that rise with presence; "presence head" is the head's logit.
        counts: (N, 2, 2) intersections and unions of background and object.
        gated: (N, 2, 2) the same where an absent answer empties the mask.
        class_ids: (N,).
    """

    present: torch.Tensor
    signals: dict[str, torch.Tensor]
    counts: torch.Tensor
    gated: torch.Tensor
    class_ids: list[int]


def with_absent(index: ClassIndex, episodes: EpisodeList, seed: int = 0) -> EpisodeList:
    """The list twice: as it is, then with queries that lack the class, drawn from the list's own images."""
    rng, pool = np.random.default_rng([seed, 31]), sorted(episodes.images)
    shows = {image: index.classes_in(image) for image in pool}
    absent = []
    for spec in episodes.episodes:
        others = [image for image in pool if spec.class_id not in shows[image]]
        absent.append(EpisodeSpec(spec.class_id, others[int(rng.integers(len(others)))], spec.support))
    whole = (*episodes.episodes, *absent)
    return EpisodeList(episodes.dataset, episodes.fold, episodes.shots, seed, whole, protocol="half absent")


@torch.no_grad()
def ask(model: FewShotSegmenter, data: EpisodesWithMaps) -> Answers:
    """Ask every episode of a data set."""
    signals: dict[str, list[float]] = {"presence head": [], "best probability": [], "predicted IoU": []}
    present, counts, gated, class_ids = [], [], [], []
    for i in range(len(data)):
        batch = collate_episodes([data[i]])
        logits, score, presence = predict_episode(model, batch, 0)
        truth = batch["query_mask_original"][0]
        mask = model.resize.invert(logits, (truth.shape[-2], truth.shape[-1])).sigmoid() > model.threshold
        signals["presence head"].append(presence)
        signals["best probability"].append(float(logits.max()))
        signals["predicted IoU"].append(score)
        present.append(float((truth == 1).any()))
        counts.append(torch.stack(intersection_union(mask, truth)))
        gated.append(torch.stack(intersection_union(mask & (presence > 0), truth)))
        class_ids.append(int(batch["class_id"][0]))
    return Answers(torch.tensor(present), {name: torch.tensor(found) for name, found in signals.items()},
                   torch.stack(counts), torch.stack(gated), class_ids)  # fmt: skip


def miou(counts: torch.Tensor, class_ids: list[int], chosen: torch.Tensor) -> float:
    """Few-shot mIoU of some rows, in percent."""
    metric = FewShotIoU(sorted(set(class_ids)))
    for i in chosen.nonzero()[:, 0].tolist():
        metric.add_counts(counts[i, 0], counts[i, 1], class_ids[i])
    return 100 * metric.compute().miou


def roc_area(scores: torch.Tensor, present: torch.Tensor) -> float:
    """Probability that a present object scores above an absent one; ties count half."""
    there, absent = scores[present > 0].numpy(), scores[present == 0].numpy()
    return float(mannwhitneyu(there, absent).statistic) / (len(there) * len(absent))


def report(found: Answers) -> list[Row]:
    """One row a signal; error, calibration and the gate are the head's."""
    rows: list[Row] = []
    every, there = torch.ones_like(found.present), found.present
    quality = found.counts[:, 0, 1] / found.counts[:, 1, 1].clamp_min(1)
    for name, signal in found.signals.items():
        row: Row = {"signal": name, "questions": len(signal), "auroc": 100 * roc_area(signal, there)}
        # Where the object is there: does the signal tell good masks from bad ones?
        row["rank"] = 100 * float(spearmanr(signal[there > 0], quality[there > 0]).statistic)
        if name == "presence head":
            answer = (signal > 0).float()
            row |= {
                "error": 100 * float((answer != there).float().mean()),
                "missed": 100 * float((1 - answer[there > 0]).mean()),
                "false_alarms": 100 * float(answer[there == 0].mean()),
                "ece": 100 * float(binary_calibration_error(signal.sigmoid(), there.long(), n_bins=10)),
                "miou_there": miou(found.counts, found.class_ids, there),
                "miou_there_gated": miou(found.gated, found.class_ids, there),
                "miou_all": miou(found.counts, found.class_ids, every),
                "miou_all_gated": miou(found.gated, found.class_ids, every),
            }
        rows.append({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def main(
    model: str = "tiny",
    number: int | None = None,
    csv: Path = RESULTS / "presence.csv",
    runs: Path = Path("runs/benchmarks/presence"),
    overrides: list[str] | None = None,
) -> None:
    """Ask the fixed list (or its first episodes) twice, and write the CSV; overrides are of the tiny recipe."""
    common = ["--config", "recipes/fsdino/tiny.yaml", "--log.wandb=off", "--cache.hflip=false"]
    recipe, options = read_recipe([*common, *(overrides or [])])
    job, asked = Run(recipe, options, runs), load(model, method="fsdino")
    test = job.test
    episodes = replace(test.episodes, episodes=test.episodes.episodes[:number])
    images = ImageList(f"{test.index.name}-test", tuple(sorted(episodes.images)), test.index.load_image)
    questions = EpisodeData(test.index, with_absent(test.index, episodes), asked.resize)
    maps = job.maps(asked, images)
    assert maps is not None  # the tiny recipe caches them
    about = provenance(seed=0, protocol=PROTOCOL.format(len(episodes)))
    rows = report(ask(asked, EpisodesWithMaps(questions, maps)))
    write_rows(csv, [row | {"model": fingerprint(asked)} | about for row in rows])
    for row in rows:
        print(row)


if __name__ == "__main__":
    run_script(main)
