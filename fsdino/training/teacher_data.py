"""Photographs with masks of their parts and objects, whatever they are called: what a promptable SAM learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsdino.base.image import IGNORE
from fsdino.base.resize import Resize
from fsdino.data.class_index import ClassIndex
from fsdino.data.images import IMAGE_SUFFIXES, read_image, read_labels
from fsdino.training.epoch_data import EpochData
from fsdino.training.teacher import TeachPart

MIN_SHARE = 0.002  # of the image's area; smaller pieces are not objects
VAL_LENGTH = 32  # images of the validation draws


class ObjectSource(Protocol):
    """Images by number, each with a map of its objects."""

    def __len__(self) -> int:
        """Number of images."""

    def load(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 and labels (H, W) int: 0 = nothing, 255 = unknown, else one number an object."""


@dataclass(frozen=True)
class ClassObjects:
    """Objects of some classes of a data set; each connected part of a class mask is an object.

    `classes` may be seen; the pixels of those to `ignore`, such as the novel ones, are unknown (255).
    """

    index: ClassIndex
    classes: tuple[int, ...]
    ignore: tuple[int, ...] = ()

    @cached_property
    def images(self) -> list[str]:
        """Images with one of the classes."""
        return sorted({p for c in self.classes for p in self.index.images(c)})

    def __len__(self) -> int:
        return len(self.images)

    def load(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See `ObjectSource`."""
        return self.index.load_image(self.images[number]), self.labels(number)

    def labels(self, number: int) -> np.ndarray:
        """The map of `load`, whose image is not read."""
        image_id = self.images[number]
        present = self.index.classes_in(image_id)
        labels: np.ndarray = np.zeros((1, 1), np.int32)
        for class_id in sorted(present & set(self.classes)):
            mask = self.index.load_mask(image_id, class_id)
            _, parts = cv2.connectedComponents((mask == 1).astype(np.uint8))
            # Numbers beyond 255 and beyond those given so far: every part is an object of its own.
            labels = np.where(parts > 0, parts + max(IGNORE, int(labels.max())), labels)
            labels = np.where(mask == IGNORE, IGNORE, labels)
        for class_id in sorted(present & set(self.ignore)):
            # After the classes, so that what overlaps a novel object is unknown too.
            labels = np.where(self.index.load_mask(image_id, class_id) != 0, IGNORE, labels)
        return labels


class RegionObjects:
    """Region maps by several annotators: `images/<image>.jpg`, `labels/<image>_<k>.png`; one is drawn each time.

    Raises:
        ValueError: if an image has no map, or there is none.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.images = sorted(p for p in (self.root / "images").glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not self.images:
            raise ValueError(f"no image in {self.root / 'images'}; expected images/ and labels/<image>_<k>.png.")
        self.maps = {p.stem: sorted((self.root / "labels").glob(f"{p.stem}_*.png")) for p in self.images}
        if bare := [name for name, maps in self.maps.items() if not maps]:
            raise ValueError(f"image {bare[0]} in {self.root} has no labels/{bare[0]}_<k>.png; add its region map.")

    @property
    def files(self) -> list[Path]:
        """Images and maps, in a fixed order."""
        return [*self.images, *(path for image in self.images for path in self.maps[image.stem])]

    def __len__(self) -> int:
        return len(self.images)

    def load(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See `ObjectSource`."""
        path = self.images[number]
        maps = self.maps[path.stem]
        labels = read_labels(maps[int(rng.integers(len(maps)))])
        # Past 255, because here every number is a region, also those that elsewhere mean nothing and unknown.
        return read_image(path), (labels + IGNORE + 1).astype(np.int32)


class ObjectScenes(Dataset):
    """Random images with some of their objects; item i depends on (seed, epoch, i) alone.

    Items are dicts of `image` (3, S, S), `masks` (max_objects, S, S) uint8 {0, 1, 255} and `valid` (max_objects,).
    Each source is drawn from in proportion to its images.
    """

    def __init__(
        self,
        sources: Sequence[ObjectSource],
        resize: Resize,
        length: int,
        *,
        max_objects: int,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self.sources, self.resize, self.length = list(sources), resize, length
        self.seed, self.epoch, self.max_objects = seed, epoch, max_objects
        self.shares = np.array([len(s) for s in sources]) / sum(len(s) for s in sources)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, 104_729, self.epoch, i])
        source = self.sources[int(rng.choice(len(self.sources), p=self.shares))]
        image, labels = source.load(int(rng.integers(len(source))), rng)
        if rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        # A flipped view has negative strides, which torch does not take, so it is copied.
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        return {"image": self.resize.image(pixels), **object_masks(labels, self.resize, self.max_objects, rng)}


def object_masks(labels: np.ndarray, resize: Resize, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """`masks` and `valid` of an item of `ObjectScenes`: at most so many objects of a map of labels (H, W)."""
    square = resize.truth(torch.from_numpy(np.ascontiguousarray(labels)).long())
    # Sizes are judged at the model's size: what is too small there cannot be clicked on.
    names, counts = square.unique(return_counts=True)
    big = (names != 0) & (names != IGNORE) & (counts >= MIN_SHARE * square.numel())
    chosen = names[big][torch.from_numpy(rng.permutation(int(big.sum())))][:count]
    masks = torch.zeros(count, *square.shape, dtype=torch.uint8)
    for row, name in enumerate(chosen):
        masks[row] = (square == name).to(torch.uint8)
        masks[row][square == IGNORE] = IGNORE
    return {"masks": masks, "valid": torch.arange(count) < len(chosen)}


class ObjectData(EpochData):
    """`ObjectScenes` for a `TeachModule`; validation draws from the same sources: it watches and chooses nothing."""

    def __init__(
        self, sources: Sequence[ObjectSource], resize: Resize, part: TeachPart, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(part.batch_size, num_workers)
        self.sources, self.resize, self.part, self.seed = list(sources), resize, part, seed

    def train_dataset(self, epoch: int) -> Dataset:
        """Images of an epoch."""
        return self._scenes(self.part.epoch_length, self.seed, epoch)

    def val_dataloader(self) -> DataLoader:
        """The same images every time."""
        return self.loader(self._scenes(VAL_LENGTH, self.seed + 1_000_003, 0))

    def _scenes(self, length: int, seed: int, epoch: int) -> ObjectScenes:
        count = self.part.max_objects
        return ObjectScenes(self.sources, self.resize, length, seed=seed, epoch=epoch, max_objects=count)
