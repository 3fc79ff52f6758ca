"""Scenes of the embedded world without end, as tensors: what the small networks are trained on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsdino.data.world.index import draw_scene, world_split
from fsdino.data.world.scene import SCENE_SIZE


class SyntheticScenes(Dataset):
    """An endless stream of scenes cut into epochs; item i depends on (seed, epoch, i) alone.

    Items are dicts of `image` (3, S, S) float in [0, 1]; `masks` (max_objects, S, S) uint8 {0, 1}, every object and
    piece of clutter; `valid` (max_objects,) bool; `shape_map`, `texture_map` (S, S) long, the variant shown by each
    pixel of an object and -1 elsewhere.

    Args:
        split: the classes to show.
        length: scenes an epoch.
        max_objects: rows of the padded masks.
    """

    def __init__(
        self, split: str = "pretrain", length: int = 1000, seed: int = 0, epoch: int = 0, max_objects: int = 6
    ) -> None:
        self.split, self.length, self.seed, self.epoch, self.max_objects = split, length, seed, epoch, max_objects
        world_split(split)  # refuses an unknown name now rather than in a worker

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(self.length))

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        # The constant keeps this stream apart from the images of `SyntheticWorld`, which have the split's number there.
        rng = np.random.default_rng([self.seed, 7919, self.epoch, i])
        scene = draw_scene(rng, self.split)
        masks = np.zeros((self.max_objects, SCENE_SIZE, SCENE_SIZE), np.uint8)
        # Objects first (the sort is stable), so that clutter is left out where a scene has more than the rows hold.
        order = sorted(range(len(scene.objects)), key=lambda k: scene.objects[k] is None)
        chosen = scene.masks[order[: self.max_objects]]
        masks[: len(chosen)] = chosen
        shape_map = np.full((SCENE_SIZE, SCENE_SIZE), -1, np.int64)
        texture_map = shape_map.copy()
        for spec, mask in zip(scene.objects, scene.masks):
            if spec is not None:
                shape_map[mask], texture_map[mask] = spec.shape, spec.texture
        return {
            "image": torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255,
            "masks": torch.from_numpy(masks),
            "valid": torch.arange(self.max_objects) < len(chosen),
            "shape_map": torch.from_numpy(shape_map),
            "texture_map": torch.from_numpy(texture_map),
        }
