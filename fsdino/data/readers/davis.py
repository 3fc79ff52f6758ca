"""DAVIS 2016 and 2017: the first frame's mask is the reference, every later frame a query; measures J and F."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError, existing, first_existing, read_names
from fsdino.data.images import IGNORE, check_mask_size, image_size, read_image, read_labels

ROOTS = ("DAVIS", "DAVIS-data/DAVIS", ".")
PUBLISHED_SEQUENCES = {(2016, "train"): 30, (2016, "val"): 20, (2017, "train"): 60, (2017, "val"): 30}
BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal


class DavisIndex(ClassIndex):
    """DAVIS as few-shot episodes: a class is one object of one sequence.

    In 2016 all that is annotated is one object (also in the files of 2017); in 2017 each number in the first frame's
    label map is an object. The last frame is left out, as the official measure does. Draw episodes with order "first".

    Args:
        root: folder with `JPEGImages/480p`, `Annotations/480p` and `ImageSets/<year>/<split>.txt`, or one holding it as
            `DAVIS/`. Image ids are such as `bear/00000`.
        split: "train" or "val".
        year: 2016 or 2017.
        resolution: folder of the frames, "480p" or "Full-Resolution".

    Raises:
        DataSetError: a file or folder is missing, or a sequence has fewer than three frames.

    Source: Perazzi et al., 2016; Pont-Tuset et al., 2017.
    """

    def __init__(
        self, root: str | Path, split: Literal["train", "val"] = "val", year: int = 2017, resolution: str = "480p"
    ) -> None:
        base = first_existing(root, ROOTS, "JPEGImages")
        self.name, self.year = f"davis{year}", year
        self._images = existing(base / "JPEGImages" / resolution, "the frames")
        self._masks = existing(base / "Annotations" / resolution, "the masks")
        self.class_names, self._frames, self._object = {}, {}, {}
        for sequence in _sequences(base / f"ImageSets/{year}/{split}.txt"):
            frames = sorted(p.stem for p in existing(self._images / sequence, "a sequence's frames").glob("*.jpg"))
            if len(frames) < 3:
                raise DataSetError(f"sequence '{self._images / sequence}' has {len(frames)} frame(s), expected 3 or "
                                   "more: unpack DAVIS again.")
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

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        sequence, number = self._object[class_id]
        if image_id.partition("/")[0] != sequence:
            return np.zeros(image_size(self._images / f"{image_id}.jpg"), np.uint8)
        path = self._masks / f"{image_id}.png"
        labels = read_labels(path)
        check_mask_size(labels, image_size(self._images / f"{image_id}.jpg"), path)
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
            raise DataSetError(f"mask '{self._masks / sequence / first_frame}.png' has no foreground pixel; the first "
                               "frame is the reference and needs at least one: unpack DAVIS again.")
        return [1] if self.year == 2016 else numbers


def region_similarity(pred: np.ndarray, truth: np.ndarray) -> float:
    """DAVIS's J: intersection over union of one frame; 1 when both are empty.

    Args:
        pred: (H, W) bool.
        truth: (H, W) in {0, 1, 255 = ignore}.

    Returns:
        J in [0, 1].
    """
    valid = truth != IGNORE
    found, wanted = (np.asarray(pred) != 0) & valid, truth == 1
    union = int((found | wanted).sum())
    return int((found & wanted).sum()) / union if union else 1.0


def boundary_f(pred: np.ndarray, truth: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """DAVIS's F: harmonic mean of precision and recall of the outline, matched within a small distance.

    Args:
        pred: (H, W) bool.
        truth: (H, W) in {0, 1, 255 = ignore}.
        tolerance: distance as a share of the image's diagonal, rounded up to pixels.

    Returns:
        F in [0, 1]; 1 when neither has an outline.

    Source: Perazzi et al., 2016, section 3.2 (boundary matching by dilation, as in the official evaluation).
    """
    valid = truth != IGNORE
    found, wanted = outline((np.asarray(pred) != 0) & valid), outline(truth == 1)
    radius = int(np.ceil(tolerance * np.hypot(*truth.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    near_wanted, near_found = cv2.dilate(wanted, disk), cv2.dilate(found, disk)
    num_found, num_wanted = int(found.sum()), int(wanted.sum())
    if not num_found or not num_wanted:
        return 1.0 if num_found == num_wanted else 0.0
    precision = int((found & near_wanted).sum()) / num_found
    recall = int((wanted & near_found).sum()) / num_wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour, (H, W) bool -> uint8."""
    padded = np.pad(mask.astype(bool), ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    return ((here ^ padded[:-1, 1:]) | (here ^ padded[1:, :-1]) | (here ^ padded[1:, 1:])).astype(np.uint8)


def davis_score(class_ids: np.ndarray, values: np.ndarray) -> float:
    """Mean over objects of the mean over their frames, of J or of F.

    Args:
        class_ids: (N,) object of each frame.
        values: (N,) J or F of each frame, in [0, 1].

    Returns:
        The score in [0, 1].
    """
    class_ids, values = np.asarray(class_ids), np.asarray(values)
    return float(np.mean([values[class_ids == class_id].mean() for class_id in np.unique(class_ids)]))


def _sequences(path: Path) -> list[str]:
    """Names of the sequences: a name a line (2017), or the paths of a frame and its mask a line (2016)."""
    names = []
    for line in read_names(path):
        first = line.split()[0]
        names.append(first if "/" not in first else Path(first).parent.name)
    return list(dict.fromkeys(names))
