"""Images with the teacher's embeddings, coarse to fine: what `DistillModule` learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsdino.base.resize import Resize, ResizeMode
from fsdino.cache.cache import EmbeddingCache
from fsdino.cache.image_list import ImageList
from fsdino.training.distill import DistillModule, DistillPart
from fsdino.training.epoch_data import EpochData

BLOCKS = 16  # blocks of neighbours whose images are mixed


def epoch_size(epoch: int, max_epochs: int, sizes: Sequence[int], shares: Sequence[float]) -> int:
    """The student's image size, in pixels, of an epoch (from 0); each size lasts for its share of the epochs."""
    # `bound` is the epoch up to which the sizes so far last; an epoch belongs to where its middle lies, so that a
    # share that is not a whole number of epochs is rounded, and not always down.
    bound = 0.0
    for size, share in zip(sizes, shares):
        bound += share / sum(shares) * max_epochs
        if epoch + 0.5 < bound:
            return size
    return sizes[-1]


def shuffled(count: int, block: int | None, generator: torch.Generator) -> Tensor:
    """The numbers below `count` in a random order, (count,) long.

    With a `block`, neighbours by so many stay near each other: blocks are drawn at random, and the images of
    `BLOCKS` at a time are mixed. A cache on a disk that reads in order, or over a network, is then read in runs.
    """
    if block is None:
        return torch.randperm(count, generator=generator)
    starts = torch.randperm(-(-count // block), generator=generator) * block
    places = torch.cat([torch.arange(int(start), min(count, int(start) + block)) for start in starts])
    mixed = (part[torch.randperm(len(part), generator=generator)] for part in places.split(BLOCKS * block))
    return torch.cat(list(mixed))


class DistillImages(Dataset):
    """Images at the student's size with a cached embedding, or with themselves at the teacher's size.

    Items are dicts of `image` (3, S, S) and `target` (D, h, w) float16 or `teacher_image` (3, T, T).

    Args:
        images: the list; the cache is in its order.
        places: which images, as places in the list.
        flips: for each, whether it is mirrored.
    """

    def __init__(
        self,
        images: ImageList,
        places: Sequence[int] | np.ndarray,
        flips: Sequence[bool] | np.ndarray,
        resize: Resize,
        cache: EmbeddingCache | None,
        teacher_resize: Resize | None,
    ) -> None:
        self.images, self.places, self.flips, self.resize = images, places, flips, resize
        self.cache, self.teacher_resize = cache, teacher_resize

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        place, flip = int(self.places[i]), bool(self.flips[i])
        resizes = [self.resize] if self.teacher_resize is None else [self.resize, self.teacher_resize]
        squares = [_flip(square, flip) for square in self.images.squares(place, *resizes)]
        item = {"image": squares[0]}
        if self.cache is not None:
            item["target"] = self.cache.view(place, "hflip" if flip else "plain")
        if self.teacher_resize is not None:
            item["teacher_image"] = squares[1]
        return item


class DistillData(EpochData):
    """Coarse-to-fine loaders over an image list; an epoch's order depends on (seed, epoch) alone.

    Args:
        part: sizes, their shares, length, batch and how many images at the end of the list are held out.
        cache: the teacher's embeddings of the list; None = the teacher runs in every step.
        teacher_size: side in pixels of the teacher's images, without a cache.
        hflip: mirror half of the images; a cache must hold the mirrored view.

    Raises:
        ValueError: without cache and teacher size, for a cache of another list or without the mirrored view, for
            shares that do not match the sizes, or when nothing is left to train on.
    """

    def __init__(
        self,
        images: ImageList,
        part: DistillPart,
        *,
        cache: EmbeddingCache | None = None,
        teacher_size: int | None = None,
        resize_mode: ResizeMode = "squash",
        hflip: bool = False,
        num_workers: int = 0,
        prefetch: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(part.batch_size, num_workers, prefetch)
        self.images, self.cache, self.sizes = images, cache, part.sizes
        self.shares = part.shares or [1.0] * len(part.sizes)
        self.teacher_size, self.resize_mode = teacher_size, resize_mode
        self.num_train = len(images) - part.val_count
        self.epoch_length = part.epoch_length or self.num_train
        self.hflip, self.seed, self.block = hflip, seed, part.block
        self._check()

    def size(self, epoch: int) -> int:
        """The student's image size in an epoch, in pixels."""
        epochs = (self.trainer.max_epochs if self.trainer is not None else self.max_epochs) or 1
        return epoch_size(epoch, epochs, self.sizes, self.shares)

    def train_dataset(self, epoch: int) -> Dataset:
        """The images of an epoch, in its order and at its size."""
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        # Whole permutations one after the other: no image comes a second time before all came once.
        rounds = -(-self.epoch_length // self.num_train)
        places = torch.cat([shuffled(self.num_train, self.block, order) for _ in range(rounds)])
        flips = torch.rand(len(places), generator=order) < 0.5
        chosen = places[: self.epoch_length].numpy()
        # Drawn from the epoch's own generator, so that a resumed run mirrors the same images.
        mirrored = flips[: self.epoch_length].numpy() if self.hflip else np.zeros(len(chosen), bool)
        return self._dataset(chosen, mirrored, self.size(epoch))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The held-out images at the final size; no loader if there are none."""
        places = np.arange(self.num_train, len(self.images))
        return self.loader(self._dataset(places, places < 0, self.sizes[-1])) if len(places) else []

    def sample_targets(self, module: DistillModule, count: int = 64) -> Tensor:
        """The teacher's embeddings (count, D, h, w) of some training images, at most so many."""
        # Evenly spread, because a list is often sorted by class or by folder.
        step = max(1, self.num_train // count)
        places = np.arange(0, self.num_train, step)[:count]
        loader = self.loader(self._dataset(places, places < 0, self.sizes[0]))
        return torch.cat([module.target({k: v.to(module.device) for k, v in batch.items()}) for batch in loader])

    def _dataset(self, places: np.ndarray, flips: np.ndarray, size: int) -> DistillImages:
        teacher = None if self.cache is not None else Resize(self.teacher_size or 1, self.resize_mode)
        resize = Resize(size, self.resize_mode)
        return DistillImages(self.images, places, flips, resize, cache=self.cache, teacher_resize=teacher)

    def _check(self) -> None:
        if self.num_train < 1:
            raise ValueError(f"all {len(self.images)} images are held out for validation; lower val_count.")
        if not self.sizes or len(self.shares) != len(self.sizes):
            raise ValueError(f"expected one share for each of the {len(self.sizes)} sizes, got {len(self.shares)}.")
        if self.epoch_length < self.batch_size:
            raise ValueError(
                f"an epoch of {self.epoch_length} images has no full batch of {self.batch_size}; "
                f"use a batch_size of at most {self.epoch_length}."
            )
        if self.cache is None:
            if self.teacher_size is None:
                raise ValueError("DistillData needs a cache, or the teacher_size of a live teacher.")
            return
        recipe = self.cache.recipe
        if recipe.images_sha256 != self.images.sha256:
            raise ValueError(
                f"cache {self.cache.folder} was made from the {recipe.num_images} images of {recipe.images!r} "
                f"({recipe.images_sha256[:12]}), this run has the {len(self.images)} of {self.images.name!r} "
                f"({self.images.sha256[:12]}); cache this list."
            )
        if recipe.resize_mode != self.resize_mode:
            raise ValueError(
                f"cache {self.cache.folder} was made with resize_mode {recipe.resize_mode!r}, this run has "
                f"{self.resize_mode!r}; use the same."
            )
        if self.hflip and "hflip" not in recipe.views:
            raise ValueError(f"cache {self.cache.folder} has no mirrored images; cache view 'hflip' or drop hflip.")


def _flip(image: Tensor, flip: bool) -> Tensor:
    return image.flip(-1) if flip else image
