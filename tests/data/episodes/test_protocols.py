"""Training filters and published protocols."""

import numpy as np
import pytest

from fsdino.data.class_index import SubsetIndex
from fsdino.data.episodes.filters import PFENET_MIN_PIXELS, novel_as_ignore, training_view
from fsdino.data.episodes.protocols import PROTOCOLS, protocol
from fsdino.data.readers.voc import VocIndex
from tests.data.small import MemoryIndex, text
from tests.data.trees import voc_tree
from tests.small import refuses


class _Large(MemoryIndex):
    """Squares scaled by 5, so that class 2's alone stay under 2,048 pixels."""

    def load_image(self, image_id):
        return super().load_image(image_id).repeat(5, 0).repeat(5, 1)

    def load_mask(self, image_id, class_id):
        mask = super().load_mask(image_id, class_id).repeat(5, 0).repeat(5, 1)
        if class_id == 2:
            mask[np.cumsum(mask == 1).reshape(mask.shape) > PFENET_MIN_PIXELS - 1] = 0
        return mask


@pytest.mark.parametrize("rule", ["none", "hsnet"])
def test_all_base_images_are_kept(rule):
    index = _Large()
    view = training_view(index, 0, rule)
    assert [len(view.images(c)) for c in range(8)] == [0, 5, 5, 5, 0, 5, 5, 5]
    assert novel_as_ignore(index, 0, rule) == ([0, 4] if rule == "none" else [])


def test_images_with_novel_classes_and_small_objects_are_dropped():
    index = _Large()
    view = training_view(index, 0, "pfenet")
    assert view.images(1) == [f"1_{k}" for k in range(5)]
    assert view.images(2) == []  # 2,047 pixels
    assert view.images(3) == ["3_0", "3_2", "3_4"]  # 3_1 and 3_3 show class 4, which is novel
    assert not any(index.classes_in(p) & {0, 4} for p in view.all_images())


def test_an_unknown_filter():
    with pytest.raises(ValueError, match="there is no training filter 'all'; there are 'none', 'hsnet' and 'pfenet'"):
        training_view(MemoryIndex(), 0, "all")


def test_presets_say_what_they_do():
    assert {"hsnet", "pfenet", "sansa", "matcher-lvis", "fsdino"} == set(PROTOCOLS)
    assert protocol("hsnet").scoring == "network" and protocol("hsnet").replacement
    assert protocol("pfenet").num_episodes("coco20i") == 4000 and protocol("pfenet").train_filter == "pfenet"
    assert protocol("sansa").replacement and not protocol("fsdino").replacement
    assert {p for p in PROTOCOLS if PROTOCOLS[p].orders} == {"hsnet", "pfenet", "sansa"}
    assert protocol("matcher-lvis").num_episodes("lvis92i") == 2300
    refuses("there is no protocol 'panet'; known: fsdino, hsnet", protocol, "panet")


def test_a_preset_draws_its_list():
    index = MemoryIndex()
    episodes = protocol("pfenet").draw(index, 2, shots=2)
    assert (len(episodes), episodes.seed, episodes.protocol) == (1000, 321, "pfenet")
    assert protocol("pfenet").draw(index, 2, num_episodes=10, seed=4).seed == 4


@pytest.mark.parametrize("name", ["hsnet", "pfenet", "sansa", "fsdino"])
def test_pascals_list_is_walked(name, tmp_path):
    """Query i is pair i of the published list, from its start again at the end; a slow reference written out."""
    root = voc_tree(tmp_path)
    drawn = protocol(name).draw(VocIndex(root), 1, num_episodes=25)
    pairs = sorted((f"2007_{c:03d}{k:03d}", c) for c in range(6, 11) for k in (2, 3))  # by image, as lists are made
    walked = [pairs[i % len(pairs)] for i in range(25)]
    assert ([(e.query, e.class_id) for e in drawn] == walked) == (name != "fsdino")
    for fold in range(4):
        lines = [f"{image}__{c:02d}" for image, c in reversed(pairs)] if fold == 1 else ["2007_001002__01"]
        text(root / f"splits/pascal/val/fold{fold}.txt", "\n".join(lines) + "\n")
    listed = VocIndex(root)
    assert listed.pairs(1) == pairs[::-1] and SubsetIndex.of_images(listed, [pairs[0][0]]).pairs(1) == [pairs[0]]
    drawn = protocol(name).draw(listed, 1, num_episodes=25)
    walked = [pairs[::-1][i % len(pairs)] for i in range(25)]
    assert ([(e.query, e.class_id) for e in drawn] == walked) == (name != "fsdino")
    drawn.verify(listed)
    assert all(e.query not in e.support for e in drawn)


def test_supports_of_sansas_protocol_may_repeat():
    drawn = protocol("sansa").draw(MemoryIndex(), 0, shots=3, num_episodes=40)
    assert any(len(set(e.support)) < 3 for e in drawn) and all(e.query not in e.support for e in drawn)
