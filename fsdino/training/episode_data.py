"""Episodes for training and validation: from pixels, or several times faster with cached maps of a frozen encoder."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsdino.base.image import ENOUGH
from fsdino.base.resize import Resize
from fsdino.cache.cache import EmbeddingCache
from fsdino.cache.image_list import ImageList
from fsdino.data.episodes.episode import EpisodeData, TrainEpisodes, collate_episodes
from fsdino.data.splits import TrainSet
from fsdino.data.transforms import JointAugment
from fsdino.training.episodes import TrainPart
from fsdino.training.epoch_data import EpochData


@dataclass(frozen=True)
class CachedMaps:
    """A method's frozen maps of a list of images; `in_place_of_images` says that it needs no pixels beside them.

    Raises:
        ValueError: if the list is not as long as the cache, so that the maps would be those of other images.
    """

    cache: EmbeddingCache
    images: ImageList
    in_place_of_images: bool = True

    def __post_init__(self) -> None:
        if len(self.cache) != len(self.images):
            raise ValueError(
                f"the cache {self.cache.folder} holds {len(self.cache)} images but the list {self.images.name!r} names "
                f"{len(self.images)}; give the list that the cache was made of."
            )

    @cached_property
    def place(self) -> dict[str, int]:
        """Image -> its place in the list."""
        return {image: i for i, image in enumerate(self.images.ids)}

    @property
    def mirrored(self) -> bool:
        """Whether half of the training images may be mirrored."""
        # Pixels beside the maps would have to be mirrored as well, which the data set of episodes does not do.
        return self.in_place_of_images and "hflip" in self.cache.recipe.views


def needs_pixels(maps: CachedMaps | None) -> bool:
    """Whether episodes with these maps need their images read."""
    return maps is None or not maps.in_place_of_images


class EpisodesWithMaps(Dataset):
    """Episodes with cached maps beside their images, or in their place.

    Items gain `query_feats` and `support_feats` (K, ...), float16.

    Args:
        episodes: a data set of episodes without augmentation.
        flip_key: (seed, epoch) to mirror half of the images, see `CachedMaps.mirrored`; None = never.
    """

    def __init__(self, episodes: Dataset, maps: CachedMaps, flip_key: tuple[int, int] | None = None) -> None:
        self.episodes, self.maps, self.flip_key = episodes, maps, flip_key

    def __len__(self) -> int:
        return len(self.episodes)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> dict[str, Any]:
        item, maps = dict(self.episodes[i]), self.maps
        names = (item["query_id"], *item["support_ids"])
        # Which images are mirrored depends on (seed, epoch, i) alone, so that a resumed run sees the same.
        flips = [False] * len(names)
        if self.flip_key is not None:
            flips = (np.random.default_rng([*self.flip_key, i, 1]).random(len(names)) < 0.5).tolist()
        feats = [maps.cache.view(maps.place[n], "hflip" if flip else "plain") for n, flip in zip(names, flips)]
        item["query_feats"], item["support_feats"] = feats[0], torch.stack(feats[1:])
        if maps.in_place_of_images:
            # Truths of the references are for targets beside the query, which need pixels.
            for name in ("query_image", "support_images", "support_truths"):
                item.pop(name, None)
            item["query_mask"] = _flip(item["query_mask"], flips[0])
            item["support_masks"] = torch.stack([_flip(m, flip) for m, flip in zip(item["support_masks"], flips[1:])])
        return item


class EpisodeDataModule(EpochData):
    """Training episodes of base classes and fixed validation episodes of held-out base classes.

    Args:
        shots: references of an episode, beside those that are targets.
        maps: cached maps of all images; None runs the encoder in every step.

    Raises:
        ValueError: if pixels are to be augmented that are not read.
    """

    collate = staticmethod(collate_episodes)

    def __init__(
        self,
        chosen: TrainSet,
        part: TrainPart,
        resize: Resize,
        *,
        shots: int = 1,
        maps: CachedMaps | None = None,
        num_workers: int = 0,
        prefetch: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(part.batch_size, num_workers, prefetch)
        if maps is not None and part.augment:
            raise ValueError("crops and colours need pixels; set augment to false or train without the cache.")
        self.chosen, self.part, self.resize, self.maps, self.seed = chosen, part, resize, maps, seed
        # Targets beside the query are drawn as further references.
        self.shots = shots + part.num_targets - 1

    @cached_property
    def _drawn(self) -> TrainEpisodes:
        """Training episodes of epoch 0."""
        chosen, part = self.chosen, self.part
        # Colours cost more than all else, so that crops of images of medium size are shrunk before as well.
        shrink = partial(self.resize.shrink, large=ENOUGH) if chosen.reduce else None
        augment = JointAugment(shrink=shrink) if part.augment else None
        # A crop is enlarged less where the image that it is cut from was decoded larger.
        side = math.ceil(self.resize.source_side / (augment.least_side if augment else 1))
        return TrainEpisodes(
            chosen.index,
            chosen.classes,
            self.resize,
            shots=self.shots,
            length=part.epoch_length,
            seed=self.seed,
            ignore_classes=tuple(chosen.ignore_classes),
            absent_prob=part.absent_prob,
            transform=augment,
            class_weights=chosen.class_weights,
            pixels=needs_pixels(self.maps),
            side=side if chosen.reduce else None,
        )

    def train_dataset(self, epoch: int) -> Dataset:
        """Episodes of an epoch."""
        # A copy: which images show which class is looked up once, and lies in memory once for all workers.
        episodes = copy(self._drawn)
        episodes.epoch = epoch
        mirrored = self.maps is not None and self.maps.mirrored
        return self._with_maps(episodes, (self.seed, epoch) if mirrored else None)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The fixed validation episodes; no loader if there are none."""
        if self.chosen.val_episodes is None:
            return []
        pixels = needs_pixels(self.maps)
        episodes = EpisodeData(self.chosen.index, self.chosen.val_episodes, self.resize, pixels=pixels)
        return self.loader(self._with_maps(episodes))

    def _with_maps(self, episodes: Dataset, flip_key: tuple[int, int] | None = None) -> Dataset:
        return episodes if self.maps is None else EpisodesWithMaps(episodes, self.maps, flip_key)


def _flip(mask: Tensor, flip: bool) -> Tensor:
    return mask.flip(-1) if flip else mask
