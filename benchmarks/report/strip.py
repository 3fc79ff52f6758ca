"""The README's strip of photographs: `python -m benchmarks.report.strip runs/fsdino-photos_quick/DATE/export`.

A folder of `docs/photos` is a reference with its mask and two other photographs of the same kind. The object is known
to be there, so masks are shown without the answer "absent".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.common import ROOT, run_script
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.storage import load
from fsdino.visualize.overlay import overlay

GIVEN, FOUND = 2, 1  # labels of the overlay: orange and sky blue
ROWS = ["dogs", "dandelions", "limes", "pliers", "fish", "coins"]
PANEL, GAP, BETWEEN = (200, 150), 4, 20


def panel(image: np.ndarray, mask: np.ndarray, label: int) -> Image.Image:
    """A photograph with a mask drawn on it, whole, in the middle of a panel."""
    return ImageOps.pad(Image.fromarray(overlay(image, mask * np.uint8(label))), PANEL, color="white")


def row(model: FewShotMethod, folder: Path) -> list[Image.Image]:
    """The panels of one folder: what is shown, then what is found."""
    read = {path.stem: np.array(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.jpg"))}
    image = read.pop("reference")
    mask = np.asarray(Image.open(folder / "reference.png").convert("L")) > 127
    memory = model.remember([Reference(image, mask=mask)])
    found = zip(read.values(), model.segment_batch(memory, list(read.values())))
    return [panel(image, mask, GIVEN), *(panel(other, one.probs > model.threshold, FOUND) for other, one in found)]


def main(
    model: str,
    rows: list[str] = ROWS,
    photos: Path = ROOT / "docs" / "photos",
    out: Path = ROOT / "docs" / "strip.jpg",
    columns: int = 2,
) -> None:
    """Write the image.

    Args:
        model: whatever fsdino.load opens.
        rows: folders of `photos` in the order in which they are shown.
        photos: where they lie.
        out: the JPEG.
        columns: rows of photographs side by side.
    """
    method = load(model)
    groups = [row(method, photos / name) for name in rows]
    width, height = PANEL[0] + GAP, PANEL[1] + GAP
    group = width * len(groups[0]) + BETWEEN
    sheet = Image.new("RGB", (group * columns - BETWEEN - GAP, height * -(-len(groups) // columns) - GAP), "white")
    for number, panels in enumerate(groups):
        for place, one in enumerate(panels):
            sheet.paste(one, (number % columns * group + place * width, number // columns * height))
    sheet.save(out, quality=88)
    print(f"{out}  {out.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    run_script(main)
