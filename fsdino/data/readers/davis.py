"""DAVIS 2016 and 2017: the first frame's mask is the reference, every later frame a query."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fsdino.base.image import IGNORE
from fsdino.data.catalog import TRAIN_VAL, DataSet, Published, Requirement, Source
from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError, existing, first_existing, read_names
from fsdino.data.images import check_mask_size, image_size, read_image, read_labels, read_reduced

_ROOTS = ("DAVIS", "DAVIS-data/DAVIS", ".")
_ARCHIVE = "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip"


class DavisIndex(ClassIndex):
    """DAVIS as few-shot episodes: a class is one object of one sequence.

    In 2016 all that is annotated is one object (also in the files of 2017); in 2017 each number in the first frame's
    label map is an object. The last frame is left out, as the official measure does. Draw episodes with order "first".

    Args:
        root: folder with `JPEGImages/480p`, `Annotations/480p` and `ImageSets/<year>/<split>.txt`, or one holding it as
            `DAVIS/`. Image ids are such as `bear/00000`.

    Source: Perazzi et al., 2016; Pont-Tuset et al., 2017.
    """

    def __init__(
        self, root: str | Path, split: Literal["train", "val"] = "val", year: int = 2017, resolution: str = "480p"
    ) -> None:
        base = first_existing(root, _ROOTS, "JPEGImages")
        self.name, self.year = f"davis{year}", year
        self._images = existing(base / "JPEGImages" / resolution, "the frames")
        self._masks = existing(base / "Annotations" / resolution, "the masks")
        self.class_names, self._frames, self._object = {}, {}, {}
        for sequence in _sequences(base / f"ImageSets/{year}/{split}.txt"):
            frames = sorted(p.stem for p in existing(self._images / sequence, "a sequence's frames").glob("*.jpg"))
            if len(frames) < 3:
                raise DataSetError(
                    f"sequence '{self._images / sequence}' has {len(frames)} frame(s), expected 3 or "
                    "more: unpack DAVIS again."
                )
            # The official measure leaves the last frame out.
            self._frames[sequence] = frames[:-1]
            for number in self._objects(sequence, frames[0]):
                class_id = len(self.class_names)
                self.class_names[class_id] = f"{sequence}/{number}"
                self._object[class_id] = (sequence, number)
        self.folds = [list(self.class_names)]

    def images(self, class_id: int) -> list[str]:
        sequence, _ = self._object[class_id]
        return [f"{sequence}/{frame}" for frame in self._frames[sequence]]

    def load_image(self, image_id: str) -> np.ndarray:
        return read_image(self._images / f"{image_id}.jpg")

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        return read_reduced(self._images / f"{image_id}.jpg", side)

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        sequence, number = self._object[class_id]
        if image_id.partition("/")[0] != sequence:
            return np.zeros(image_size(self._images / f"{image_id}.jpg"), np.uint8)
        path = self._masks / f"{image_id}.png"
        labels = read_labels(path)
        check_mask_size(labels, image_size(self._images / f"{image_id}.jpg"), path)
        # 2016 tests one object a sequence: 255 in files of 2016, all numbers together in those of 2017.
        if self.year == 2016:
            return (labels > 0).astype(np.uint8)
        return np.where(labels == IGNORE, IGNORE, labels == number).astype(np.uint8)

    def classes_in(self, image_id: str) -> set[int]:
        sequence = image_id.partition("/")[0]
        own = [class_id for class_id, (name, _) in self._object.items() if name == sequence]
        return {class_id for class_id in own if (self.load_mask(image_id, class_id) == 1).any()}

    def _objects(self, sequence: str, first_frame: str) -> list[int]:
        labels = read_labels(self._masks / sequence / f"{first_frame}.png")
        numbers = [int(n) for n in np.unique(labels) if n != 0 and (self.year == 2016 or n != IGNORE)]
        if not numbers:
            raise DataSetError(
                f"mask '{self._masks / sequence / first_frame}.png' has no foreground pixel; the first "
                "frame is the reference and needs at least one: unpack DAVIS again."
            )
        return [1] if self.year == 2016 else numbers


def _sequences(path: Path) -> list[str]:
    """Names of the sequences: a name a line (2017), or the paths of a frame and its mask a line (2016)."""
    names = []
    for line in read_names(path):
        first = line.split()[0]
        names.append(first if "/" not in first else Path(first).parent.name)
    return list(dict.fromkeys(names))


def _described(year: int, fetch: str, classes: dict[str, int]) -> DataSet:
    return DataSet(
        f"davis{year}",
        f"DAVIS {year}",
        DavisIndex,
        roles=TRAIN_VAL,
        options={"year": year},
        requirements=(
            Requirement("JPEGImages/480p", "frames", fetch, _ROOTS),
            Requirement("Annotations/480p", "masks", fetch, _ROOTS),
            Requirement(f"ImageSets/{year}/val.txt", "list of val sequences", fetch, _ROOTS),
            Requirement(f"ImageSets/{year}/train.txt", "list of train sequences", fetch, _ROOTS),
        ),
        published=Published(classes),
        order="first",
        # The files of 2017 hold the lists of 2016 as well.
        sources=(Source(_ARCHIVE, f"DAVIS/ImageSets/{year}/val.txt", 800),),
        licence="its own terms (davischallenge.org)",
    )


DATA_SETS = (
    _described(2016, "DAVIS-data.zip (2016) from davischallenge.org, or the 2017 files", {"train": 30, "val": 20}),
    _described(2017, "DAVIS-2017-trainval-480p.zip from davischallenge.org", {"train": 144, "val": 61}),
)
