"""A fixed list of images: what a cache is made of and what distillation looks at; no masks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from fsdino.base.memory import image_tensor
from fsdino.base.resize import Resize

# Images whose pixels go into a list's digest: enough to tell folders apart, few enough to read at every start.
LOOKED_AT = 64


@dataclass(frozen=True)
class ImageList:
    """Images by id.

    Args:
        ids: unique ids, in the order of the cache.
        load_image: id -> (H, W, 3) uint8, for instance a `ClassIndex`'s method; sent to worker processes.
        load_reduced: id, side -> the same, decoded smaller where that is enough for a square of the side, and its whole
            size (H, W); None = images are read whole.

    Raises:
        ValueError: if the list is empty or names an image twice.
    """

    name: str
    ids: tuple[str, ...]
    load_image: Callable[[str], np.ndarray]
    load_reduced: Callable[[str, int], tuple[np.ndarray, tuple[int, int]]] | None = None

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
        """Digest of the ids in their order and of the pixels of up to 64 images, evenly spread over the list."""
        # The pixels tell lists apart whose images only share their names: another folder, another seed of a synthetic
        # world.
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for place in np.unique(np.linspace(0, len(self) - 1, min(len(self), LOOKED_AT)).round().astype(int)):
            image = np.ascontiguousarray(self.load_image(self.ids[place]))
            # The bytes alone would not tell a 2 x 8 image from a 4 x 4 one.
            digest.update(repr(image.shape).encode())
            digest.update(image.tobytes())
            # Maps of images that were decoded smaller are others; the least side asks for as small as a file can be.
            if self.load_reduced is not None and self.load_reduced(self.ids[place], 1)[0].shape != image.shape:
                digest.update(b"reduced")
        return digest.hexdigest()

    def tensor(self, index: int) -> Tensor:
        """The image at a place of the list, (3, H, W) float in [0, 1], at its own size."""
        return image_tensor(self.load_image(self.ids[index]))

    def squares(self, index: int, *resizes: Resize) -> list[Tensor]:
        """The image at a place of the list, read once, as the squares (3, S, S) float in [0, 1] of some resizes."""
        if self.load_reduced is None:
            image = self.tensor(index)
            return [resize.image(image) for resize in resizes]
        pixels, size = self.load_reduced(self.ids[index], max(resize.source_side for resize in resizes))
        return [resize.image(image_tensor(resize.shrink(pixels, size))) for resize in resizes]


def joined(lists: Sequence[ImageList]) -> ImageList:
    """Several lists as one, each image's id preceded by its list's place and name."""
    # The place makes ids unique also where two lists have one name, as two folders called "images" have.
    parts = {f"{i}-{part.name}": part for i, part in enumerate(lists)}
    ids = tuple(f"{name}|{image}" for name, part in parts.items() for image in part.ids)
    whole = partial(_load_joined, {name: part.load_image for name, part in parts.items()})
    reduced = {name: part.load_reduced for name, part in parts.items() if part.load_reduced is not None}
    load_reduced = partial(_load_joined, reduced) if len(reduced) == len(parts) else None
    return ImageList("+".join(part.name for part in lists), ids, whole, load_reduced)


# A function of the module with its loaders bound by `partial`: a lambda could not be sent to worker processes.
def _load_joined(loaders: dict[str, Callable[..., Any]], image_id: str, *side: int) -> Any:
    name, _, own = image_id.partition("|")
    return loaders[name](own, *side)


class ImageData(Dataset):
    """The images of a list (or those at `indices`), resized: `image` (3, S, S) float in [0, 1], `index` in the list."""

    def __init__(self, images: ImageList, resize: Resize, indices: Sequence[int] | None = None) -> None:
        self.images, self.resize = images, resize
        self.indices = range(len(images)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, Tensor | int]:
        index = int(self.indices[i])
        return {"image": self.images.squares(index, self.resize)[0], "index": index}
