"""Training filters and published protocols."""

import numpy as np
import pytest

from fsdino.data.episodes.filters import PFENET_MIN_PIXELS, novel_as_ignore, training_view
from fsdino.data.episodes.protocols import PROTOCOLS, protocol
from tests.data.small import MemoryIndex
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
    assert protocol("matcher-lvis").num_episodes("lvis92i") == 2300
    refuses("there is no protocol 'panet'; known: fsdino, hsnet", protocol, "panet")


def test_a_preset_draws_its_list():
    index = MemoryIndex()
    episodes = protocol("pfenet").draw(index, 2, shots=2)
    assert (len(episodes), episodes.seed, episodes.protocol) == (1000, 321, "pfenet")
    assert protocol("pfenet").draw(index, 2, num_episodes=10, seed=4).seed == 4
