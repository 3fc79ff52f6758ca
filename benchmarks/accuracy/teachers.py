"""What the bundled promptable models can do: `python -m benchmarks.accuracy.teachers`.

The tiny SAM (`teacher.csv`) and the mini SAM2 (`mini_sam2.csv`), on the objects of scenes of the embedded world: from
one central click, from a tight box, and, for the SAM2, by tracking the true mask into another view of the scene.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import RESULTS, Row, mean_interval, provenance, run_script, write_rows
from fsdino.assets.pretrain_sam2 import Sam2PretrainModule, second_view
from fsdino.base.bundled import bundled_file
from fsdino.data.world.stream import SyntheticScenes
from fsdino.methods.sam2.weights import build_sam2
from fsdino.teachers.prompting import central_clicks, mask_ious, tight_boxes
from fsdino.teachers.sam import SamTeacher
from fsdino.training.teacher import evaluate_prompts

Score = Callable[[Tensor, Tensor], dict[str, Tensor]]  # image (1, 3, S, S), masks (N, S, S) -> IoU (N,) by prompt


def sam_scores(teacher: SamTeacher) -> Score:
    """A SAM's two prompts."""

    def score(image: Tensor, masks: Tensor) -> dict[str, Tensor]:
        return evaluate_prompts(teacher.sam, teacher.embed(image), torch.zeros(len(masks), dtype=torch.long), masks)

    return score


def sam2_scores(module: Sam2PretrainModule) -> Score:
    """A SAM2's two prompts (best of three masks after a click, the single one after a box), and tracking."""
    size = (module.sam2.img_size, module.sam2.img_size)
    generator = torch.Generator().manual_seed(0)  # of the other views

    def score(image: Tensor, masks: Tensor) -> dict[str, Tensor]:
        image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
        masks = F.interpolate(masks[None].float(), size, mode="nearest-exact")[0] == 1
        sam2, place = module.sam2, torch.zeros(len(masks), dtype=torch.long)
        frame = sam2.encode(image).take(place)
        alone, ones = sam2.without_memory(frame), torch.ones(len(masks), 1, dtype=torch.long)
        corners = torch.tensor([2, 3]).expand(len(masks), -1)
        moved, moved_masks = second_view(image, place, masks, generator)
        found = {
            "click_iou": sam2.decode(frame, alone, central_clicks(masks)[:, None], ones).best(),
            "box_iou": sam2.decode(frame, alone, tight_boxes(masks).reshape(-1, 2, 2), corners, multimask=False),
            "track_iou": module._track(frame, masks[:, None].float(), sam2.encode(moved).take(place)).best(),
        }
        result = {}
        for name, decoded in found.items():
            logits = F.interpolate(decoded.mask_logits, size, mode="bilinear", align_corners=False)[:, 0]
            truth = moved_masks if name == "track_iou" else masks
            there = truth.flatten(1).any(1) if name == "track_iou" else slice(None)  # it may have left the view
            result[name] = mask_ious(logits > 0, truth)[there]
        return result

    return score


@torch.no_grad()
def measure(score: Score, split: str, scenes: int) -> Row:
    """Mean IoU over the objects of a split's scenes, in percent, with bootstrap intervals."""
    values: dict[str, list[float]] = {}
    for item in SyntheticScenes(split, scenes, seed=77, max_objects=4):
        drawn = torch.tensor([bool((item["shape_map"][mask == 1] >= 0).any()) for mask in item["masks"]])
        objects = item["masks"][item["valid"] & drawn]  # clutter has no shape
        if len(objects):
            for name, found in score(item["image"][None], objects).items():
                values.setdefault(name, []).extend(found.tolist())
    rng, row = np.random.default_rng(0), {"objects": len(values["click_iou"])}
    for name, shares in values.items():
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(shares, rng)))
    return row


def main(scenes: int = 100, results: Path = RESULTS) -> None:
    """Measure both models on so many scenes of each split, and write both CSVs."""
    teacher = SamTeacher.from_checkpoint(bundled_file("tiny_sam"))
    module = Sam2PretrainModule().eval()
    module.sam2 = build_sam2(weights=bundled_file("mini_sam2"), img_size=module.sam2.img_size)
    scores: dict[str, Callable[[], Score]] = {
        "teacher": lambda: sam_scores(teacher),
        "mini_sam2": lambda: sam2_scores(module),
    }
    for name, score in scores.items():
        rows = [{"split": split} | measure(score(), split, scenes) for split in ("pretrain", "novel")]
        write_rows(results / f"{name}.csv", [row | provenance() for row in rows])
        for row in rows:
            print(name, row)


if __name__ == "__main__":
    run_script(main)
