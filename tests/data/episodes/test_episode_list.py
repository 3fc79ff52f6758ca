"""Fixed episode lists."""

import json

import numpy as np
import pytest

from fsdino.data.class_index import SubsetIndex
from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec, PortableRandom
from tests.data.small import MemoryIndex, shared_data
from tests.small import refuses


def test_portable_numbers_are_uniform_and_never_change():
    random = PortableRandom("episodes", "memory", 0, 1, 0)
    assert [random.below(1000) for _ in range(5)] == [343, 851, 883, 682, 760]
    counts = np.bincount([random.below(7) for _ in range(7000)], minlength=7)
    assert counts.min() > 850 and counts.max() < 1150


def test_portable_numbers_do_not_favour_small_ones():
    random, third = PortableRandom("large"), 1 << 62  # of 2^64, so that a remainder would come twice as often
    counts = np.bincount([random.below(3 * third) // third for _ in range(3000)])
    assert len(counts) == 3 and counts.min() > 900 and counts.max() < 1100


def test_a_drawn_list_is_the_same_on_every_machine():
    episodes = EpisodeList.draw(MemoryIndex(), fold=1, shots=2, num_episodes=50, seed=3, protocol="hsnet")
    assert episodes == EpisodeList.draw(MemoryIndex(), fold=1, shots=2, num_episodes=50, seed=3, protocol="hsnet")
    assert episodes.content_hash == "eaf9694d3b281df2632bd2212314c8e7f461da84ac96fbb93708888f3ca567f7"


@pytest.mark.parametrize("change", [{"fold": 2}, {"shots": 1}, {"seed": 1}])
def test_fold_shots_and_seed_each_change_the_list(change):
    base = {"fold": 0, "shots": 2, "seed": 0}
    assert EpisodeList.draw(MemoryIndex(), **base).episodes != EpisodeList.draw(MemoryIndex(), **base | change).episodes


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_query_is_no_support_and_supports_do_not_repeat(shots):
    index = MemoryIndex()
    episodes = EpisodeList.draw(index, 0, shots, num_episodes=300)
    episodes.verify(index)
    assert len(episodes) == 300 and episodes.class_ids == [0, 4]
    for episode in episodes:
        assert episode.query not in episode.support and len(set(episode.support)) == shots
        assert {episode.query, *episode.support} <= set(index.images(episode.class_id))
    assert episodes.images == {f"{c}_{k}" for c in (0, 4) for k in range(5)}


def test_with_replacement_supports_repeat_but_are_never_the_query():
    episodes = EpisodeList.draw(MemoryIndex(per_class=3), 0, shots=4, num_episodes=50, replacement=True)
    assert all(e.query not in e.support for e in episodes)
    assert any(len(set(e.support)) < 4 for e in episodes)


def test_each_image_once_as_query_and_first_images_as_supports():
    index = MemoryIndex()
    episodes = EpisodeList.draw(index, 0, order="each")
    assert [(e.class_id, e.query) for e in episodes] == [(c, p) for c in (0, 4) for p in index.images(c)]
    episodes = EpisodeList.draw(MemoryIndex(), 0, shots=2, order="first")
    assert [e.support for e in episodes] == [("0_0", "0_1")] * 3 + [("4_0", "4_1")] * 3
    assert [e.query for e in episodes] == ["0_2", "0_3", "0_4", "4_2", "4_3", "4_4"]


def test_a_class_without_enough_images():
    index = SubsetIndex(MemoryIndex(), {0: ["0_0", "0_1"], 4: ["4_0", "4_1", "4_2"]})
    with pytest.raises(
        ValueError,
        match=r"class 'square0' of 'memory' fold 0 has 2 image\(s\) with a mask, 2-shot "
        r"episodes need 3: add images, take fewer shots, or leave such classes out",
    ):
        EpisodeList.draw(index, 0, shots=2)
    assert EpisodeList.draw(index, 0, shots=2, skip_rare=True).class_ids == [4]
    with pytest.raises(ValueError, match="no class of 'memory' fold 0 has the 4 images that 3-shot episodes need"):
        EpisodeList.draw(index, 0, shots=3, skip_rare=True)
    refuses("at least 1 shot, got 0", EpisodeList.draw, index, 0, shots=0)


class _SomeEmpty(MemoryIndex):
    empty = ("0_0", "4_1")

    def load_mask(self, image_id, class_id):
        return super().load_mask(image_id, class_id) * (image_id not in self.empty)


@pytest.mark.parametrize("order", ["random", "each"])
@pytest.mark.parametrize("per_class", [5, 20])
def test_empty_masks_are_passed_over(order, per_class):
    episodes = EpisodeList.draw(_SomeEmpty(per_class=per_class), 0, num_episodes=200, order=order)
    assert not {"0_0", "4_1"} & episodes.images
    if order == "each":
        assert len(episodes) == 2 * (per_class - 1)


def test_nothing_but_empty_masks():
    index = _SomeEmpty(per_class=6)
    index.empty = tuple(f"0_{k}" for k in range(5))
    refuses(r"class 'square0' of 'memory' fold 0 has 1 image\(s\) with a mask", EpisodeList.draw, index, 0, shots=1)


def test_save_and_load(tmp_path):
    episodes = EpisodeList.draw(MemoryIndex(), 1, shots=2, num_episodes=20, protocol="pfenet")
    episodes.save(tmp_path / "lists/a.json")
    assert EpisodeList.load(tmp_path / "lists/a.json") == episodes
    raw = json.loads((tmp_path / "lists/a.json").read_text())
    assert raw["sha256"] == episodes.content_hash and raw["dataset"] == "memory" and raw["protocol"] == "pfenet"


def test_a_changed_list_is_refused(tmp_path):
    EpisodeList.draw(MemoryIndex(), 1, num_episodes=20).save(tmp_path / "a.json")
    path = tmp_path / "a.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    refuses(r"'.*a\.json' was changed: .* restore the file or draw it again", EpisodeList.load, path)


def test_what_is_no_list(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    refuses(r"'.*a\.json' is no episode list .* `fsdino episodes`", EpisodeList.load, tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"'.*c\.json' does not exist: draw one with `fsdino episodes`"):
        EpisodeList.load(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (EpisodeSpec(1, "1_0", ("1_1",)), "class 1 is not a novel class of the fold"),
        (EpisodeSpec(0, "0_0", ("0_1", "0_2")), "it has 2 supports, the list says 1"),
        (EpisodeSpec(0, "0_0", ("0_0",)), "query '0_0' is among its own supports"),
        (EpisodeSpec(0, "0_0", ("0_9",)), "image '0_9' is missing or does not count for class 0"),
    ],
)
def test_verify_names_the_first_episode_that_does_not_fit(spec, words):
    good = EpisodeSpec(0, "0_0", ("0_1",))
    episodes = EpisodeList("memory", 0, 1, 0, (good, spec))
    with pytest.raises(ValueError, match=f"episode 1 of the list for 'memory' fold 0 does not fit .*: {words}; check"):
        episodes.verify(MemoryIndex())


def test_the_given_lists_of_real_photographs_are_read_as_they_are(coco386):
    folder, index = shared_data("coco386"), coco386
    for fold, num_classes in enumerate((17, 18, 15, 17)):
        episodes = EpisodeList.load(folder / f"episodes/fold{fold}_1shot.json", "coco386")
        episodes.verify(index)
        assert len(episodes) == 250 and episodes.fold == fold and episodes.dataset == "coco386"
        possible = [c for c in index.novel_classes(fold) if len(index.images(c)) > 1]
        assert len(possible) == num_classes and episodes.class_ids == possible
