"""What `fsdino adapt` gives somebody with a few references: `python -m benchmarks.accuracy.adapted`.

A session is three classes with five references each, other images that show them, and as many that do not. The
training-free chain finds them as it is, adapted to photographs of another kind, and adapted to these and to the
session's references. Masks are scored where the class is there, and the answer "absent" everywhere; intervals draw
sessions. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy.chain import ROOT, WEIGHTS, ends
from benchmarks.accuracy.own_cut import AS_IT_IS, OTHERS, PHOTOGRAPHS, methods
from benchmarks.common import RESULTS, provenance, run_script, update_rows
from fsdino.base.reference import Reference
from fsdino.base.result import ONE_HALF
from fsdino.data.catalog import open_data_set
from fsdino.data.class_index import ClassIndex
from fsdino.methods.chain import ChainMethod
from fsdino.metrics.few_shot import intersection_union
from fsdino.predict.adapt import judged

KEY = ("data", "way")
WITH_REFERENCES = f"{OTHERS}, and to references"
CLASSES, SHOTS, QUERIES = 3, 5, 6
LEAST_COVER = 0.01  # of an image, for it to show a class
Session = dict[int, tuple[list[str], list[str], list[str]]]  # class -> references, images with it, images without


def sessions(index: ClassIndex, number: int, seed: int) -> Iterator[Session]:
    """Sessions drawn by a seed; an image without the class shows nothing of it."""
    rng, every = np.random.default_rng(seed), sorted(index.all_images())
    # Classes that are hardly to be seen in an image are another question.
    shown = {one: [name for name in index.images(one) if seen(index, name, one)] for one in sorted(index.class_names)}
    classes = [one for one, names in shown.items() if len(names) >= SHOTS + QUERIES]
    for _ in range(number):
        session: Session = {}
        for one in map(int, rng.choice(classes, CLASSES, replace=False)):
            names = [str(name) for name in rng.permutation(shown[one])[: SHOTS + QUERIES]]
            lacking = [name for name in every if one not in index.classes_in(name)]
            without = [str(name) for name in rng.permutation(lacking)[:QUERIES]]
            session[one] = (names[:SHOTS], names[SHOTS:], without)
        yield session


def seen(index: ClassIndex, name: str, of_class: int) -> bool:
    """Whether a class covers enough of an image."""
    return bool((index.load_mask(name, of_class) == 1).mean() >= LEAST_COVER)


@torch.no_grad()
def counts(method: ChainMethod, index: ClassIndex, session: Session, judge: bool) -> np.ndarray:
    """A row a class: intersection and union over its images, how many were missed, in how many others it was found."""
    shown = {
        one: [Reference(index.load_image(name), mask=index.load_mask(name, one) == 1, name=name) for name in names]
        for one, (names, _, _) in session.items()
    }
    if judge:
        method.presence_cut = judged(method, list(shown.values()))["presence_cut"]
    rows = []
    for one, (_, present, absent) in session.items():
        memory, row = method.remember(shown[one]), np.zeros(4)
        for name in present:
            found = method.segment(memory, index.load_image(name), min_presence=0)
            inter, union = intersection_union(
                torch.from_numpy(found.mask), torch.from_numpy(index.load_mask(name, one))
            )
            row += [int(inter[1]), int(union[1]), found.presence <= ONE_HALF, 0]
        row[3] = sum(method.segment(memory, index.load_image(name)).presence > ONE_HALF for name in absent)
        rows.append(row)
    return np.array(rows)


def scores(table: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(3, samples) in percent: mean IoU of the classes, images missed, images without the class where it was found."""
    some = table[drawn].reshape(len(drawn), -1, 4)
    iou = (some[..., 0] / some[..., 1]).mean(1)
    return 100 * np.stack([iou, some[..., 2].mean(1) / QUERIES, some[..., 3].mean(1) / QUERIES])


def main(
    data: str = "coco386",
    root: Path = ROOT,
    weights: Path = WEIGHTS,
    photographs: Path = PHOTOGRAPHS,
    number: int = 30,
    seed: int = 5,
    runs: Path = Path("runs/benchmarks/own_cut"),
    csv: Path = RESULTS / "adapted.csv",
) -> None:
    """Measure the chain on one data set.

    Args:
        data: name of the data set.
        root: its folder.
        weights: of the photographs' encoder, preset photos.
        photographs: of another kind, which the encoder is adapted to.
        number: sessions.
        seed: that they are drawn by.
        runs: keeps the encoder's maps.
    """
    index, built = open_data_set(data, str(root), "test"), methods(root, weights, photographs, runs)
    drawn_sessions = list(sessions(index, number, seed))
    rng = np.random.default_rng(0)
    drawn = np.concatenate([np.arange(number)[None], rng.integers(number, size=(1000, number))])
    first, found = None, []
    for way, name in ((AS_IT_IS, AS_IT_IS), (OTHERS, OTHERS), (WITH_REFERENCES, OTHERS)):
        of_way = [counts(built[name], index, session, way == WITH_REFERENCES) for session in drawn_sessions]
        iou, missed, elsewhere = scores(np.stack(of_way), drawn)
        first = iou if first is None else first
        gain = {f"iou_{end}": value for end, value in ends(iou - first, "gain").items()}
        error = (missed + elsewhere) / 2
        told = {"missed": round(missed[0], 2), "elsewhere": round(elsewhere[0], 2)}
        scored = ends(iou, "iou") | gain | told | {f"error_{k}": v for k, v in ends(error, "value").items()}
        classes = len({one for session in drawn_sessions for one in session})
        found.append({"data": data, "way": way} | scored | {"sessions": number, "classes": classes})
        print(*found[-1].values(), flush=True)
    protocol = (
        f"{CLASSES} classes, {SHOTS} references, {QUERIES} images with and without; 1000 bootstrap samples of sessions"
    )
    update_rows(csv, [row | provenance(seed=seed, protocol=protocol) for row in found], KEY)


if __name__ == "__main__":
    run_script(main)
