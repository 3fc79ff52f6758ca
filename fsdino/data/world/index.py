"""The embedded world: a procedural few-shot world that ships with the package.

A class is a shape variant x a texture variant. Classes are split once and for all into `pretrain` (the tiny encoder and
the tiny SAM learn from these), `base` (episodes for training and model selection) and `novel` (test only). Every novel
class has a shape or a texture that no other split shows, neither on objects nor in the background.
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

SPLITS = ("pretrain", "base", "novel")
NUM_CLASSES = {"pretrain": 120, "base": 60, "novel": 40}
_HELD_OUT_FAMILIES = 8  # of shapes and of textures: one variant of each is for novel classes only
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
    families = rng.choice(num_variants // 2, _HELD_OUT_FAMILIES, replace=False)
    return {int(2 * f + rng.integers(2)) for f in families}


@cache
def world_split(split: str) -> WorldSplit:
    """The fixed division of the world into classes: one of its `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the embedded world; use one of {', '.join(SPLITS)}.")
    rng = np.random.default_rng(_WORLD_SEED)
    # Novel classes show something that no training split has shown: remembered factors are not enough to find them.
    new_shapes, new_textures = _held_out(rng, NUM_SHAPES), _held_out(rng, NUM_TEXTURES)
    shapes = [s for s in range(NUM_SHAPES) if s not in new_shapes]
    textures = [t for t in range(NUM_TEXTURES) if t not in new_textures]
    seen = [ObjectSpec(s, t) for s in shapes for t in textures]
    order = rng.permutation(len(seen))
    count = NUM_CLASSES["pretrain"] + NUM_CLASSES["base"]
    taken, strangers = [seen[i] for i in order[:count]], tuple(seen[i] for i in order[count:])
    if split == "novel":
        pairs = (ObjectSpec(s, t) for s in range(NUM_SHAPES) for t in range(NUM_TEXTURES))
        unseen = [pair for pair in pairs if pair.shape in new_shapes or pair.texture in new_textures]
        order = rng.permutation(len(unseen))
        classes = tuple(unseen[i] for i in order[: NUM_CLASSES["novel"]])
        return WorldSplit(classes, tuple(unseen[i] for i in order[NUM_CLASSES["novel"] :]), tuple(range(NUM_TEXTURES)))
    pretrain = NUM_CLASSES["pretrain"]
    classes = tuple(taken[:pretrain] if split == "pretrain" else taken[pretrain:])
    return WorldSplit(classes, strangers, tuple(textures))


def draw_scene(rng: np.random.Generator, split: str, class_id: int | None = None) -> Scene:
    """Draw one scene of a split, with 1 to 4 objects.

    Args:
        rng: the only source of randomness.
        split: one of `SPLITS`.
        class_id: a class that has to be in the scene (mostly visible with high probability); any where None.
    """
    world = world_split(split)
    first = world.classes[int(rng.integers(len(world.classes))) if class_id is None else class_id]
    specs = [first]
    company = int(rng.integers(0, 4))
    look_alike = rng.random() < 0.5  # shape alone or texture alone must not tell classes apart
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

    Args:
        split: "base" or "novel" (or "pretrain").
        images_per_class: images drawn for each class.
        seed: another seed is another set of images of the same classes.

    An image's id is `<class>/<number>`; it is painted when asked for and always comes out the same.
    """

    def __init__(self, split: str = "base", images_per_class: int = 20, seed: int = 0) -> None:
        if images_per_class < 2:
            raise ValueError(f"images_per_class {images_per_class} is too few for an episode; use 2 or more.")
        self.split, self.images_per_class, self.seed = split, images_per_class, seed
        self._world = world_split(split)
        self._recent: dict[str, Scene] = {}  # image and masks are asked for one after the other
        self.name = f"synthetic-{split}"
        self.class_names = {
            i: f"{shape_name(c.shape)}/{texture_name(c.texture)}" for i, c in enumerate(self._world.classes)
        }
        self.folds = [list(self.class_names)]

    def _scene(self, image_id: str) -> Scene:
        if image_id not in self._recent:
            if len(self._recent) >= 2048:  # about 200 MB
                self._recent.pop(next(iter(self._recent)))
            self._recent[image_id] = self._paint(image_id)
        return self._recent[image_id]

    def _paint(self, image_id: str) -> Scene:
        class_id, number = (int(part) for part in image_id.split("/"))
        attempt = 0
        while True:  # until the image's own class is visible
            rng = np.random.default_rng([self.seed, SPLITS.index(self.split), class_id, number, attempt])
            scene = draw_scene(rng, self.split, class_id)
            if self._world.classes[class_id] in scene.objects:
                return scene
            attempt += 1

    def images(self, class_id: int) -> list[str]:
        return [f"{class_id:03d}/{number:04d}" for number in range(self.images_per_class)]

    def classes_in(self, image_id: str) -> set[int]:
        present = set(self._scene(image_id).objects)
        return {i for i, spec in enumerate(self._world.classes) if spec in present}

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
