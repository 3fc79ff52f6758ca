"""Episodes as tensors."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fsdino.base.resize import Resize
from fsdino.data.class_index import SubsetIndex
from fsdino.data.episodes.episode import EpisodeData, TrainEpisodes, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec
from fsdino.data.transforms import JointAugment
from tests.data.small import MemoryIndex
from tests.small import refuses


def _same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def _all_items(dataset, **kwargs) -> list[dict]:
    loader = DataLoader(dataset, collate_fn=collate_episodes, **kwargs)
    items = []
    for batch in loader:
        items += [{k: v[i] for k, v in batch.items()} for i in range(len(batch["class_id"]))]
    return items


def test_shapes_ranges_and_the_image_s_own_size():
    index = MemoryIndex()
    episodes = EpisodeList.draw(index, 0, shots=3, num_episodes=4)
    item = EpisodeData(index, episodes, Resize(56))[2]
    assert item["query_image"].shape == (3, 56, 56) and item["support_images"].shape == (3, 3, 56, 56)
    assert item["query_mask"].shape == (56, 56) and item["query_mask"].dtype == torch.long
    assert item["query_mask_original"].shape == (32, 40) and item["query_mask_original"].sum() == 144
    assert item["support_masks"].shape == (3, 56, 56) and item["support_masks"].dtype == torch.float32
    assert item["support_masks"].min() >= 0 and item["support_masks"].max() == 1
    assert item["query_image"].min() >= 0 and item["query_image"].max() <= 1
    spec = episodes.episodes[2]
    assert (item["class_id"], item["query_id"], item["support_ids"]) == (spec.class_id, spec.query, spec.support)
    assert item["episode_index"] == 2


def test_a_batch_keeps_original_masks_as_a_list():
    index = MemoryIndex()
    data = EpisodeData(index, EpisodeList.draw(index, 0, shots=2, num_episodes=3), Resize(28))
    batch = collate_episodes([data[i] for i in range(3)])
    assert batch["support_images"].shape == (3, 2, 3, 28, 28) and batch["support_masks"].shape == (3, 2, 28, 28)
    assert isinstance(batch["query_mask_original"], list) and len(batch["query_id"]) == 3
    assert batch["class_id"].dtype == torch.long and batch["episode_index"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["test", "train"])
def test_workers_and_batch_size_change_nothing(kind):
    index = MemoryIndex()
    if kind == "test":
        data = EpisodeData(index, EpisodeList.draw(index, 0, num_episodes=9), Resize(28))
    else:
        data = TrainEpisodes(index, [0, 1, 2], Resize(28), length=9, absent_prob=0.3, transform=JointAugment())
    plain = _all_items(data, batch_size=1)
    for other in (_all_items(data, batch_size=4), _all_items(data, batch_size=2, num_workers=2)):
        assert len(other) == 9 and all(_same(a, b) for a, b in zip(plain, other))


def test_a_training_item_depends_on_seed_epoch_and_number_alone():
    index = MemoryIndex()

    def item(i: int = 5, **kwargs) -> dict:
        return TrainEpisodes(index, list(range(6)), Resize(28), length=20, transform=JointAugment(), **kwargs)[i]

    assert _same(item(), item(seed=0, epoch=0))
    others = [item(6), item(seed=1), item(epoch=1)]
    assert not any(torch.equal(item()["query_image"], o["query_image"]) for o in others)


def test_classes_are_drawn_uniformly_and_queries_are_no_supports():
    data = TrainEpisodes(MemoryIndex(), [1, 3, 6], Resize(14), shots=2, length=300)
    items = [data[i] for i in range(300)]
    counts = np.bincount([item["class_id"] for item in items], minlength=8)
    assert counts.sum() == counts[[1, 3, 6]].sum() and counts[[1, 3, 6]].min() > 70
    for item in items:
        assert item["query_id"] not in item["support_ids"] and len(set(item["support_ids"])) == 2
        assert (item["query_mask"] == 1).any() and (item["support_masks"].flatten(1).amax(1) > 0).all()


def test_classes_are_drawn_by_their_weights():
    data = TrainEpisodes(MemoryIndex(), [1, 3, 6], Resize(14), length=400, class_weights={1: 3.0, 3: 1.0})
    counts = np.bincount([data[i]["class_id"] for i in range(400)], minlength=8)
    assert counts[1] + counts[3] == 400 and 260 < counts[1] < 340
    with pytest.raises(ValueError, match="no class that can be drawn has a weight above 0; correct class_weights"):
        TrainEpisodes(MemoryIndex(), [1, 3], Resize(14), class_weights={6: 1.0})


def test_novel_pixels_are_ignored_in_queries_and_background_in_supports():
    class Overlapping(MemoryIndex):
        def load_mask(self, image_id, class_id):
            mask = super().load_mask(image_id, class_id)
            if class_id == 1 and class_id in self.classes_in(image_id):
                mask[10:18, 10:20] = 1  # reaches into class 0's square
            return mask

    index = Overlapping()
    size = (32, 40)
    data = TrainEpisodes(index, [0], Resize(40, mode="pad"), length=40, ignore_classes=[1])
    seen = 0
    for i in range(40):
        item = data[i]
        novel = index.load_mask(item["query_id"], 1) == 1
        truth = item["query_mask"][: size[0], : size[1]].numpy()
        assert (truth[novel] == 255).all() and (truth[~novel] != 255).all()
        support_novel = index.load_mask(item["support_ids"][0], 1) == 1
        assert (item["support_masks"][0, : size[0], : size[1]].numpy()[support_novel] == 0).all()
        seen += novel.any() + support_novel.any()
    assert seen > 10


def test_references_keep_what_is_unknown_for_methods_that_predict_them():
    index = MemoryIndex()
    items = [TrainEpisodes(index, [0], Resize(40, mode="pad"), 2, 4)[i] for i in range(4)]
    for item in items:
        truths, masks = item["support_truths"], item["support_masks"]
        assert truths.dtype == torch.uint8 and truths.shape == masks.shape
        assert (truths[:, 32:] == 255).all() and (masks[:, 32:] == 0).all() and (item["query_mask"][32:] == 255).all()
        assert torch.equal(truths[:, :32] == 1, masks[:, :32] > 0.5)


def test_absent_queries_truly_lack_the_class():
    index = MemoryIndex()
    data = TrainEpisodes(index, [0, 2, 5], Resize(28), length=200, absent_prob=0.5, ignore_classes=[7])
    absent = 0
    for i in range(200):
        item = data[i]
        there = item["class_id"] in index.classes_in(item["query_id"])
        assert bool((item["query_mask"] == 1).any()) == there
        assert (item["support_masks"] > 0).any()
        absent += not there
    assert 70 < absent < 130


def test_no_class_with_enough_images():
    index = SubsetIndex(MemoryIndex(), {0: ["0_0"], 1: ["1_0", "1_1"]})
    assert TrainEpisodes(index, [0, 1], Resize(28), shots=1).classes == [1]
    with pytest.raises(
        ValueError,
        match=r"no foreground class of 'memory' has 3 images, which a 2-shot training "
        r"episode needs \(2 classes were given\): add images or take fewer shots",
    ):
        TrainEpisodes(index, [0, 1], Resize(28), shots=2)


def test_what_gives_no_episode_is_named():
    index = MemoryIndex()
    with pytest.raises(ValueError, match=r"found no image with a usable mask of class 'square0' in 'memory'.*leave"):
        TrainEpisodes(index, [0], Resize(28), ignore_classes=[0])[0]
    everywhere = SubsetIndex.of_images(index, [f"0_{k}" for k in range(5)])
    with pytest.raises(ValueError, match=r"found no image without class 'square0' in 'memory'.*set absent_prob to 0"):
        TrainEpisodes(everywhere, [0], Resize(28), absent_prob=1.0)[0]
    episodes = EpisodeList("memory", 0, 1, 0, (EpisodeSpec(0, "0_0", ("3_0",)),))
    with pytest.raises(ValueError, match=r"mask of class 'square0' in image '3_0' has no foreground pixel; a "):
        EpisodeData(index, episodes, Resize(28))[0]


def test_a_class_without_usable_mask_is_warned_of_and_another_one_drawn():
    index = MemoryIndex()
    kept = SubsetIndex(index, {0: ["0_0", "0_1"], 1: index.images(1)})

    class Ignored(SubsetIndex):
        def load_mask(self, image_id, class_id):
            mask = super().load_mask(image_id, class_id)
            return np.full_like(mask, 255) if (image_id, class_id) == ("0_1", 0) else mask

    data = TrainEpisodes(Ignored(kept, {0: kept.images(0), 1: kept.images(1)}), [0, 1], Resize(28), length=12)
    with pytest.warns(UserWarning, match="usable mask of class 'square0'.*Another class is drawn"):
        items = [data[i] for i in range(12)]
    assert {item["class_id"] for item in items} == {1}
    assert _same(items[3], data[3])  # still decided by its number alone


class LargePictures(MemoryIndex):
    """The squares as pictures of 320 x 400 pixels, decoded at a quarter where that is enough."""

    def load_image(self, image_id):
        return super().load_image(image_id).repeat(10, 0).repeat(10, 1)

    def load_mask(self, image_id, class_id):
        return super().load_mask(image_id, class_id).repeat(10, 0).repeat(10, 1)

    def load_reduced(self, image_id, side):
        whole = self.load_image(image_id)
        small = whole.reshape(80, 4, 100, 4, 3).mean((1, 3)).astype(np.uint8)
        return small if side <= 50 else whole, (320, 400)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_images_decoded_smaller_give_nearly_the_same_episodes(augment, mode):
    resize = Resize(28, mode=mode)
    one, other = (
        TrainEpisodes(
            LargePictures(), [0, 1, 2], resize, length=6, side=side,
            transform=JointAugment(shrink=resize.shrink if side else None) if augment else None,
        )
        for side in (None, 50)
    )  # fmt: skip
    for a, b in ((one[i], other[i]) for i in range(len(one))):
        assert a["query_id"] == b["query_id"] and torch.equal(a["query_mask"], b["query_mask"])
        assert torch.equal(a["support_masks"], b["support_masks"]) and a["query_image"].shape == (3, 28, 28)
        assert (a["query_image"] - b["query_image"]).abs().mean() < 0.02


def test_small_images_are_the_same_bit_by_bit():
    one, other = (TrainEpisodes(MemoryIndex(), [0, 1], Resize(28), length=4, side=side) for side in (None, 28))
    for a, b in ((one[i], other[i]) for i in range(len(one))):
        assert torch.equal(a["query_image"], b["query_image"]) and torch.equal(a["support_images"], b["support_images"])


def test_without_pixels_the_same_episodes_are_drawn():
    index, unread = MemoryIndex(), MemoryIndex()
    unread.load_image = None  # not called
    one, other = (
        TrainEpisodes(which, [0, 1, 2], Resize(28), length=9, absent_prob=0.4, pixels=which is index)
        for which in (index, unread)
    )
    pixels = {"query_image", "support_images", "support_truths"}
    for a, b in ((one[i], other[i]) for i in range(len(one))):
        assert set(a) - set(b) == pixels and (a["query_id"], a["support_ids"]) == (b["query_id"], b["support_ids"])
        assert torch.equal(a["query_mask"], b["query_mask"]) and torch.equal(a["support_masks"], b["support_masks"])
    episodes = EpisodeList.draw(index, 0, num_episodes=2)
    assert "query_image" not in EpisodeData(unread, episodes, Resize(28), pixels=False)[0]
    augmented = partial(TrainEpisodes, transform=JointAugment(), pixels=False)
    refuses("crops and colours need pixels", augmented, index, [0], Resize(28))


def test_an_image_that_is_no_smaller_one_of_its_mask_is_refused():
    index = LargePictures()
    index.load_mask = lambda image, class_id: np.ones((320, 390), np.uint8)
    refuses("is 390x320 pixels", TrainEpisodes(index, [0], Resize(28), side=28).__getitem__, 0)
