"""Measure a method on a fixed list: the same counts whatever the workers, processes or interruptions."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from fsdino.base.method import FewShotMethod
from fsdino.base.ranges import Strips, check_fields
from fsdino.base.texts import plain_json
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode import EpisodeData, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.metrics.bootstrap import Interval, bootstrap_interval
from fsdino.metrics.davis import boundary_f
from fsdino.metrics.edges import band_counts
from fsdino.metrics.few_shot import FewShotIoU, FewShotScore, intersection_union

Scoring = Literal["original", "network"]
COUNTS = ("inter_bg", "inter_fg", "union_bg", "union_fg")
COLUMNS = ("episode", "class_id", "query", "support", *COUNTS, "score", "presence", "boundary_f")
EDGE_COUNTS = ("inter_edge", "union_edge")  # columns of rows whose outlines were asked for


@dataclass
class EvaluatePart:
    """Measuring on novel classes.

    Args:
        scoring: "original" (the image's own size) or "network" (the network's).
        baselines: also measure the prototype baseline and all-foreground.
        strips: episodes drawn on the contact sheet.
    """

    scoring: Scoring = "original"
    baselines: bool = True
    strips: Strips = 12

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Evaluation:
    """What a method scored on a list: pooled scores, mIoU with its 95 % interval, one row an episode (`COLUMNS`)."""

    score: FewShotScore
    interval: Interval
    rows: pd.DataFrame


Prediction = tuple[Tensor, float, float]  # logits (s, s), predicted IoU, presence logit


def predict_some(method: FewShotMethod, batch: dict[str, Any], start: int, stop: int) -> list[Prediction]:
    """What is predicted in episodes `start` to `stop` of a batch, in one pass; with pixels or with cached maps."""
    part = {key: value[start:stop] for key, value in batch.items() if isinstance(value, Tensor)}
    output = method.predict_episodes(part)
    scores, presences = output.iou_pred[:, 0].tolist(), output.presence_logit[:, 0].tolist()
    return list(zip(output.mask_logits[:, 0].float(), scores, presences))


def predict_episode(method: FewShotMethod, batch: dict[str, Any], i: int) -> Prediction:
    """As `predict_some`, of episode i by itself."""
    return predict_some(method, batch, i, i + 1)[0]


class EvaluateModule(LightningModule):
    """The predict step of an evaluation; `running` is the metric over what was measured so far.

    Args:
        class_ids: classes of the list.
        scoring: "original" counts at the image's own size, "network" at the network's.
        done: rows of episodes that were measured before; they count in `running`.
        boundary: also measure DAVIS's F of each episode.
        edges: also that, and count along the outlines (`EDGE_COUNTS`).
        together: episodes that go through the network in one pass; 1 keeps counts the same whatever is loaded.

    Raises:
        ValueError: for another scoring.
    """

    def __init__(
        self,
        method: FewShotMethod,
        class_ids: Sequence[int],
        scoring: Scoring = "original",
        done: pd.DataFrame | None = None,
        boundary: bool = False,
        edges: bool = False,
        together: int = 1,
    ) -> None:
        super().__init__()
        if scoring not in ("original", "network"):
            raise ValueError(f"unknown scoring {scoring!r}; use 'original' (the image's own size) or 'network'.")
        self.method, self.scoring, self.together = method.eval(), scoring, together
        self.boundary, self.edges = boundary or edges, edges
        # For the bar, of this process's share: to ask the others at every batch would make all wait for the slowest.
        self.running = FewShotIoU(class_ids, sync_on_compute=False)
        if done is not None:
            add_rows(self.running, done)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Rows of the batch's episodes."""
        rows, class_ids = [], batch["class_id"].tolist()
        # One by one unless asked otherwise: batched arithmetic rounds differently, and counts should not.
        passes = (
            predict_some(self.method, batch, start, start + self.together)
            for start in range(0, len(class_ids), self.together)
        )
        for i, (logits, score, presence) in enumerate(chain.from_iterable(passes)):
            class_id = class_ids[i]
            truth = batch["query_mask_original"][i]
            if self.scoring == "network":  # as the field shrinks truths, not as losses read them
                truth = self.method.resize.truth(truth, exact=False)
            # Logits are resized, not masks: the border then lies between pixels as the network meant it.
            logits = self.method.resize.invert(logits, (truth.shape[-2], truth.shape[-1]))
            mask = logits.sigmoid() > self.method.threshold
            inter, union = intersection_union(mask, truth)
            self.running.add_counts(inter, union, class_id)
            row = {
                "episode": int(batch["episode_index"][i]),
                "class_id": class_id,
                "query": batch["query_id"][i],
                "support": " ".join(batch["support_ids"][i]),
                **dict(zip(COUNTS, (*inter.tolist(), *union.tolist()))),
                "score": score,
                "presence": presence,
            }
            if self.boundary:
                row["boundary_f"] = boundary_f(mask.cpu().numpy(), truth.cpu().numpy())
            if self.edges:
                row |= dict(zip(EDGE_COUNTS, band_counts(mask.cpu().numpy(), truth.cpu().numpy())))
            rows.append(row)
        return rows


class RowWriter(Callback):
    """Appends rows as they come, so that an interrupted evaluation goes on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any, **kwargs: Any) -> None:
        """Writes the rows of one batch."""
        # A file for each process: lines that two append to one file at once would mix.
        path = self.folder / f"rows.{trainer.global_rank}.csv"
        with path.open("a", newline="", encoding="utf-8") as file:
            names = (*COLUMNS, *EDGE_COUNTS) if EDGE_COUNTS[0] in outputs[0] else COLUMNS
            csv.DictWriter(file, names).writerows(outputs)


def evaluate(
    method: FewShotMethod,
    index: ClassIndex,
    episodes: EpisodeList,
    folder: str | Path,
    *,
    scoring: Scoring = "original",
    fingerprint: str = "",
    data: Dataset | None = None,
    batch_size: int = 1,
    together: int = 1,
    num_workers: int = 0,
    trainer: Trainer | None = None,
    boundary: bool = False,
    edges: bool = False,
) -> Evaluation:
    """Measure a method on a list, or go on with a measurement that was interrupted.

    Args:
        folder: rows and scores go here; rows of the same list, method and scoring that are there are kept.
        scoring: "original" or "network", see `EvaluateModule`.
        fingerprint: of the method's weights; a folder with rows of another one is refused.
        data: replaces `EpisodeData(index, episodes, method.resize)`, for instance with cached maps.
        batch_size: episodes loaded at a time, at least `together`.
        together: episodes that go through the network in one pass; with another number than 1 counts may differ by
            rounding.
        trainer: Lightning's, for devices and nodes; None = one process on the CPU.
        boundary: also measure DAVIS's F of each episode.
        edges: also that, and count along the outlines (`EDGE_COUNTS`).

    Raises:
        ValueError: if the folder holds rows of another measurement, or episodes are missing at the end.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"episodes": episodes.content_hash, "scoring": scoring, "method": fingerprint}
    _claim(folder, wanted | ({"edges": "true"} if edges else {}))
    before = read_rows(folder)
    done = set(before["episode"].tolist())
    rest = [i for i in range(len(episodes)) if i not in done]
    if rest:
        data = EpisodeData(index, episodes, method.resize) if data is None else data
        loader = DataLoader(
            Subset(data, rest),
            batch_size=max(batch_size, together),
            collate_fn=collate_episodes,
            num_workers=num_workers,
        )
        trainer = trainer or Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
        )
        trainer.callbacks.append(RowWriter(folder))  # type: ignore[attr-defined]
        module = EvaluateModule(
            method, episodes.class_ids, scoring, before, boundary=boundary, edges=edges, together=together
        )
        trainer.predict(module, loader, return_predictions=False)
        # Every process reads all rows below, so all must have written their last one.
        trainer.strategy.barrier()
    rows = read_rows(folder)
    if len(rows) != len(episodes):
        raise ValueError(
            f"{folder} has {len(rows)} of {len(episodes)} episodes; the other processes' rows must lie in the same "
            "folder: give the run one that all machines share (or turn trainer.limit_predict_batches off)."
        )
    return summarise(rows, episodes.class_ids)


def summarise(rows: pd.DataFrame, class_ids: Sequence[int]) -> Evaluation:
    """Scores of a table of rows, which are put in the order of the list; `class_ids` are those that were asked for."""
    rows = rows.sort_values("episode").reset_index(drop=True)
    metric = add_rows(FewShotIoU(class_ids), rows)
    columns = (rows[name].to_numpy(np.int64) for name in ("class_id", "inter_fg", "union_fg"))
    return Evaluation(metric.compute(), bootstrap_interval(*columns), rows)


def add_rows(metric: FewShotIoU, rows: pd.DataFrame) -> FewShotIoU:
    """Add episodes that were counted before to a metric; returns it."""
    for row in rows.itertuples():
        inter, union = torch.tensor([row.inter_bg, row.inter_fg]), torch.tensor([row.union_bg, row.union_fg])
        metric.add_counts(inter, union, int(row.class_id))  # type: ignore[arg-type]
    return metric


def _claim(folder: Path, wanted: dict[str, str]) -> None:
    """Note what is measured here; refuse a folder that holds something else."""
    path = folder / "measurement.json"
    if path.is_file():
        try:
            found = dict(plain_json(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"'{path}' is damaged ({error}); take another folder or delete it.") from error
        for key in wanted | found:
            if (value := wanted.get(key)) != found.get(key):
                raise ValueError(
                    f"{folder} holds rows of another measurement: {key} {found.get(key)!r} there, {value!r} here; "
                    "take another folder or delete it."
                )
        return
    path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def read_rows(folder: Path) -> pd.DataFrame:
    """All complete rows of all processes of a measurement, each episode once; none where nothing was measured."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("rows.*.csv")):
        text = path.read_text(encoding="utf-8")
        # A killed process may have left half a line; it is cut off the file too, or the next row would continue it.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        rows += csv.DictReader(whole.splitlines(), (*COLUMNS, *EDGE_COUNTS))  # type: ignore[arg-type]
    table = pd.DataFrame(rows, columns=[*COLUMNS, *EDGE_COUNTS])
    kinds = dict.fromkeys(("episode", "class_id", *COUNTS), "int64") | dict.fromkeys(("score", "presence"), "float64")
    try:
        table = table.astype(kinds)
        # Empty where it was not asked for.
        table["boundary_f"] = pd.to_numeric(table["boundary_f"])
        counted = table[EDGE_COUNTS[0]].notna().any()
        table = table.astype(dict.fromkeys(EDGE_COUNTS, "int64")) if counted else table.drop(columns=list(EDGE_COUNTS))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"the rows in '{folder}' are damaged ({error}); delete them and measure again.") from error
    # A distributed sampler repeats episodes to fill its last batch; each must count once.
    return table.drop_duplicates("episode")
