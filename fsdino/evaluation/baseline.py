"""The honest prototype baseline: its layer, its kind and its threshold are chosen on episodes of base classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.base.resize import Resize
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode import EpisodeData
from fsdino.data.episodes.episode_list import EpisodeList
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
        truths.append(F.interpolate(item["query_mask"][None, None].float(), (side, side), mode="nearest-exact")[0, 0])
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
