"""An image of an evaluation: its best, its middle and its worst episodes as strips."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from fsdino.base.method import FewShotMethod
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode import EpisodeData
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.evaluation.measure import predict_episode
from fsdino.visualize import episode_strip, sheet


def picked_episodes(rows: pd.DataFrame, count: int) -> dict[str, list[int]]:
    """Episodes to show as "best", "median" and "worst" by their own IoU: so many in all, none twice, no empty kind."""
    counted = rows[rows["union_fg"] > 0]
    iou = (counted["inter_fg"] / counted["union_fg"]).to_numpy()
    # Stable, so that equals keep the order of the list and the same rows always draw the same sheet.
    order = counted["episode"].to_numpy()[np.argsort(-iou, kind="stable")].tolist()
    third = max(1, count // 3)
    middle = max(0, (len(order) - third) // 2)
    wanted = {"best": order[:third], "median": order[middle : middle + third], "worst": order[::-1][:third]}
    seen: set[int] = set()
    picked = {}
    # With few episodes the extremes say more, so they take theirs first.
    for kind in ("best", "worst", "median"):
        picked[kind] = [number for number in wanted[kind] if number not in seen]
        seen.update(picked[kind])
    return {kind: picked[kind] for kind in wanted if picked[kind]}


def contact_sheet(
    method: FewShotMethod,
    index: ClassIndex,
    episodes: EpisodeList,
    rows: pd.DataFrame,
    count: int = 12,
    size: int = 160,
) -> np.ndarray:
    """Draw the best, the middle and the worst episodes, predicted anew: (H, W, 3) uint8.

    Raises:
        ValueError: no episode has an object.
    """
    data = EpisodeData(index, episodes, method.resize)
    parts = [
        sheet([strip(method, data, number, size) for number in numbers], title=f"{kind} by IoU")
        for kind, numbers in picked_episodes(rows, count).items()
    ]
    if not parts:
        raise ValueError("no episode of the list has an object or a prediction; there is nothing to draw.")
    return sheet(parts)


@torch.no_grad()
def strip(method: FewShotMethod, data: EpisodeData, number: int, size: int = 160) -> np.ndarray:
    """One episode in a row, (H, W, 3) uint8: support · query · truth · prediction, at the image's own size."""
    index, spec, item = data.index, data.episodes.episodes[number], data[number]
    batch = {key: item[key][None].to(method.device) for key in ("query_image", "support_images", "support_masks")}
    logits, score, _ = predict_episode(method, batch, 0)
    truth = item["query_mask_original"]
    probs = method.resize.invert(logits, tuple(truth.shape)).sigmoid().cpu()
    return episode_strip(
        [index.load_image(image) for image in spec.support],
        [index.load_mask(image, spec.class_id) for image in spec.support],
        index.load_image(spec.query),
        truth.numpy(),
        (probs > method.threshold).numpy(),
        score=score,
        class_name=index.class_names[spec.class_id],
        size=size,
    )
