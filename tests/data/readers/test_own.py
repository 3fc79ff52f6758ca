"""One's own folder without folds: which images are learnt from, which choose, which are tested."""

from pathlib import Path

from fsdino.data.catalog import open_data_set
from fsdino.data.part import DataPart, DataSpec
from fsdino.data.readers.own import own_folder, spread_images
from fsdino.data.splits import open_test, open_train
from tests.small import refuses, write_references


def part(root: Path, **changes: object) -> DataPart:
    spec = DataSpec("own", str(root))
    values = {"val_by": "images", "in_domain": True, "test_episodes": 10, "val_episodes": 6, **changes}
    return DataPart(train=[spec], test=spec, **values)  # type: ignore[arg-type]


def test_no_image_has_two_roles(tmp_path: Path) -> None:
    root = write_references(tmp_path, {"cat": 12, "dog": 6})
    chosen = part(root)
    test = open_test(chosen)
    train = open_train(chosen, test)
    assert train.val_episodes is not None
    roles = [set(train.index.all_images()), set(train.val_episodes.images), set(test.index.all_images())]
    assert all(not roles[a] & roles[b] for a in range(3) for b in range(a))
    assert set(train.annotated.ids) >= roles[0] | roles[1]  # one cache serves both
    assert train.classes == train.val_classes == [0, 1] and train.ignore_classes == []
    assert [len(test.index.images(c)) for c in (0, 1)] == [3, 2]
    assert [len(train.index.images(c)) for c in (0, 1)] == [7, 2]
    assert test.episodes.images <= roles[2]


def test_one_class_alone_is_enough(tmp_path: Path) -> None:
    chosen = part(write_references(tmp_path, {"cat": 8}))
    train = open_train(chosen, open_test(chosen))
    assert train.classes == [0] and len(train.index.images(0)) == 4
    without = open_train(part(tmp_path, val_share=0.0), open_test(chosen))
    assert without.val_episodes is None and len(without.index.images(0)) == 6


def test_images_are_spread_evenly() -> None:
    world = open_data_set("synthetic", images_per_class=8)
    chosen = spread_images(world, 0.25)
    counts = [len(chosen & set(world.images(c))) for c in world.class_names]
    assert counts == [2] * 40 and sorted(chosen)[:2] == ["000/0002", "000/0006"]


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    write_references(tmp_path / "a", {"cat": 5})
    refuses("class 'cat' has 5 images and needs 6: two to learn from", own_folder, tmp_path / "a")
    refuses(r"test_share 1\.0 leaves nothing to train or to test on", own_folder, tmp_path / "a", test_share=1.0)
    refuses("unknown split 'val' of one's own folder", own_folder, tmp_path / "a", "val")
    chosen = part(write_references(tmp_path / "b", {"cat": 6}), shots=2)
    refuses("no class of 'own' has 3 images left to train on", open_train, chosen, open_test(part(tmp_path / "b")))
