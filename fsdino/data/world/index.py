"""The embedded world: a procedural few-shot world that ships with the package.

A class is a shape variant x a texture variant. Classes are split once and for all into `pretrain` (the tiny encoder and
the tiny SAM learn from these), `base` (episodes for training and model selection), `extra` (more classes to train on)
and `novel` (test only). Every novel class has a shape or a texture that no other split shows, neither on objects nor in
the background.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from fsdino.data.catalog import DataSet
from fsdino.data.class_index import ClassIndex
from fsdino.data.world.scene import SCENE_SIZE, ObjectSpec, Scene, paint_scene
from fsdino.data.world.shapes import NUM_SHAPES, shape_name
from fsdino.data.world.textures import NUM_TEXTURES, texture_name

SPLITS = ("pretrain", "base", "novel", "extra")
NUM_CLASSES = {"pretrain": 120, "base": 60, "novel": 40, "extra": 300}
_HELD_OUT_FAMILIES = 8  # of shapes and of textures: one variant of each is for novel classes only
# Bundled weights and fixed episode lists belong to the classes that this seed draws: neither the seed nor the order of
# draws in `world_split` and `draw_scene` may change.
_WORLD_SEED = 2025


@dataclass(frozen=True)
class WorldSplit:
    """One split's classes and the material its scenes may use.

    Attributes:
        classes: the split's classes; the position is the class's number within the split.
        strangers: pairs that belong to no split, painted as distractors.
        textures: texture variants that backgrounds and clutter may show.
    """

    classes: tuple[ObjectSpec, ...]
    strangers: tuple[ObjectSpec, ...]
    textures: tuple[int, ...]


def _held_out(rng: np.random.Generator, num_variants: int) -> set[int]:
    # One variant of a family, never both: its sister is seen in training, so that a novel class is new but not alien.
    families = rng.choice(num_variants // 2, _HELD_OUT_FAMILIES, replace=False)
    return {int(2 * f + rng.integers(2)) for f in families}


@cache
def world_split(split: str) -> WorldSplit:
    """The fixed division of the world into classes, for one of `SPLITS`.

    Raises:
        ValueError: for another name.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the embedded world; use one of {', '.join(SPLITS)}.")
    rng = np.random.default_rng(_WORLD_SEED)
    new_shapes, new_textures = _held_out(rng, NUM_SHAPES), _held_out(rng, NUM_TEXTURES)
    pairs = [ObjectSpec(s, t) for s in range(NUM_SHAPES) for t in range(NUM_TEXTURES)]
    seen = [p for p in pairs if p.shape not in new_shapes and p.texture not in new_textures]
    order = rng.permutation(len(seen))  # drawn for "novel" as well, whose own draw comes after it
    pretrain, base = NUM_CLASSES["pretrain"], NUM_CLASSES["base"]
    if split == "novel":
        unseen = [p for p in pairs if p.shape in new_shapes or p.texture in new_textures]
        novel = [unseen[i] for i in rng.permutation(len(unseen))]
        count = NUM_CLASSES["novel"]
        return WorldSplit(tuple(novel[:count]), tuple(novel[count:]), tuple(range(NUM_TEXTURES)))
    shuffled = tuple(seen[i] for i in order)
    start = {"pretrain": 0, "base": pretrain, "extra": pretrain + base}[split]
    classes = shuffled[start : start + NUM_CLASSES[split]]
    # No held-out texture even in a background: an encoder trained on this split must not know it from there.
    textures = tuple(t for t in range(NUM_TEXTURES) if t not in new_textures)
    # Extra classes were strangers before there was such a split, and still are in the other splits' scenes.
    first = pretrain + base + NUM_CLASSES["extra"] * (split == "extra")
    return WorldSplit(classes, shuffled[first:], textures)


def draw_scene(rng: np.random.Generator, split: str, class_id: int | None = None) -> Scene:
    """Draw one scene of 1 to 4 objects.

    Args:
        rng: the only source of randomness.
        split: one of `SPLITS`.
        class_id: a class to paint (it may end up hidden); None: any class.
    """
    world = world_split(split)
    first = world.classes[int(rng.integers(len(world.classes))) if class_id is None else class_id]
    specs = [first]
    company = int(rng.integers(0, 4))
    # In half of the scenes one neighbour shares the shape or the texture of the class that is asked for: without it,
    # either factor alone would tell the classes apart.
    look_alike = rng.random() < 0.5
    for _ in range(company):
        pool = world.classes if rng.random() < 0.6 else world.strangers
        if look_alike:
            pool, look_alike = _look_alikes(split, first), False
        specs.append(pool[int(rng.integers(len(pool)))])
    return paint_scene(rng, specs, world.textures)


@cache
def _look_alikes(split: str, spec: ObjectSpec) -> tuple[ObjectSpec, ...]:
    """Pairs that share the shape or the texture, not both."""
    world = world_split(split)
    pairs = (*world.classes, *world.strangers)
    return tuple(p for p in pairs if (p.shape == spec.shape) != (p.texture == spec.texture))


class SyntheticWorld(ClassIndex):
    """The embedded world as a class index: one fixed set of images of one split.

    An image's id is `<class>/<number>`; it is painted when asked for and always comes out the same.

    Args:
        split: one of `SPLITS`.
        images_per_class: images drawn for each class.
        seed: another seed is another set of images of the same classes.
    """

    def __init__(self, split: str = "base", images_per_class: int = 20, seed: int = 0) -> None:
        if images_per_class < 2:
            raise ValueError(f"images_per_class {images_per_class} is too few for an episode; use 2 or more.")
        self.split, self.images_per_class, self.seed = split, images_per_class, seed
        self._world = world_split(split)
        self._number = {spec: i for i, spec in enumerate(self._world.classes)}
        self._recent: dict[str, Scene] = {}  # image and masks are asked for one after the other
        self.name = f"synthetic-{split}"
        self.class_names = {
            i: f"{shape_name(c.shape)}/{texture_name(c.texture)}" for i, c in enumerate(self._world.classes)
        }
        self.folds = [list(self.class_names)]

    def _scene(self, image_id: str) -> Scene:
        # Not an lru_cache: on a method it would keep every instance alive, and instances travel to worker processes.
        if image_id not in self._recent:
            if len(self._recent) >= 2048:  # about 200 MB
                self._recent.pop(next(iter(self._recent)))
            self._recent[image_id] = self._paint(image_id)
        return self._recent[image_id]

    def _paint(self, image_id: str) -> Scene:
        class_id, number = (int(part) for part in image_id.split("/"))
        attempt = 0
        # A scene whose own class ended up hidden is drawn anew. The attempt is part of the seed, so that an image
        # depends on its id alone and not on what was painted before.
        while True:
            rng = np.random.default_rng([self.seed, SPLITS.index(self.split), class_id, number, attempt])
            scene = draw_scene(rng, self.split, class_id)
            if self._world.classes[class_id] in scene.objects:
                return scene
            attempt += 1

    def images(self, class_id: int) -> list[str]:
        return [f"{class_id:03d}/{number:04d}" for number in range(self.images_per_class)]

    def classes_in(self, image_id: str) -> set[int]:
        return {self._number[spec] for spec in self._scene(image_id).objects if spec in self._number}

    def load_image(self, image_id: str) -> np.ndarray:
        return self._scene(image_id).image

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        scene, spec = self._scene(image_id), self._world.classes[class_id]
        mine = [m for o, m in zip(scene.objects, scene.masks) if o == spec]
        return np.any(mine, axis=0).astype(np.uint8) if mine else np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)


DATA_SETS = (
    DataSet(
        "synthetic",
        "the embedded world",
        SyntheticWorld,
        roles={"train": "base", "test": "novel"},
        needs_root=False,
    ),
)
