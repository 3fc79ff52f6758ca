"""Image lists, recipes and shards: what a cache is known by, what is still to do, what is refused."""

import numpy as np
import torch

from fsdino.base.resize import Resize
from fsdino.cache.cache import cache_recipe
from fsdino.cache.image_list import ImageData, ImageList, joined
from fsdino.cache.store import ShardStore
from tests.small import refuses
from tests.training.small import image_list, noise, small_teacher


def test_a_list_is_known_by_its_images(tmp_path):
    names = tuple(str(i) for i in range(7))
    other = ImageList("noise", names, lambda name: noise(name)[::-1])
    assert image_list(7).sha256 == ImageList("renamed", names, noise).sha256
    assert len({image_list(7).sha256, other.sha256, ImageList("noise", names[::-1], noise).sha256}) == 3


def test_work_is_split_by_shards():
    recipe = cache_recipe(small_teacher(), image_list(10), shard_size=2)
    assert [list(recipe.shard_images(4)), recipe.num_shards] == [[8, 9], 5]


def _wrong(folder, recipe, places, rows):
    store = ShardStore(folder, recipe)
    store.claim()
    try:
        store.put(places, rows)
        store.settle()
    finally:
        store.abandon()


def test_writer_errors(tmp_path):
    recipe = cache_recipe(small_teacher(), image_list(7), shard_size=6)
    rows = np.zeros((2, *recipe.entry_shape))
    refuses(r"expected rows of shape \(1, 32, 8, 8\), got \(3,\)", _wrong, tmp_path, recipe, [0], np.zeros((1, 3)))
    refuses(r"expected the images \[0, 1\], got \[4, 5\]; put", _wrong, tmp_path, recipe, [4, 5], rows)
    refuses(r"expected images of one claimed shard, got \[5, 6\]", _wrong, tmp_path, recipe, [5, 6], rows)
    rows[1, 0, 0, 0, 0] = 1e6
    refuses("embedding of image 1 is not finite in float16", _wrong, tmp_path, recipe, [0, 1], rows)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    refuses("unknown view 'vflip'", cache_recipe, small_teacher(), image_list(7), views=("vflip",))


def test_image_list_errors():
    refuses("image list 'none' is empty", ImageList, "none", (), noise)
    refuses("names '1' twice", ImageList, "twice", ("1", "2", "1"), noise)
    item = ImageData(image_list(7), Resize(16), [5])[0]
    assert item["index"] == 5 and item["image"].shape == (3, 16, 16)


def test_a_list_reads_images_once_and_smaller_where_that_is_enough() -> None:
    asked = []

    def reduced(name: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        asked.append(side)
        return (noise(name)[::2, ::2] if side <= 4 else noise(name)), (30, 40)

    plain, other = image_list(3), ImageList("noise", ("0", "1", "2"), noise, reduced)
    small, large = other.squares(1, Resize(8), Resize(24))
    assert asked == [24] and small.shape == (3, 8, 8) and large.shape == (3, 24, 24)
    assert torch.equal(large, plain.squares(1, Resize(24))[0])  # not large enough to be shrunk as bytes
    assert (small - plain.squares(1, Resize(8))[0]).abs().max() < 0.004  # rounded to bytes
    both = joined([other, other])
    assert torch.equal(both.squares(4, Resize(8))[0], other.squares(1, Resize(8))[0])
    assert joined([other, plain]).load_reduced is None
    # Maps of images decoded smaller are other maps; where nothing can be decoded smaller the digest stays.
    whole = ImageList("noise", ("0", "1", "2"), noise, lambda name, side: (noise(name), (30, 40)))
    assert whole.sha256 == plain.sha256 != other.sha256
