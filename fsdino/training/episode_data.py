"""Episodes for `MetaModule`: from pixels, or several times faster from cached maps of the frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsdino.base.resize import Resize
from fsdino.cache.cache import EmbeddingCache
from fsdino.cache.image_list import ImageList
from fsdino.data.class_index import ClassIndex, SubsetIndex
from fsdino.data.episodes.episode import EpisodeData, TrainEpisodes, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.transforms import JointAugment
from fsdino.training.epoch_data import EpochData


def held_out_classes(classes: Sequence[int], share: float, seed: int = 0) -> list[int]:
    """Base classes that are kept out of training to pick checkpoint and cut.

    Args:
        classes: base classes.
        share: part to hold out, in [0, 1).
        seed: of the choice.

    Returns:
        Sorted class ids, at least one when `share` is above 0.
    """
    if share <= 0:
        return []
    order = np.random.default_rng(seed).permutation(len(classes))
    count = max(1, round(share * len(classes)))
    return sorted(int(classes[i]) for i in order[:count])


def validation_episodes(
    index: ClassIndex, classes: Sequence[int], shots: int, count: int, seed: int = 0
) -> EpisodeList:
    """Fixed episodes of held-out base classes; classes with too few images are left out.

    Args:
        index: data set of training images.
        classes: held-out base classes.
        shots: references per episode.
        count: episodes.
        seed: of the draw.

    Returns:
        The list.
    """
    view = SubsetIndex(index, {c: index.images(c) for c in classes})
    view.folds = [list(classes)]
    return EpisodeList.draw(view, 0, shots, count, seed, protocol="validation", skip_rare=True)


class CachedEpisodes(Dataset):
    """Episodes whose images are replaced by cached maps.

    Args:
        episodes: a data set of episodes without augmentation.
        cache: maps of the frozen encoder, (L, C, h, w) an image.
        images: the cache's list.
        flip_key: (seed, epoch) to mirror half of the images (the cache must hold the mirrored view); None = never.

    Raises:
        ValueError: if the list is not as long as the cache, so that the maps would be those of other images.
    """

    def __init__(
        self, episodes: Dataset, cache: EmbeddingCache, images: ImageList, flip_key: tuple[int, int] | None = None
    ) -> None:
        if len(cache) != len(images):
            raise ValueError(
                f"the cache {cache.folder} holds {len(cache)} images but the list {images.name!r} names "
                f"{len(images)}; give the list that the cache was made of."
            )
        self.episodes, self.cache, self.flip_key = episodes, cache, flip_key
        self.place = {image: i for i, image in enumerate(images.ids)}

    def __len__(self) -> int:
        return len(self.episodes)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> dict[str, Any]:
        item = dict(self.episodes[i])
        names = (item["query_id"], *item["support_ids"])
        flips = [False] * len(names)
        if self.flip_key is not None:
            flips = (np.random.default_rng([*self.flip_key, i, 1]).random(len(names)) < 0.5).tolist()
        feats = [self.cache.view(self.place[n], "hflip" if f else "plain") for n, f in zip(names, flips)]
        del item["query_image"], item["support_images"]
        item.pop("support_truths", None)  # would have to be mirrored as well; who reads maps does not need it
        item["query_feats"], item["support_feats"] = feats[0], torch.stack(feats[1:])
        item["query_mask"] = _flip(item["query_mask"], flips[0])
        item["support_masks"] = torch.stack([_flip(m, f) for m, f in zip(item["support_masks"], flips[1:])])
        return item


class MetaData(EpochData):
    """Training episodes of base classes and fixed validation episodes of held-out base classes.

    Args:
        index: data set of training images.
        classes: base classes to train on.
        val_episodes: episodes that pick checkpoint and cut.
        resize: the model's.
        shots: references per training episode.
        epoch_length: episodes an epoch.
        ignore_classes: novel classes, whose pixels take part in no loss.
        absent_prob: share of training episodes whose query lacks the class.
        augment: random crops and colours, from pixels only.
        cache: maps of the frozen encoder for all images of `index`; None runs the encoder in every step.
        images: the cache's list.
        batch_size: episodes a step and process.
        num_workers: loader processes.
        seed: of all draws.
        class_weights: class -> how often training draws it, relative to the others; None draws all equally often.
    """

    def __init__(
        self,
        index: ClassIndex,
        classes: Sequence[int],
        val_episodes: EpisodeList | None,
        resize: Resize,
        shots: int = 1,
        epoch_length: int = 1000,
        ignore_classes: Sequence[int] = (),
        absent_prob: float = 0.0,
        augment: bool = False,
        cache: EmbeddingCache | None = None,
        images: ImageList | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        class_weights: Mapping[int, float] | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if (cache is None) != (images is None):
            raise ValueError("a cache and its image list come together; give both or neither.")
        if cache is not None and augment:
            raise ValueError("crops and colours need pixels; set augment to false or train without the cache.")
        self.index, self.classes, self.val_episodes, self.resize = index, list(classes), val_episodes, resize
        self.shots, self.epoch_length, self.ignore_classes = shots, epoch_length, tuple(ignore_classes)
        self.absent_prob, self.augment, self.cache, self.images = absent_prob, augment, cache, images
        self.seed, self.class_weights = seed, class_weights

    def train_dataloader(self) -> DataLoader:
        """Episodes of the running epoch."""
        episodes = TrainEpisodes(
            self.index, self.classes, self.resize, self.shots, self.epoch_length, self.seed, self.epoch,
            self.ignore_classes, self.absent_prob, JointAugment() if self.augment else None, self.class_weights,
        )  # fmt: skip
        mirrored = self.cache is not None and "hflip" in self.cache.recipe.views
        data = self._with_features(episodes, (self.seed, self.epoch) if mirrored else None)
        return self.loader(data, collate_fn=collate_episodes, drop_last=True)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The fixed validation episodes; no loader if there are none."""
        if self.val_episodes is None:
            return []
        data = self._with_features(EpisodeData(self.index, self.val_episodes, self.resize), None)
        return self.loader(data, collate_fn=collate_episodes)

    def _with_features(self, episodes: Dataset, flip_key: tuple[int, int] | None) -> Dataset:
        if self.cache is None or self.images is None:
            return episodes
        return CachedEpisodes(episodes, self.cache, self.images, flip_key)


def _flip(mask: Tensor, flip: bool) -> Tensor:
    return mask.flip(-1) if flip else mask
