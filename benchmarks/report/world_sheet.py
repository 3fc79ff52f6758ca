"""The embedded world in one image, shapes, textures and scenes: `python -m benchmarks.report.world_sheet`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import RESULTS, run_script
from fsdino.data.world.index import SPLITS, SyntheticWorld
from fsdino.data.world.shapes import NUM_SHAPES, shape_template
from fsdino.data.world.textures import NUM_TEXTURES, texture_tile
from fsdino.visualize import overlay, row_of_panels, sheet, write_png


def grid(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Grey images of one size in [0, 1] as one RGB image."""
    rows = [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    return np.repeat((np.concatenate(rows) * 255).astype(np.uint8)[..., None], 3, axis=2)


def main(out: Path = RESULTS / "world.png") -> None:
    """Write the sheet."""
    strips = [
        grid([cv2.resize(shape_template(s), (64, 64), interpolation=cv2.INTER_AREA) for s in range(NUM_SHAPES)], 16),
        grid([texture_tile(t)[:64, :64] for t in range(NUM_TEXTURES)], 16 if NUM_TEXTURES % 16 == 0 else 20),
    ]
    for split in SPLITS:
        index = SyntheticWorld(split, 2)
        panels = []
        for class_id in list(range(0, len(index.class_names), len(index.class_names) // 6))[:6]:
            image = index.images(class_id)[0]
            drawn = overlay(index.load_image(image).repeat(2, 0).repeat(2, 1),
                            index.load_mask(image, class_id).repeat(2, 0).repeat(2, 1))  # fmt: skip
            panels.append((drawn, f"{split}: {index.class_names[class_id]}", image))
        strips.append(row_of_panels(panels, 224))
    write_png(out, sheet(strips, title="The embedded world: 48 shapes, 40 textures, scenes of each split"))
    print(out)


if __name__ == "__main__":
    run_script(main)
