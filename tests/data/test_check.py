"""`fsdino data check` on each made tree, whole and damaged."""

import json

import pytest

from fsdino.cli import main
from fsdino.data.check import check_data_set
from tests.data.small import photo
from tests.data.trees import TREES, coco_tree


@pytest.mark.parametrize("name", TREES)
def test_a_whole_tree_is_ready(tmp_path, name):
    report = check_data_set(name, TREES[name](tmp_path))
    assert report.ok, str(report)
    assert "ready to use" in str(report) and report.counts and any("opened with their masks" in f for f in report.found)


@pytest.mark.parametrize("name", [name for name in TREES if name not in ("folder", "yolo")])
def test_an_empty_root_lists_what_to_fetch(tmp_path, name):
    report = check_data_set(name, tmp_path)
    assert not report.ok and report.missing and all(": fetch " in line for line in report.missing)
    assert "not ready" in str(report)


def test_a_wrong_root(tmp_path):
    report = check_data_set("pascal5i", tmp_path / "nowhere")
    assert report.missing == [f"the root '{tmp_path / 'nowhere'}' itself: check --root"]
    assert check_data_set("synthetic", num_samples=2).ok, "the embedded world needs no root"


def test_counts_stand_beside_the_published_ones(tmp_path):
    text = str(check_data_set("pascal5i", TREES["pascal5i"](tmp_path)))
    assert "train fold 0, (image, class) pairs: 10 (published: 2286)" in text
    assert "val fold 2, (image, class) pairs: 10 (published: 725)" in text
    assert "val fold 3, classes: 5 (as published)" in text
    text = str(check_data_set("fss1000", TREES["fss1000"](tmp_path / "fss")))
    assert "test classes: 2 (published: 240)" in text
    assert "test fold 0, (image, class) pairs: 20 (published: 2400)" in text
    text = str(check_data_set("lvis92i", TREES["lvis92i"](tmp_path / "lvis")))
    assert "val classes in all folds: 10 (published: 920)" in text


def test_damage_is_found(tmp_path):
    coco_tree(tmp_path)
    path = tmp_path / "images/000000000001.jpg"
    path.write_bytes(path.read_bytes()[:500])
    report = check_data_set("coco", tmp_path)
    assert not report.ok and "000000000001.jpg' cannot be read" in report.problems[0]
    photo(path, (10, 10))
    assert "export the mask at the image's size" in check_data_set("coco", tmp_path).problems[0]
    content = json.loads((tmp_path / "instances.json").read_text())
    content["annotations"][0]["image_id"] = 99
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert "is of image id 99" in str(check_data_set("coco", tmp_path))


def test_the_command_as_a_new_user_types_it(tmp_path, capsys):
    root = str(TREES["fss1000"](tmp_path))
    assert main(["data", "check", "fss1000", "--root", root]) == 0
    assert "ready to use" in capsys.readouterr().out
    assert main(["data", "check", "fss1000", "--root", root + "/nowhere"]) == 1
    assert "itself: check --root" in capsys.readouterr().out
    assert main(["data", "check", "fss1000"]) == 2
    assert "give --root DIR" in capsys.readouterr().err


def test_lists_are_drawn_and_verified_by_command(tmp_path, capsys):
    root, out = str(TREES["lvis92i"](tmp_path / "lvis")), str(tmp_path / "list.json")
    draw = ["episodes", "lvis92i", "--root", root, "--number", "30"]
    assert main([*draw, "--out", out]) == 0 and "30 episodes of 1 classes" in capsys.readouterr().out
    first = (tmp_path / "list.json").read_text()
    assert main([*draw, "--out", out]) == 0 and (tmp_path / "list.json").read_text() == first
    assert main([*draw, "--verify", out]) == 0 and "verified" in capsys.readouterr().out
    assert main([*draw, "--shots", "5"]) == 2 and "leave such classes out with skip_rare" in capsys.readouterr().err
    assert main(["episodes", "lvis92i", "--root", root, "--shots", "5", "--skip_rare", "true"]) == 2
    assert "take fewer shots" in capsys.readouterr().err
