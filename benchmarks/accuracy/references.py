"""What more can be had from the same references: `python -m benchmarks.accuracy.references`.

A reference is also shown mirrored, or as a crop around its object at a second scale; several references weigh by how
well each agrees with the others, in place of by their area. Each way is paired with the references as they are, on
held-out base classes ("val", which decides) and on the fixed lists ("novel"): the bundled model on the embedded world
with one and five references, and the training-free chain on photographs with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.accuracy.chain import ends
from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from fsdino import load
from fsdino.base.method import FewShotMethod
from fsdino.base.registry import build
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode import EpisodeData, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.part import DataPart, DataSpec
from fsdino.data.splits import base_episodes, open_test, open_train
from fsdino.metrics.bootstrap import resampled_miou
from fsdino.metrics.few_shot import intersection_union
from fsdino.models.config import preset
from fsdino.models.memory import SupportMemory, prototypes

PLAIN = "as they are"
WAYS = {1: (PLAIN, "mirrored", "crop", "mirrored, crop"), 5: (PLAIN, "mirrored", "crop", "equal", "agreement")}
MARGIN = 2.0  # side of a crop in object's sides: the background is part of what is remembered
AGREEMENT = 0.1  # temperature of the softmax over mean cosines with the other references
KEY = ("world", "shots", "classes", "way")


def crop(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The square of `MARGIN` object's sides around the object, at the size of the whole; (3, S, S) and (S, S)."""
    rows, columns = torch.where(mask > 0.5)
    if len(rows) == 0:
        return image, mask
    size = mask.shape[-1]
    ends = [(int(v.min()), int(v.max()) + 1) for v in (rows, columns)]
    side = min(size, max(size // 4, int(MARGIN * max(high - low for low, high in ends))))
    top, left = (min(max((low + high - side) // 2, 0), size - side) for low, high in ends)
    cut = torch.cat([image, mask[None]])[None, :, top : top + side, left : left + side]
    both = F.interpolate(cut, (size, size), mode="bilinear", align_corners=False)[0]
    return both[:3], both[3]


def shown(images: Tensor, masks: Tensor, way: str) -> tuple[Tensor, Tensor]:
    """References (K, 3, S, S) and masks (K, S, S) with what a way adds to them."""
    if "crop" in way:
        pairs = [crop(image, mask) for image, mask in zip(images, masks)]
        images = torch.cat([images, torch.stack([image for image, _ in pairs])])
        masks = torch.cat([masks, torch.stack([mask for _, mask in pairs])])
    if "mirrored" in way:
        images, masks = torch.cat([images, images.flip(-1)]), torch.cat([masks, masks.flip(-1)])
    return images, masks


def remember(method: FewShotMethod, images: Tensor, masks: Tensor, way: str) -> SupportMemory:
    """A memory of references (K, 3, S, S) and (K, S, S)."""
    images, masks = shown(images, masks, way)
    memory: SupportMemory = method.encode_support(images[None], masks[None])
    return weighed(memory, masks, way) if way in ("equal", "agreement") else memory


def weighed(memory: SupportMemory, masks: Tensor, way: str) -> SupportMemory:
    """A full model's memory in which each reference's object weighs alike, or by its agreement with the others."""
    tokens, fg, bg = memory.positions()
    shots = len(masks)
    parts, shares = tokens.unflatten(2, (shots, -1)), fg.unflatten(1, (shots, -1))
    # Each reference's own prototype, (K, L*C): how like are the others'?
    own = torch.stack([prototypes(parts[0, :, k], *(2 * [shares[0, k].expand(parts.shape[1], -1)]))[:, 0]
                       for k in range(shots)]).flatten(1)  # fmt: skip
    own = F.normalize(own, dim=-1)
    like = (own @ own.T).fill_diagonal_(0).sum(-1) / (shots - 1)
    weight = (like / AGREEMENT).softmax(0) if way == "agreement" else torch.full((shots,), 1 / shots)
    # Shares may not rise above 1, so the heaviest reference keeps its own.
    scale = weight / shares[0].sum(-1).clamp_min(1e-6)
    memory.fg = (shares * (scale / scale.max())[None, :, None]).flatten(1)
    memory.prototypes = torch.stack([prototypes(layer, memory.fg, bg) for layer in tokens.unbind(1)], dim=1)
    return memory


@torch.no_grad()
def counts(method: FewShotMethod, index: ClassIndex, episodes: EpisodeList) -> Iterator[tuple[int, str, np.ndarray]]:
    """Class, query and (W, 2) foreground intersection and union of each way, episode by episode."""
    loader = DataLoader(EpisodeData(index, episodes, method.resize), batch_size=1, collate_fn=collate_episodes)
    for batch in loader:
        encoded, truth, found = method.encode_query(batch["query_image"]), batch["query_mask_original"][0], []
        for way in WAYS[episodes.shots]:
            memory = remember(method, batch["support_images"][0], batch["support_masks"][0].float(), way)
            logits = method.decode_encoded(memory, encoded).mask_logits[0, 0]
            mask = method.resize.invert(logits, (truth.shape[-2], truth.shape[-1])).sigmoid() > method.threshold
            found.append([int(both[1]) for both in intersection_union(mask, truth)])
        yield int(batch["class_id"][0]), batch["query_id"][0], np.array(found)


def rows(found: list[tuple[int, str, np.ndarray]], folds: list[int], head: Row) -> list[Row]:
    """mIoU of each way in percent, and its difference to the references as they are."""
    classes, queries = np.array([f[0] for f in found]), np.array([f[1] for f in found])
    table, plain, result = np.stack([f[2] for f in found]), None, []
    for i, way in enumerate(WAYS[head["shots"]]):
        drawn = 100 * resampled_miou(
            classes, table[:, i, 0], table[:, i, 1], np.array(folds), num_resamples=1000, seed=0, groups=queries
        )
        plain = drawn if plain is None else plain
        gain = ends(drawn - plain, "difference")
        result.append(head | {"way": way, "miou": round(float(drawn[0]), 3), **gain, "episodes": len(found)})
        print(*result[-1].values(), flush=True)
    return result


def embedded(shots: int, most: int | None) -> Iterator[Row]:
    """The bundled model on the embedded world."""
    spec = DataSpec("synthetic", options={"images_per_class": 20})
    listed = "bundled:synthetic_fold{fold}_{shots}shot.json"
    part = DataPart([spec], test=spec, test_list=listed, shots=shots, val_episodes=most or 400)
    test, method = open_test(part), load("tiny").eval()
    held_out = open_train(part, test)
    assert held_out.val_episodes is not None  # the part holds classes out
    sides = (("val", held_out.val_index, held_out.val_episodes), ("novel", test.index, test.episodes))
    for classes, index, episodes in sides:
        found = list(islice(counts(method, index, episodes), most))
        yield from rows(found, [0] * len(found), {"world": "embedded", "shots": shots, "classes": classes})


def photographs(root: Path, weights: Path, most: int | None) -> Iterator[Row]:
    """The chain on photographs, over all folds."""
    config = preset("photos")
    method = build(
        "chain", encoder=config.encoder, img_size=config.img_size, encoder_weights=str(weights), mirror=False
    ).eval()
    spec = DataSpec("coco386", str(root))
    for classes in ("val", "novel"):
        found, folds = [], []
        for fold in range(4):
            listed = str(root / "episodes" / "fold{fold}_{shots}shot.json")
            test = open_test(DataPart([spec], test=spec, fold=fold, test_list=listed))
            index, episodes = base_episodes(spec, test) if classes == "val" else (test.index, test.episodes)
            some = list(islice(counts(method, index, episodes), most))
            found += some
            folds += [fold] * len(some)
        yield from rows(found, folds, {"world": "photographs", "shots": 1, "classes": classes})


def main(
    worlds: list[str] = ["embedded", "photographs"],  # noqa: B006 - never changed
    root: Path = Path("../shared/data/coco386"),
    weights: Path = Path("../shared/weights/vit_tiny_patch16_224.safetensors"),
    most: int | None = None,
    csv: Path = RESULTS / "references.csv",
) -> None:
    """Measure all ways.

    Args:
        worlds: embedded, photographs.
        root: folder of coco386.
        weights: of the photographs' encoder, preset photos.
        most: episodes of a list, to try the script; all where left out.
    """
    about = provenance(seed=0, protocol="1000 bootstrap samples of the query images, both drawn alike")
    for world in worlds:
        parts = [photographs(root, weights, most)] if world == "photographs" else [embedded(k, most) for k in WAYS]
        for part in parts:
            update_rows(csv, [row | about for row in part], KEY)


if __name__ == "__main__":
    run_script(main)
