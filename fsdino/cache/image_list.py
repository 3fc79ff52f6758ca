"""A fixed list of images: what a cache is made of and what distillation looks at; no masks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsdino.base.resize import Resize

LOOKED_AT = 64  # images whose pixels go into a list's digest


@dataclass(frozen=True)
class ImageList:
    """Images by id.

    Args:
        name: how messages and manifests call the list.
        ids: unique ids, in the order of the cache.
        load_image: id -> (H, W, 3) uint8, for instance a `ClassIndex`'s method; sent to worker processes.

    Raises:
        ValueError: if the list is empty or names an image twice.
    """

    name: str
    ids: tuple[str, ...]
    load_image: Callable[[str], np.ndarray]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        if not self.ids:
            raise ValueError(f"image list {self.name!r} is empty; check the folder or the split it comes from.")
        if len(set(self.ids)) != len(self.ids):
            twice = next(name for i, name in enumerate(self.ids) if name in self.ids[:i])
            raise ValueError(f"image list {self.name!r} names {twice!r} twice; remove the repetition.")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def sha256(self) -> str:
        """Digest of the ids in their order and of the pixels of up to 64 images, evenly spread over the list.

        The pixels tell lists apart whose images only share their names: another folder, another seed of a synthetic
        world.
        """
        # Every pixel of a large set would take hours to hash; a changed world or folder shows in a few images.
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for place in np.unique(np.linspace(0, len(self) - 1, min(len(self), LOOKED_AT)).round().astype(int)):
            image = np.ascontiguousarray(self.load_image(self.ids[place]))
            digest.update(repr(image.shape).encode())
            digest.update(image.tobytes())
        return digest.hexdigest()

    def tensor(self, index: int) -> Tensor:
        """One image.

        Args:
            index: its place in the list.

        Returns:
            (3, H, W) float in [0, 1], at its own size.
        """
        array = np.ascontiguousarray(self.load_image(self.ids[index]))
        return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def joined(lists: Sequence[ImageList]) -> ImageList:
    """Several lists as one, each image's id preceded by its list's place and name."""
    loaders = {f"{i}-{part.name}": part.load_image for i, part in enumerate(lists)}
    ids = tuple(f"{i}-{part.name}|{image}" for i, part in enumerate(lists) for image in part.ids)
    return ImageList("+".join(part.name for part in lists), ids, partial(_load_joined, loaders))


def _load_joined(loaders: dict[str, Callable[[str], np.ndarray]], image_id: str) -> np.ndarray:
    name, _, own = image_id.partition("|")
    return loaders[name](own)


class ImageData(Dataset):
    """The images of a list at one size, some of them or all, in a given order.

    Args:
        images: the list.
        resize: brings them to a square.
        indices: which, as places in the list; None = all in order.

    Items are dicts of `image` (3, S, S) float in [0, 1] and `index`, the image's place in the list.
    """

    def __init__(self, images: ImageList, resize: Resize, indices: Sequence[int] | None = None) -> None:
        self.images, self.resize = images, resize
        self.indices = range(len(images)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, Tensor | int]:
        index = int(self.indices[i])
        return {"image": self.resize.image(self.images.tensor(index)), "index": index}
