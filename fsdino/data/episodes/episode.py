"""Episodes as tensors: fixed ones for measuring, freely drawn ones for training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsdino.base.image import IGNORE
from fsdino.base.memory import image_tensor
from fsdino.base.resize import Resize
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.images import check_mask_size

Transform = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
# Draws of an image before its class is given up, and of a class before that is an error: no draw goes on for ever.
_MAX_TRIES, _MAX_CLASSES = 50, 8
_Pair = tuple[np.ndarray | None, np.ndarray]  # image, where pixels are read, and mask


class EpisodeData(Dataset[dict[str, Any]]):
    """The episodes of a fixed list, in order, resized to the method's square of side S.

    Args:
        pixels: False leaves the images out and does not read them.
        reduce: decode the images no larger than the square needs. Scores then differ, so no measurement does it.
    """

    def __init__(
        self, index: ClassIndex, episodes: EpisodeList, resize: Resize, pixels: bool = True, reduce: bool = False
    ) -> None:
        self.index, self.episodes, self.resize = index, episodes, resize
        self.pixels, self.side = pixels, resize.source_side if reduce else None

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Load episode i.

        Returns:
            `query_image` (3, S, S) float in [0, 1]; `query_mask` (S, S) long and `query_mask_original` (H, W) long at
            the image's own size, both {0, 1, 255 = ignore}; `support_images` (K, 3, S, S); `support_masks` (K, S, S)
            float in [0, 1]; `class_id`; `episode_index`; `query_id`; `support_ids`.
        """
        spec = self.episodes.episodes[i]
        image, mask = self._load(spec.query, spec.class_id)
        supports = [self._load(image_id, spec.class_id) for image_id in spec.support]
        for image_id, (_, support_mask) in zip(spec.support, supports):
            if not (support_mask == 1).any():
                name = self.index.class_names.get(spec.class_id, spec.class_id)
                raise ValueError(
                    f"support mask of class '{name}' in image '{image_id}' has no foreground pixel; a reference needs "
                    "at least one: repair the mask or draw the episodes again."
                )
        item = _tensors(self.resize, image, mask, supports, self.side is not None)
        return item | {
            "query_mask_original": torch.from_numpy(mask).long(),
            "class_id": spec.class_id,
            "episode_index": i,
            "query_id": spec.query,
            "support_ids": spec.support,
        }

    def _load(self, image_id: str, class_id: int) -> _Pair:
        mask = self.index.load_mask(image_id, class_id)
        return _image(self.index, image_id, class_id, mask, self.side) if self.pixels else None, mask


class _NoImage(ValueError):
    """A class whose images cannot make an episode."""


class TrainEpisodes(Dataset[dict[str, Any]]):
    """Randomly drawn episodes for training; item i depends on (seed, epoch, i) alone, whatever the number of workers.

    A class is drawn (uniformly, unless weights are given), then a query, then K other images as supports.

    Args:
        classes: class ids to train on; those with fewer than K + 1 images are left out.
        shots: references per episode (K).
        epoch: number of the epoch; build a new data set for each.
        ignore_classes: novel classes whose pixels become 255 in query masks and background in support masks.
        absent_prob: share in [0, 1] of episodes whose query does not show the class (its mask is 0 or 255).
        transform: joint augmentation of (image, mask, generator), e.g. `JointAugment`.
        class_weights: class -> how often it is drawn, relative to the others; None draws all equally often.
        pixels: False leaves the images out and does not read them; what is drawn stays the same.
        side: images may be decoded smaller if they are to be resized to a square of this side; None = whole.
    """

    def __init__(
        self,
        index: ClassIndex,
        classes: Sequence[int],
        resize: Resize,
        shots: int = 1,
        length: int = 1000,
        seed: int = 0,
        epoch: int = 0,
        ignore_classes: Sequence[int] = (),
        absent_prob: float = 0.0,
        transform: Transform | None = None,
        class_weights: Mapping[int, float] | None = None,
        pixels: bool = True,
        side: int | None = None,
    ) -> None:
        if transform is not None and not pixels:
            raise ValueError("crops and colours need pixels; leave out the transform, or read the images.")
        self.pixels, self.side = pixels, side
        self.index, self.resize = index, resize
        self.shots, self.length, self.seed, self.epoch = shots, length, seed, epoch
        self.ignore_classes, self.absent_prob, self.transform = frozenset(ignore_classes), absent_prob, transform
        self.images = {c: found for c in classes if len(found := index.images(c)) > shots}
        self.classes = list(self.images)
        self._candidates: dict[int, Sequence[str]] = {}
        if not self.classes:
            raise ValueError(
                f"no foreground class of '{index.name}' has {shots + 1} images, which a {shots}-shot training "
                f"episode needs ({len(classes)} classes were given): add images or take fewer shots."
            )
        self._probs = None if class_weights is None else self._shares(class_weights)

    def __len__(self) -> int:
        return self.length

    def _shares(self, weights: Mapping[int, float]) -> np.ndarray:
        values = np.array([weights.get(c, 0.0) for c in self.classes])
        if not (values >= 0).all() or values.sum() <= 0:
            raise ValueError("no class that can be drawn has a weight above 0; correct class_weights.")
        return values / values.sum()

    def _draw_class(self, rng: np.random.Generator) -> int:
        if self._probs is None:
            return self.classes[int(rng.integers(len(self.classes)))]
        return self.classes[int(rng.choice(len(self.classes), p=self._probs))]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Draw episode i.

        Returns:
            As `EpisodeData`, without `query_mask_original`, and `support_truths` (K, S, S) uint8 {0, 1, 255 = ignore},
            for methods that are also asked to find the references' objects and so need pixels.
        """
        # A generator for each item: which worker draws it, in which batch, after which other item changes nothing.
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, i]))
        for _ in range(_MAX_CLASSES - 1):
            try:
                return self._episode(i, self._draw_class(rng), rng)
            # A class all of whose pixels are ignored, or whose masks are empty, must not end a run of hours.
            except _NoImage as error:
                warnings.warn(f"{error} Another class is drawn in its place.", stacklevel=2)
        return self._episode(i, self._draw_class(rng), rng)

    def _episode(self, i: int, class_id: int, rng: np.random.Generator) -> dict[str, Any]:
        absent = bool(rng.random() < self.absent_prob)
        # A list over the whole data set, so it is made once a class, and only where absent queries are asked for.
        if absent and class_id not in self._candidates:
            self._candidates[class_id] = self.index.candidates(class_id)
        pool = self._candidates[class_id] if absent else self.images[class_id]
        query_id, image, mask = self._pick(pool, class_id, rng, set(), absent)
        support_ids: list[str] = []
        supports = []
        for _ in range(self.shots):
            taken = {query_id, *support_ids}
            image_id, support_image, support_mask = self._pick(self.images[class_id], class_id, rng, taken, False)
            support_ids.append(image_id)
            supports.append(self._augmented(support_image, support_mask, rng))
        # The query is augmented last. The order of random draws is part of the result: seeded runs repeat bit by bit.
        image, mask = self._augmented(image, mask, rng)
        item = _tensors(self.resize, image, mask, supports, self.side is not None)
        if self.pixels:
            truths = [self.resize.truth(torch.from_numpy(other)).to(torch.uint8) for _, other in supports]
            item["support_truths"] = torch.stack(truths)
        names = {"query_id": query_id, "support_ids": tuple(support_ids)}
        return item | {"class_id": class_id, "episode_index": i} | names

    def _pick(
        self, pool: Sequence[str], class_id: int, rng: np.random.Generator, taken: set[str], absent: bool
    ) -> tuple[str, np.ndarray | None, np.ndarray]:
        """Draw an image that shows the class (or, when `absent`, does not) once ignored pixels are taken out."""
        # Which images are usable is known only once their masks are read, and reading all of a data set's before the
        # first step would take minutes. So draw, look, and draw again.
        for _ in range(_MAX_TRIES * (1 + len(taken))):
            image_id = pool[int(rng.integers(len(pool)))]
            if image_id in taken or (absent and class_id in self.index.classes_in(image_id)):
                continue
            mask = self.index.load_mask(image_id, class_id)
            # Held-out objects must teach nothing, not even that they are background.
            for other in sorted(self.index.classes_in(image_id) & self.ignore_classes):
                mask = np.where(self.index.load_mask(image_id, other) != 0, IGNORE, mask).astype(np.uint8)
            if absent or (mask == 1).any():
                # Only now, since many an image is drawn in vain.
                image = _image(self.index, image_id, class_id, mask, self.side) if self.pixels else None
                return image_id, image, mask
        name = self.index.class_names[class_id]
        wanted = f"without class '{name}'" if absent else f"with a usable mask of class '{name}'"
        raise _NoImage(
            f"found no image {wanted} in '{self.index.name}' ({len(pool)} tried at random): "
            + ("set absent_prob to 0." if absent else "repair its masks or leave the class out.")
        )

    def _augmented(self, image: np.ndarray | None, mask: np.ndarray, rng: np.random.Generator) -> _Pair:
        return (image, mask) if self.transform is None or image is None else self.transform(image, mask, rng)


def collate_episodes(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack B episodes of one data set into a batch.

    Tensors get a leading B, `class_id` and `episode_index` become (B,) long; `query_mask_original`, `query_id` and
    `support_ids` stay lists of length B, as images differ in size.
    """
    batch: dict[str, Any] = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if key in ("query_mask_original", "query_id", "support_ids"):
            batch[key] = values
        elif isinstance(values[0], Tensor):
            batch[key] = torch.stack(values)
        else:
            batch[key] = torch.tensor(values, dtype=torch.long)
    return batch


def _image(index: ClassIndex, image_id: str, class_id: int, mask: np.ndarray, side: int | None) -> np.ndarray:
    """The image of a mask, decoded smaller where a side is given."""
    if side is None:
        image = index.load_image(image_id)
        size = image.shape[:2]
    else:
        image, size = index.load_reduced(image_id, side)
    check_mask_size(mask, size, f"{image_id} (class {class_id})")
    return image


def _tensors(
    resize: Resize, image: np.ndarray | None, mask: np.ndarray, supports: Sequence[_Pair], shrink: bool
) -> dict[str, Any]:
    def square(pixels: np.ndarray, mask: np.ndarray) -> Tensor:
        return resize.image(image_tensor(resize.shrink(pixels, mask.shape[:2]) if shrink else pixels))

    soft = [resize.soft_mask(torch.from_numpy((m == 1).astype(np.float32))) for _, m in supports]
    item = {"query_mask": resize.truth(torch.from_numpy(mask)), "support_masks": torch.stack(soft)}
    if image is None:
        return item
    images = [square(pixels, own) for pixels, own in supports if pixels is not None]
    return item | {"query_image": square(image, mask), "support_images": torch.stack(images)}
