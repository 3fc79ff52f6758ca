"""What every data set is reduced to: classes, the images of each, and one binary mask per image and class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np


class ClassIndex(ABC):
    """Class -> images with masks, and the folds of classes that a benchmark holds out.

    A reader sets the three attributes and implements the four abstract methods; nothing else in the package knows
    file formats. Objects are read-only after construction and can be sent to worker processes.

    Attributes:
        name: short name of the data set, written into episode lists.
        class_names: class id -> name.
        folds: per fold the novel class ids; all other classes are that fold's base classes.
    """

    name: str
    class_names: dict[int, str]
    folds: list[list[int]]

    @abstractmethod
    def images(self, class_id: int) -> list[str]:
        """Ids of the images that count for a class, sorted."""

    @abstractmethod
    def load_image(self, image_id: str) -> np.ndarray:
        """One image, (H, W, 3) uint8 RGB."""

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        """One image that will be resized to a square of this side, and its whole size (H, W).

        Decoded smaller where its file allows it, see `read_reduced`; readers of plain image files override it.
        """
        image = self.load_image(image_id)
        return image, (image.shape[0], image.shape[1])

    @abstractmethod
    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        """One class in one image, (H, W) uint8: 1 object, 0 not, 255 ignore. All 0 or 255 where it is absent."""

    @abstractmethod
    def classes_in(self, image_id: str) -> set[int]:
        """Every class with a pixel in the image, also where it is too small (or a crowd) to count for the class."""

    @cached_property
    def _all_images(self) -> list[str]:
        return sorted({image for class_id in self.class_names for image in self.images(class_id)})

    def all_images(self) -> list[str]:
        """Ids of all images that count for some class, sorted. Not to be changed by the caller."""
        return self._all_images

    def own_name(self, class_id: int) -> str:
        """What the class's own data set calls it; `class_names` of several data sets tell theirs apart."""
        return self.class_names[class_id]

    def candidates(self, class_id: int) -> list[str]:
        """Images in which the class was looked for by the annotators, whether it is there or not.

        From these an image without the class can be drawn: a class missing from `classes_in` is truly absent there.
        """
        return self._all_images

    def pairs(self, fold: int) -> list[tuple[str, int]]:
        """(image, class) pairs of a fold's novel classes, in the order of the published list, if there is one.

        Otherwise by image, then class, which is how such lists are made.
        """
        return sorted((image, class_id) for class_id in self.novel_classes(fold) for image in self.images(class_id))

    def novel_classes(self, fold: int) -> list[int]:
        """Class ids held out in a fold."""
        if not 0 <= fold < len(self.folds):
            raise ValueError(f"data set '{self.name}' has folds 0 to {len(self.folds) - 1}, got fold {fold}.")
        return list(self.folds[fold])

    def base_classes(self, fold: int) -> list[int]:
        """Class ids that may be trained on in a fold: all others, sorted."""
        novel = set(self.novel_classes(fold))
        return sorted(class_id for class_id in self.class_names if class_id not in novel)

    def object_pixels(self, image_id: str, class_id: int) -> int:
        """Number of object pixels of a class in an image (ignored pixels do not count)."""
        return int((self.load_mask(image_id, class_id) == 1).sum())


class SubsetIndex(ClassIndex):
    """A view on another index with fewer images: a split, a training filter, a few annotated images.

    `keep` is class id -> ids of the images that still count for it; a class that is missing has none.
    """

    def __init__(self, index: ClassIndex, keep: dict[int, list[str]]) -> None:
        self.index = index
        self.name, self.class_names, self.folds = index.name, index.class_names, index.folds
        self._keep = {class_id: sorted(images) for class_id, images in keep.items()}

    @classmethod
    def of_images(cls, index: ClassIndex, images: Iterable[str]) -> SubsetIndex:
        """Only these images, for every class."""
        wanted = set(images)
        return cls(index, {c: [p for p in index.images(c) if p in wanted] for c in index.class_names})

    @classmethod
    def without_images(cls, index: ClassIndex, images: Iterable[str]) -> SubsetIndex:
        """All but these images, for every class: what may be trained on beside fixed test episodes."""
        barred = set(images)
        return cls(index, {c: [p for p in index.images(c) if p not in barred] for c in index.class_names})

    def images(self, class_id: int) -> list[str]:
        return list(self._keep.get(class_id, []))

    def pairs(self, fold: int) -> list[tuple[str, int]]:
        kept = {class_id: set(images) for class_id, images in self._keep.items()}
        return [(image, class_id) for image, class_id in self.index.pairs(fold) if image in kept.get(class_id, ())]

    def own_name(self, class_id: int) -> str:
        return self.index.own_name(class_id)

    def candidates(self, class_id: int) -> list[str]:
        # Only among the images that are left: a query without the class must not be a held-out image either.
        kept = set(self._all_images)
        return [image for image in self.index.candidates(class_id) if image in kept]

    def load_image(self, image_id: str) -> np.ndarray:
        return self.index.load_image(image_id)

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        return self.index.load_reduced(image_id, side)

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        return self.index.load_mask(image_id, class_id)

    def classes_in(self, image_id: str) -> set[int]:
        return self.index.classes_in(image_id)


class CombinedIndex(ClassIndex):
    """Several data sets as one, for training: class ids are renumbered, image ids get `<name>:` in front.

    Two members of the same name are told apart by a running number.

    Attributes:
        class_ids: per member, its class id -> class id here.
    """

    def __init__(self, members: Sequence[ClassIndex], name: str = "combined") -> None:
        if not members:
            raise ValueError("CombinedIndex got no data set; it needs at least one.")
        self.name = name
        # Classes of equal names stay apart: data sets rarely mean the same by a word, and one of them may be held out.
        names = [member.name for member in members]
        labels = [n if names.count(n) == 1 else f"{n}{i}" for i, n in enumerate(names)]
        self.members = dict(zip(labels, members))
        self.class_names, self.folds, self.class_ids = {}, [], []
        self._origin: dict[int, tuple[str, int]] = {}
        for label, member in self.members.items():
            first = len(self.class_names)
            table = {class_id: first + i for i, class_id in enumerate(sorted(member.class_names))}
            self.class_ids.append(table)
            self.class_names |= {new: f"{label}:{member.class_names[old]}" for old, new in table.items()}
            self._origin |= {new: (label, old) for old, new in table.items()}

    def images(self, class_id: int) -> list[str]:
        label, own_id = self._origin[class_id]
        return [f"{label}:{image}" for image in self.members[label].images(own_id)]

    def load_image(self, image_id: str) -> np.ndarray:
        label, own_id = self._split(image_id)
        return self.members[label].load_image(own_id)

    def load_reduced(self, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        label, own_id = self._split(image_id)
        return self.members[label].load_reduced(own_id, side)

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        label, own_id = self._split(image_id)
        class_label, own_class = self._origin[class_id]
        # Whether an image shows a class of another data set is not known, so it is refused: an empty mask would teach
        # that the class is absent. For the same reason `classes_in` and `candidates` stay within one data set.
        if class_label != label:
            raise ValueError(
                f"image '{image_id}' has no mask of class '{self.class_names[class_id]}': "
                "it belongs to another data set."
            )
        return self.members[label].load_mask(own_id, own_class)

    def classes_in(self, image_id: str) -> set[int]:
        label, own_id = self._split(image_id)
        table = self.class_ids[list(self.members).index(label)]
        return {table[class_id] for class_id in self.members[label].classes_in(own_id) if class_id in table}

    def own_name(self, class_id: int) -> str:
        label, own_id = self._origin[class_id]
        return self.members[label].own_name(own_id)

    def candidates(self, class_id: int) -> list[str]:
        label, own_id = self._origin[class_id]
        return [f"{label}:{image}" for image in self.members[label].candidates(own_id)]

    def _split(self, image_id: str) -> tuple[str, str]:
        label, _, own_id = image_id.partition(":")
        if label not in self.members:
            raise ValueError(f"image '{image_id}' is of no data set here; known: {', '.join(self.members)}.")
        return label, own_id
