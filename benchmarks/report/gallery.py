"""The README's gallery: `python -m benchmarks.report.gallery`, strips of novel classes of the embedded world.

Episodes are not picked by hand: they are every fiftieth of the fixed one-shot list. The object is known to be there, as
in the table of results: masks are shown without the answer "absent".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import ONE_SHOT, RESULTS, run_script
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.storage import load
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.world.index import SyntheticWorld
from fsdino.visualize import episode_strip, sheet

COLORS = 160  # of the palette: keeps the file below 300 KB


def strips(model: FewShotMethod, every: int, size: int) -> list[np.ndarray]:
    """One strip (support, query, truth, prediction) for each of the chosen episodes."""
    index, episodes, drawn = SyntheticWorld("novel"), EpisodeList.load(ONE_SHOT), []
    for spec in list(episodes)[::every]:
        images = [index.load_image(image_id) for image_id in spec.support]
        masks = [index.load_mask(image_id, spec.class_id) == 1 for image_id in spec.support]
        memory = model.remember([Reference(image, mask=mask) for image, mask in zip(images, masks)])
        query = index.load_image(spec.query)
        found, truth = model.segment(memory, query), index.load_mask(spec.query, spec.class_id)
        name = index.class_names[spec.class_id]
        mask = found.probs > model.threshold
        drawn.append(episode_strip(images, masks, query, truth, mask, class_name=name, score=found.score, size=size))
    return drawn


def main(model: str = "tiny", every: int = 50, size: int = 140, out: Path = RESULTS / "gallery.png") -> None:
    """Write the image: every so many episodes of the list, panels of `size` pixels."""
    image = Image.fromarray(sheet(strips(load(model), every, size), columns=2))
    out.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(COLORS, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}  {out.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    run_script(main)
