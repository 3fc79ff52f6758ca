"""The honest training-free baselines: their layers and cuts are chosen on episodes of base classes.

Nothing here sees a test list: who calls hands over training images and episodes of base classes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.base.memory import image_tensor
from fsdino.base.resize import Resize
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode import EpisodeData
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.methods.chain import ChainMethod, with_mirrored
from fsdino.methods.prototype import (
    Kind,
    PrototypeMethod,
    correlation_score,
    masked_average,
    prototype_score,
)
from fsdino.metrics.threshold import choose_threshold
from fsdino.models.encoder import FeatureEncoder

GRIDS: dict[Kind, np.ndarray] = {"fg_bg": np.linspace(-0.4, 0.8, 61), "softmax": np.linspace(0.02, 0.98, 49)}

# Where the chain is cut, between the mean and the maximum of a picture's scores.
CUTS = tuple(round(0.02 * k, 2) for k in range(5, 48))
# Pictures that the chain's means are taken over; more change them little.
MEAN_IMAGES = 128


@dataclass(frozen=True)
class PrototypeChoice:
    """The best prototype baseline on base classes, with its mIoU there."""

    tap: int
    kind: Kind
    threshold: float
    miou: float

    def build(self, encoder: FeatureEncoder, resize: Resize) -> PrototypeMethod:
        """The method with this choice."""
        return PrototypeMethod(encoder, self.tap, self.threshold, self.kind, resize_mode=resize.mode)


@torch.no_grad()
def choose_prototype(
    encoder: FeatureEncoder,
    resize: Resize,
    index: ClassIndex,
    episodes: EpisodeList,
    kinds: Sequence[Kind] = ("fg_bg",),
) -> PrototypeChoice:
    """Try every tap of a frozen encoder, kind and threshold on episodes of base classes; never give it novel ones."""
    scores: dict[tuple[int, Kind], list[np.ndarray]] = {(t, k): [] for t in encoder.taps for k in kinds}
    truths = []
    for item in (EpisodeData(index, episodes, resize)[i] for i in range(len(episodes))):
        maps = encoder(torch.cat([item["query_image"][None], item["support_images"]]))
        # The size of SAM's masks: fine enough to choose by, and far smaller than the image.
        side = 4 * maps[0].shape[-1]
        truths.append(_small(item["query_mask"], side))
        for tap, feats in zip(encoder.taps, maps):
            tokens = feats.flatten(2).transpose(1, 2)
            for kind in kinds:
                grid = _score(kind, tokens[0], tokens[1:], item["support_masks"]).view(1, 1, *feats.shape[-2:])
                fine = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)
                scores[tap, kind].append(fine[0, 0].numpy())
    # Every combination sees the same episodes, so their scores compare; the score's own threshold goes with it.
    class_ids = [spec.class_id for spec in episodes]
    choices = []
    for (tap, kind), maps_of in scores.items():
        best = choose_threshold(maps_of, truths, class_ids, GRIDS[kind].tolist())
        choices.append(PrototypeChoice(tap, kind, best.threshold, best.miou))
    return max(choices, key=lambda c: c.miou)


def _score(kind: Kind, query: Tensor, support: Tensor, masks: Tensor) -> Tensor:
    """Scores (h*w,) of one query (h*w, C) against K references (K, h*w, C) with masks (K, S, S)."""
    side = int(support.shape[1] ** 0.5)
    weights = F.adaptive_avg_pool2d(masks[:, None], side).flatten()
    # All references as one: a pixel counts the same, whichever of them it lies in.
    tokens = support.flatten(0, 1)
    if kind == "softmax":
        return correlation_score(query, tokens, weights)
    return prototype_score(query, masked_average(tokens, weights), masked_average(tokens, 1 - weights))


@dataclass(frozen=True)
class ChainChoice:
    """The best chain on base classes, with its mIoU there; `means` (L, C) of all its maps are of training images."""

    taps: tuple[int, ...]
    cut: float
    means: Tensor
    miou: float
    attention: tuple[int, ...] = ()

    def build(self, encoder: FeatureEncoder, resize: Resize, **options: Any) -> ChainMethod:
        """The method with this choice; options as of `ChainMethod`."""
        reader = encoder.reading(self.taps, self.attention)
        method = ChainMethod(reader, cut=self.cut, resize_mode=resize.mode, **options)
        method.fit_directions()
        method.means.copy_(self.means)
        return method


def chain_taps(depth: int) -> list[tuple[int, ...]]:
    """The sets of blocks that are tried: from somewhere before the middle to the last one."""
    return [tuple(range(first, depth)) for first in sorted({round(depth * share) for share in (0.33, 0.42, 0.5, 0.58)})]


@torch.no_grad()
def choose_chain(
    encoder: FeatureEncoder,
    resize: Resize,
    index: ClassIndex,
    episodes: EpisodeList,
    taps: Sequence[Sequence[int]] | None = None,
    means: Tensor | None = None,
    mirror: bool = True,
    attention: Sequence[int] = (),
    **options: Any,
) -> ChainChoice:
    """Take the means of training images, and choose blocks and cut on episodes of base classes.

    Args:
        taps: the sets of blocks to try; None: those of `chain_taps`. Every set costs as much as one.
        means: (depth, C), a row for each block of the encoder; None takes them of images of the index.
        attention: blocks whose attention outputs are compared as well; they have no row in `means`.
        mirror, options: of `ChainMethod`, held fixed.
    """
    tried = [tuple(sorted(some)) for some in (taps or chain_taps(encoder.depth))]
    reader = encoder.reading(sorted({tap for some in tried for tap in some}), attention)
    blocks = len(reader.taps)
    read = {some: [*map(reader.taps.index, some), *range(blocks, reader.num_maps)] for some in tried}
    if means is None:
        images = index.all_images()
        squares = (resize.image(image_tensor(index.load_image(i))) for i in images[:: -(-len(images) // MEAN_IMAGES)])
        fitted = reader.mean_features(squares)
    else:
        fitted = means[list(reader.taps)]
    methods = {}
    for some in tried:
        start = ChainChoice(some, 0.5, fitted[read[some]], 0.0, reader.attention)
        methods[some] = start.build(encoder, resize, mirror=mirror, **options).eval()
    scores: dict[tuple[int, ...], list[np.ndarray]] = {some: [] for some in tried}
    truths = []
    for item in (EpisodeData(index, episodes, resize)[i] for i in range(len(episodes))):
        shown, masks = item["support_images"][None], item["support_masks"][None]
        if mirror:
            shown, masks = with_mirrored(shown), with_mirrored(masks)
        support, query = reader(shown[0]), reader(item["query_image"][None])
        side = 4 * query[0].shape[-1]
        truths.append(_small(item["query_mask"], side))
        for some, method in methods.items():
            memory = method.encode_support_maps([support[i] for i in read[some]], masks)
            score = method.relative_scores(memory, method.encode_query_maps([query[i] for i in read[some]]))
            scores[some].append(F.interpolate(score, (side, side), mode="bilinear", align_corners=False)[0, 0].numpy())
    class_ids = [spec.class_id for spec in episodes]
    choices = []
    for some, maps_of in scores.items():
        best = choose_threshold(maps_of, truths, class_ids, CUTS)
        choices.append(ChainChoice(some, best.threshold, methods[some].means, best.miou, reader.attention))
    return max(choices, key=lambda c: c.miou)


def _small(mask: Tensor, side: int) -> Tensor:
    """A truth (S, S) at a smaller size, each pixel the nearest one's label."""
    return F.interpolate(mask[None, None].float(), (side, side), mode="nearest-exact")[0, 0]
