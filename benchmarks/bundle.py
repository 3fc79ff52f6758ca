"""The last step of `make assets`: measure the teacher, run the tiny recipe, and bundle its model in half precision."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from experiments import RESULTS
from provenance import provenance

from fsdino.commands import run
from fsdino.data.synthetic import SyntheticScenes
from fsdino.recipe import bundled_file, read_recipe
from fsdino.teachers.sam import SamTeacher
from fsdino.train.teach import evaluate_prompts
from fsdino.weights import load, save_pretrained

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


def main() -> None:
    """Measure and bundle."""
    rows = [{"split": split} | measure_teacher(split) | provenance() for split in ("pretrain", "base", "novel")]
    with (RESULTS / "teacher.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"teacher on {row['split']} classes: one click {row['click_iou']}, box {row['box_iou']}")
    recipe, options = read_recipe(["--config", "recipes/tiny.yaml"])
    run(recipe, options)
    newest = max(Path("runs/tiny").glob("*/export"), key=lambda path: path.stat().st_mtime)
    save_pretrained(load(newest), ASSET, half=True)
    print(f"bundled {newest} as {ASSET}")


if __name__ == "__main__":
    main()
