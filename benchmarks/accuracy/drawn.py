"""How often the bundled model's caution fires: `python -m benchmarks.accuracy.drawn --photos '{coco386: DIR, ...}'`.

Photographs should set it off, images of the embedded world should not. The cut is the one with the fewest errors, both
sides counted alike, on the first half of every folder and on the world's base classes; the rates are those of the cut
in `fsdino.base.drawn` on either half, so the second halves and the novel classes played no part in its choice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, provenance, run_script, write_rows
from fsdino.base.drawn import CUT, shared_detail
from fsdino.data.images import read_image
from fsdino.data.world.index import SyntheticWorld
from fsdino.predict.images import find_images

WORLD = "embedded world"


def of_world(split: str, per_class: int) -> np.ndarray:
    """The statistic on images of every class of a split."""
    index = SyntheticWorld(split, per_class)
    return np.array([shared_detail(index.load_image(i)) for c in index.class_names for i in index.images(c)])


def of_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The statistic on the images of a folder, every other one apart."""
    values = np.array([shared_detail(read_image(Path(item.source[0]))) for item in find_images(str(folder))])
    return values[::2], values[1::2]


def best_cut(drawn: np.ndarray, photographs: list[np.ndarray]) -> float:
    """The cut with the fewest errors; every folder counts alike, and all of them as much as the drawn images."""
    cuts = np.arange(0.0, 1.0, 0.01)
    wrong = [(drawn >= cut).mean() + np.mean([(values < cut).mean() for values in photographs]) for cut in cuts]
    # Of equals the middle one, which is the farthest from either kind.
    return round(float(np.median(cuts[np.array(wrong) == min(wrong)])), 2)


def main(photos: dict[str, Path], per_class: int = 10, csv: Path = RESULTS / "drawn.csv") -> None:
    """Measure and write the CSV.

    Args:
        photos: name to folder of photographs.
        per_class: images painted of each class.
        csv: where to write.
    """
    halves = {name: of_folder(folder) for name, folder in photos.items()}
    halves[WORLD] = (of_world("base", per_class), of_world("novel", per_class))
    cut = best_cut(halves[WORLD][0], [first for name, (first, _) in halves.items() if name != WORLD])
    about = provenance(protocol="photographs should fire, the embedded world should not")
    rows = [
        {"images of": name, "half": half, "images": len(values),
         "fires, %": f"{100 * float((values >= CUT).mean()):.2f}", "cut": CUT,
         "best cut of the first halves": cut} | about
        for name, pair in halves.items()
        for half, values in zip(("first", "second"), pair)
    ]  # fmt: skip
    write_rows(csv, rows)
    for row in rows:
        print("  ".join(str(row[name]) for name in list(row)[:6]))


if __name__ == "__main__":
    run_script(main)
