"""What the mini SAM2 can do, on the teacher's objects: `python benchmarks/mini_sam2.py [--weights FILE]`.

One central click (the best of three masks by the predicted IoU), a tight box (the single mask), and tracking of the
true mask into another view of the scene. Writes `benchmarks/results/mini_sam2.csv`; the teacher's rows are in
`teacher.csv`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from experiments import RESULTS
from provenance import provenance, write_rows
from torch import Tensor

from fsdino.assets.pretrain_sam2 import Sam2PretrainModule, second_view
from fsdino.data.world.stream import SyntheticScenes
from fsdino.methods.sam2.weights import build_sam2
from fsdino.teachers.prompting import central_clicks, mask_ious, tight_boxes


@torch.no_grad()
def scores(module: Sam2PretrainModule, image: Tensor, masks: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """IoU (N,) of each object of one scene, by prompt.

    Args:
        module: Holds the SAM2.
        image: (1, 3, S, S) in [0, 1], at the model's size.
        masks: (N, S, S) bool.
        generator: Of the other view.
    """
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
        logits = F.interpolate(decoded.mask_logits, masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        there = moved_masks.flatten(1).any(1) if name == "track_iou" else torch.ones(len(masks), dtype=torch.bool)
        result[name] = mask_ious(logits > 0, moved_masks if name == "track_iou" else masks)[there]
    return result


def measure(module: Sam2PretrainModule, split: str, scenes: int = 100) -> dict[str, float]:
    """Mean IoU over the objects of a split's scenes, in percent, with bootstrap intervals."""
    values: dict[str, list[float]] = {}
    size, generator = (module.sam2.img_size, module.sam2.img_size), torch.Generator().manual_seed(0)
    for item in SyntheticScenes(split, scenes, seed=77, max_objects=4):
        drawn = torch.tensor([bool((item["shape_map"][m == 1] >= 0).any()) for m in item["masks"]])  # clutter is none
        objects = item["masks"][item["valid"] & drawn]
        if len(objects) == 0:
            continue
        image = F.interpolate(item["image"][None], size, mode="bilinear", align_corners=False, antialias=True)
        masks = F.interpolate(objects[None].float(), size, mode="nearest-exact")[0] == 1
        for name, found in scores(module, image.clamp(0, 1), masks, generator).items():
            values.setdefault(name, []).extend(found.tolist())
    rng, row = np.random.default_rng(0), {"objects": len(values["click_iou"])}
    for name, found in values.items():
        draws = rng.choice(found, (1000, len(found))).mean(1)
        row |= {name: 100 * float(np.mean(found)), f"{name}_low": 100 * float(np.quantile(draws, 0.025)),
                f"{name}_high": 100 * float(np.quantile(draws, 0.975))}  # fmt: skip
    return {name: round(value, 2) for name, value in row.items()}


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="fsdino/assets/mini_sam2.safetensors")
    chosen = parser.parse_args()
    module = Sam2PretrainModule().eval()
    module.sam2 = build_sam2(weights=chosen.weights, img_size=module.sam2.img_size)
    rows = [{"split": split} | measure(module, split) | provenance() for split in ("pretrain", "novel")]
    write_rows(RESULTS / "mini_sam2.csv", rows)
    for row in rows:
        print(f"{row['split']}: click {row['click_iou']}, box {row['box_iou']}, tracked {row['track_iou']}")


if __name__ == "__main__":
    main()
