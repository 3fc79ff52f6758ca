"""The embedded world: fixed classes, scenes that repeat, nothing of the novel classes elsewhere."""

import numpy as np
import torch

from fsdino.data.world.index import NUM_CLASSES, SPLITS, SyntheticWorld, draw_scene, world_split
from fsdino.data.world.shapes import NUM_SHAPES, shape_template
from fsdino.data.world.stream import SyntheticScenes
from fsdino.data.world.textures import NUM_TEXTURES, texture_tile
from tests.small import refuses


def test_splits_share_no_class_and_have_the_documented_sizes() -> None:
    classes = {split: set(world_split(split).classes) for split in SPLITS}
    assert {split: len(found) for split, found in classes.items()} == NUM_CLASSES
    assert len(set().union(*classes.values())) == sum(NUM_CLASSES.values())
    assert not set(world_split("extra").strangers) & classes["extra"]


def test_every_novel_class_has_a_variant_that_no_other_split_shows() -> None:
    shapes, textures = set(), set()
    for split in ("pretrain", "base", "extra"):
        world = world_split(split)
        textures |= set(world.textures)
        for spec in (*world.classes, *world.strangers):
            shapes.add(spec.shape)
            textures.add(spec.texture)
    assert all(spec.shape not in shapes or spec.texture not in textures for spec in world_split("novel").classes)


def test_scenes_repeat_and_masks_do_not_overlap() -> None:
    first, second = (draw_scene(np.random.default_rng(3), "base") for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.masks, second.masks)
    assert first.masks.sum(0).max() <= 1
    assert first.image.shape == (112, 112, 3) and first.image.dtype == np.uint8


def test_index_shows_its_class_in_each_of_its_images() -> None:
    index = SyntheticWorld("novel", images_per_class=2)
    for class_id in (0, 17, 39):
        for image in index.images(class_id):
            assert class_id in index.classes_in(image)
            assert index.load_mask(image, class_id).sum() >= 60
    absent = next(c for c in index.class_names if c not in index.classes_in("000/0000"))
    assert index.load_mask("000/0000", absent).sum() == 0


def test_another_seed_is_another_set_of_images_and_errors_say_what_to_do() -> None:
    one, two = SyntheticWorld("base", 2, seed=0), SyntheticWorld("base", 2, seed=1)
    assert not np.array_equal(one.load_image("000/0000"), two.load_image("000/0000"))
    refuses("unknown split 'test' of the embedded world; use one of pretrain, base, n", world_split, "test")
    refuses("images_per_class 1 is too few for an episode; use 2 or more", SyntheticWorld, "base", 1)


def test_stream_depends_on_seed_epoch_and_number_alone() -> None:
    stream = SyntheticScenes("pretrain", 4, seed=5, epoch=2)
    again = SyntheticScenes("pretrain", 4, seed=5, epoch=2)
    assert torch.equal(stream[3]["image"], again[3]["image"])
    assert not torch.equal(stream[3]["image"], SyntheticScenes("pretrain", 4, seed=5, epoch=3)[3]["image"])
    item = stream[0]
    shown = (item["shape_map"] >= 0).sum()
    assert shown == (item["texture_map"] >= 0).sum() > 0
    assert item["masks"][~item["valid"]].sum() == 0


def test_all_variants_can_be_drawn_and_differ() -> None:
    shapes = np.stack([shape_template(s) for s in range(NUM_SHAPES)])
    tiles = np.stack([texture_tile(t) for t in range(NUM_TEXTURES)])
    for drawn in (shapes, tiles):
        assert drawn.min() >= 0 and drawn.max() <= 1
        flat = drawn.reshape(len(drawn), -1)
        distances = np.abs(flat[:, None, ::17] - flat[None, :, ::17]).mean(-1)
        assert distances[~np.eye(len(flat), dtype=bool)].min() > 0.01
