"""The last step of `make assets`: measure the teacher, run the tiny recipe, and bundle its model in half precision.

With `--complete` the bundled model stays and gets what it lacks: SAM's prompted half, from the teacher, and a presence
head that has seen absent objects.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import RESULTS
from provenance import provenance

from fsdino.base.bundled import bundled_file
from fsdino.base.storage import load_segmenter, save_pretrained
from fsdino.data.world.stream import SyntheticScenes
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.pipeline.commands import run
from fsdino.pipeline.recipe import Recipe, read_recipe
from fsdino.pipeline.run import Job
from fsdino.teachers.sam import SamTeacher
from fsdino.training.presence import PresenceData, train_presence
from fsdino.training.teacher import evaluate_prompts

ASSET = Path("fsdino/assets/fsdino_tiny")


def measure_teacher(split: str, scenes: int = 200) -> dict[str, float]:
    """Mean IoU over the objects of a split's scenes after one central click and after the tight box, in percent."""
    teacher = SamTeacher.from_checkpoint(bundled_file("tiny_sam"))
    scores: dict[str, list[float]] = {}
    for item in SyntheticScenes(split, scenes, seed=77, max_objects=4):
        objects = item["masks"][item["valid"] & torch.tensor([bool((item["shape_map"][m == 1] >= 0).any())
                                                               for m in item["masks"]])]  # fmt: skip
        if len(objects) == 0:
            continue
        embedding = teacher.embed(item["image"][None])
        found = evaluate_prompts(teacher.sam, embedding, torch.zeros(len(objects), dtype=torch.long), objects)
        for name, values in found.items():
            scores.setdefault(name, []).extend(values.tolist())
    rng = np.random.default_rng(0)
    row: dict[str, float] = {"objects": len(scores["click_iou"])}
    for name, values in scores.items():
        draws = rng.choice(values, (1000, len(values))).mean(1)
        row |= {name: 100 * float(np.mean(values)), f"{name}_low": 100 * float(np.quantile(draws, 0.025)),
                f"{name}_high": 100 * float(np.quantile(draws, 0.975))}  # fmt: skip
    return {name: round(value, 2) for name, value in row.items()}


def promptable(model: FewShotSegmenter) -> FewShotSegmenter:
    """The same model with the bundled teacher's prompted half."""
    config = replace(model.config, promptable=True, threshold=model.threshold)
    whole = FewShotSegmenter(config, load_encoder=False)
    whole.load_prompter_(SamTeacher.from_checkpoint(bundled_file("tiny_sam")).sam.state_dict())
    whole.load_state_dict({**whole.state_dict(), **model.state_dict()})
    return whole.eval()


def complete(model: FewShotSegmenter, recipe: Recipe, options: dict[str, Any]) -> FewShotSegmenter:
    """A model with everything that a user can ask of it; its masks stay as they are."""
    whole = model if model.sam is not None else promptable(model)
    if whole.config.presence_statistics:
        return whole
    job = Job(recipe, options, Path("runs/assets/presence"))
    chosen = job.train_set
    features = job.feature_cache(chosen.annotated), chosen.annotated
    data = PresenceData(chosen.index, chosen.classes, chosen.val_classes, features=features, seed=recipe.seed)
    return train_presence(whole, data, recipe.presence.episodes)


def main() -> None:
    """Measure and bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--complete", action="store_true", help="train nothing but what the bundled model lacks")
    recipe, options = read_recipe(["--config", "recipes/tiny.yaml"])
    if parser.parse_args().complete:
        model = load_segmenter("tiny")
        results = getattr(model, "recorded_results", ("", {}))[1]
        save_pretrained(complete(model, recipe, options), ASSET, half=True, results=results, encoder="tiny_encoder")
        print(f"completed {ASSET}")
        return
    rows = [{"split": split} | measure_teacher(split) | provenance() for split in ("pretrain", "base", "novel")]
    with (RESULTS / "teacher.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"teacher on {row['split']} classes: one click {row['click_iou']}, box {row['box_iou']}")
    run(recipe, options)
    newest = max(Path("runs/tiny").glob("*/export"), key=lambda path: path.stat().st_mtime)
    model = load_segmenter(newest)
    results = getattr(model, "recorded_results", ("", {}))[1]
    save_pretrained(complete(model, recipe, options), ASSET, half=True, results=results, encoder="tiny_encoder")
    print(f"bundled {newest} as {ASSET}")


if __name__ == "__main__":
    main()
