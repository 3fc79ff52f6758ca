"""The folder of a run: a new one, or that of the run that did not end."""

from dataclasses import replace
from pathlib import Path

import pytest

from fsdino.pipeline.folder import open_run
from fsdino.pipeline.recipe import Recipe, read_recipe

RECIPE = Recipe(name="quick")


def opened(root: Path, recipe: Recipe = RECIPE) -> Path:
    return open_run(recipe, {}, root).folder


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = {opened(tmp_path, replace(RECIPE, seed=seed)) for seed in range(3)}
    assert len(folders) == 3
    assert opened(tmp_path, replace(RECIPE, seed=1)) in folders  # unfinished, so it goes on


def test_an_unfinished_run_goes_on_and_a_finished_one_does_not(tmp_path: Path) -> None:
    older, newer = tmp_path / "quick" / "2020-01-01-000000", tmp_path / "quick" / "2020-01-02-000000"
    text = (opened(tmp_path) / "config.yaml").read_text()
    (opened(tmp_path) / "done").touch()
    for folder in (older, newer):
        folder.mkdir()
        (folder / "config.yaml").write_text(text)
    assert opened(tmp_path) == newer
    (newer / "done").touch()
    assert opened(tmp_path) == older
    (older / "done").touch()
    assert opened(tmp_path) not in (older, newer)


def test_a_start_that_is_killed_leaves_no_run_beside_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        opened(tmp_path)
    first = opened(tmp_path)
    assert first.parent == tmp_path / "quick" and not first.name.startswith(".") and opened(tmp_path) == first
    assert [path.name for path in first.iterdir()] == ["config.yaml"]


def test_other_machines_go_on_with_a_run(tmp_path: Path) -> None:
    recipe = read_recipe(["--name=quick", "--compute.timeout=5"])[0]
    first = open_run(recipe, {"devices": 2, "precision": "32-true"}, tmp_path).folder
    other = read_recipe(["--name=quick", "--compute.compile=true"])[0]
    machines = {"devices": 8, "num_nodes": 4, "strategy": "ddp_spawn", "precision": "32-true"}
    assert open_run(other, machines, tmp_path).folder == first
    assert open_run(other, machines | {"precision": "bf16-mixed"}, tmp_path).folder != first
    (first / "config.yaml").write_text("name: [cut by a k")
    assert open_run(recipe, {"precision": "32-true"}, tmp_path).folder != first
