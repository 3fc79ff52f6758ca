"""Who may be trained on: no test image, no novel class, held-out classes apart, few annotated images on request."""

import shutil
from pathlib import Path

import pytest

from fsdino.data.catalog import open_data_set
from fsdino.data.part import DataPart, DataSpec
from fsdino.data.splits import held_out_classes, open_test, open_train
from tests.data.small import block, labels, photo, write_json
from tests.data.trees import coco2014_tree, lvis_tree
from tests.small import refuses


@pytest.fixture
def label_folder(tmp_path):
    """Eight classes, six images each, one class an image; label maps, so that folds exist."""
    root = tmp_path / "photos"
    for class_id in range(1, 9):
        for k in range(6):
            photo(root / "images" / f"{class_id}-{k}.png", (40, 40), value=20 * class_id + k)
            labels(root / "labels" / f"{class_id}-{k}.png", block(class_id, 5, 5 + k, 20, size=(40, 40)))
    write_json(root / "classes.json", {str(c): f"class {c}" for c in range(1, 9)})
    return str(root)


def _part(root: str, **options) -> DataPart:
    spec = DataSpec("folder", root)
    return DataPart(train=[spec], test=spec, test_episodes=6, val_episodes=4, **options)


def test_training_sees_no_test_image_and_no_novel_class(label_folder) -> None:
    part = _part(label_folder, fold=1)
    test = open_test(part)
    train = open_train(part, test)
    assert train.class_weights is None, "no share draws all classes equally"
    novel = set(test.index.novel_classes(1))
    assert not novel & {*train.classes, *train.val_classes} and set(train.ignore_classes) == novel
    assert not {*train.annotated.ids, *train.images.ids} & test.episodes.images
    assert train.val_classes and not set(train.val_classes) & set(train.classes), "held-out classes are not trained on"
    assert train.val_episodes is not None and set(train.val_episodes.class_ids) <= set(train.val_classes)


def test_few_annotated_images_come_in_pairs_and_nest(label_folder) -> None:
    kept = {}
    for count in (4, 8):
        part = _part(label_folder, max_train_images=count)
        index = open_train(part, open_test(part), seed=2).index
        kept[count] = set(index.all_images())
        assert len(kept[count]) == count
        assert sum(len(index.images(c)) >= 2 for c in index.class_names) == count // 2
    assert kept[4] < kept[8]


def test_left_out_classes_are_ignored(label_folder) -> None:
    second = shutil.copytree(label_folder, label_folder + "-2")
    part = _part(label_folder)
    part.train.append(DataSpec("folder", str(second), leave_out={0: ["class 2"]}))
    train = open_train(part, open_test(part))
    assert "folder1:class 2" in {train.index.class_names[c] for c in train.ignore_classes}
    assert "folder1:class 2" not in {train.index.class_names[c] for c in train.classes}
    assert all(train.index.class_names[c].startswith("folder0:") for c in train.val_classes)


def test_a_set_without_a_pair_is_refused(label_folder) -> None:
    part = _part(label_folder, shots=4)  # the test list takes images away, four shots need five of those left
    part.test_episodes = 60
    test = open_test(part)
    part.shots = 6
    refuses("no foreground class of 'folder' has two images to train on", open_train, part, test)


def test_refusals_say_what_to_do(label_folder, tmp_path) -> None:
    folder = DataSpec("folder", label_folder)
    for options, words in (
        ({"train": [DataSpec("folder", label_folder, leave_out={0: ["clas 2"]})]},
         r"leave_out names \['clas 2'\], which are no classes of 'folder'"),
        ({"test_list": "nowhere/fold{fold}_{shots}shot.json"}, r"list 'nowhere/fold0_1shot.json' does not exist"),
        ({"test_list": "bundled:other.json"}, r"no bundled list 'other.json'; it has synthetic_fold0_1shot.json"),
        ({"images": [DataSpec("images", str(tmp_path / "none"))]},
         r"no image below .*none; give data.images a folder with images"),
        ({"train": [DataSpec("folder", label_folder, share=1.0), folder]},
         r"the shares of data.train are \[1.0, None\]; give every data set one"),
    ):  # fmt: skip
        part = DataPart(**{"train": [folder], "test": folder, "test_episodes": 6, "val_episodes": 4, **options})
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            open_train(part, open_test(part))


def test_folders_count_from_the_root_that_is_given(label_folder, tmp_path, monkeypatch) -> None:
    place = Path(label_folder)
    spec = DataSpec("folder", place.name)
    part = DataPart(train=[spec], test=spec, root=str(place.parent), test_episodes=6, val_episodes=4)
    test = open_test(part)
    test.episodes.save(tmp_path / "own.json")
    monkeypatch.chdir(tmp_path)
    assert open_train(part, test).annotated.ids == open_train(_part(label_folder), test).annotated.ids
    apart = DataPart(train=[spec], test=DataSpec("folder", str(place)), root=str(tmp_path), test_list="own.json")
    assert open_test(apart).episodes.content_hash == test.episodes.content_hash


def test_shares_are_divided_among_a_data_set_s_classes(label_folder, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(label_folder, other)
    train = [DataSpec("folder", label_folder, share=3.0), DataSpec("folder", str(other), share=1.0)]
    part = DataPart(train=train, test=DataSpec("folder", label_folder), test_episodes=6, val_episodes=4)
    chosen = open_train(part, open_test(part))
    assert chosen.class_weights is not None and set(chosen.class_weights) == set(chosen.classes)
    first = set(chosen.index.class_ids[0].values())
    assert sum(w for c, w in chosen.class_weights.items() if c in first) == pytest.approx(3.0)
    assert sum(w for c, w in chosen.class_weights.items() if c not in first) == pytest.approx(1.0)
    assert len({w for c, w in chosen.class_weights.items() if c not in first}) == 1


def test_a_generalist_trains_on_the_tested_classes_but_on_no_tested_image(label_folder) -> None:
    part = _part(label_folder, fold=1, in_domain=True, val_share=0.0)
    test = open_test(part)
    train = open_train(part, test)
    novel = {c for c in test.index.novel_classes(1) if len(train.index.images(c)) > 1}
    assert novel and novel <= set(train.classes) and train.ignore_classes == []
    assert not set(train.annotated.ids) & test.episodes.images


def test_options_are_chosen_on_another_fold_and_never_on_the_tested_one(label_folder) -> None:
    part = _part(label_folder, fold=1, val_fold=2)
    test = open_test(part)
    train = open_train(part, test)
    assert set(train.val_classes) == set(test.index.novel_classes(2)) and train.val_episodes is not None
    assert not set(train.val_classes) & set(train.classes)
    assert not train.val_episodes.images & test.episodes.images
    assert not {e.class_id for e in train.val_episodes.episodes} & set(test.index.novel_classes(1))
    refuses("val_fold 1 must be another fold than 1, whose classes are tested", _part, label_folder, fold=1, val_fold=1)


def test_no_image_of_a_validation_episode_is_trained_on_for_another_class(tmp_path) -> None:
    root = tmp_path / "photos"
    for k in range(24):  # a picture of two classes, of which either one may be held out
        first, second = 1 + k % 8, 1 + (k + 1 + k // 8) % 8
        photo(root / "images" / f"{k}.png", (40, 40), value=10 * k)
        painted = block(first, 0, 0, 15, size=(40, 40)) + block(second, 20, 20, 15, size=(40, 40))
        labels(root / "labels" / f"{k}.png", painted)
    write_json(root / "classes.json", {str(c): f"class {c}" for c in range(1, 9)})
    part = _part(str(root), fold=1, val_fold=2)
    train = open_train(part, open_test(part))
    assert train.val_episodes is not None and train.classes
    held_out = train.val_episodes.images
    assert not held_out & {image for c in train.classes for image in train.index.images(c)}
    assert held_out & {image for c in train.classes for image in train.val_index.images(c)}, "they do show others"


def test_the_tested_folder_is_known_however_its_path_is_written(label_folder, monkeypatch) -> None:
    monkeypatch.chdir(label_folder)
    part = _part(label_folder, fold=1)
    part.train = part.images = [DataSpec("folder", "../photos/")]
    test = open_test(part)
    train = open_train(part, test)
    assert not set(test.index.novel_classes(1)) & {*train.classes, *train.val_classes}
    assert not {*train.annotated.ids, *train.images.ids} & test.episodes.images


def test_another_annotation_of_cocos_photographs_loses_the_tested_ones(tmp_path) -> None:
    coco = DataSpec("coco20i", str(coco2014_tree(tmp_path / "coco")))
    lvis = DataSpec("lvis92i", str(lvis_tree(tmp_path)))
    part = DataPart(train=[coco, lvis], test=coco, test_episodes=4, val_episodes=2, in_domain=True)
    test = open_test(part)
    tested = {image[-16:] for image in test.episodes.images}
    untouched = {image[-16:] for image in open_data_set("lvis92i", str(tmp_path), "train").all_images()}
    kept = {image[-16:] for image in open_train(part, test).annotated.ids if ":train2017" in image}
    assert tested & untouched, "the trees no longer share a photograph"
    assert kept and kept == untouched - tested


def test_images_that_choose_are_not_trained_on(label_folder) -> None:
    part = _part(label_folder, val_by="images", val_share=0.5, in_domain=True, max_train_images=8)
    train = open_train(part, open_test(part))
    assert len(set(train.index.all_images())) == 8
    assert train.val_episodes is not None and train.val_episodes.images <= set(train.val_index.all_images())
    assert not set(train.index.all_images()) & set(train.val_index.all_images())


def test_held_out_classes_are_fixed_and_never_none() -> None:
    classes = list(range(10, 40))
    # Runs of every version are chosen by the same classes.
    assert held_out_classes(classes, 0.2) == [12, 14, 20, 21, 31, 36]
    assert len(held_out_classes(classes, 0.2)) == 6 and len(held_out_classes(classes, 0.001)) == 1
    assert held_out_classes(classes, 0.0) == []
