"""Recipes: every committed one parses and its model can be built; overrides and their errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from fsdino.models.segmenter import FewShotSegmenter
from fsdino.recipe import bundled_file, read_recipe

RECIPES = sorted(Path(__file__).parent.parent.joinpath("recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_committed_recipe_parses_builds_and_says_what_it_is(path) -> None:
    head = path.read_text().splitlines()[:4]
    for line, key in zip(head, ("# Reproduces:", "# Command:", "# Hardware:", "# Expect:")):
        assert line.startswith(key), f"{path.name}: expected a line {key}"
    recipe, _ = read_recipe(["--config", str(path)])
    config = recipe.segmenter()
    config.encoder_weights = None
    with torch.device("meta"):
        FewShotSegmenter(config)


def test_overrides_win_over_the_file(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"preset": "s14", "train": {"lr": 0.5}}))
    recipe, trainer = read_recipe(
        ["--config", str(file), "--train.lr", "0.25", "--seed", "7", "--trainer.devices", "2"]
    )
    assert (recipe.name, recipe.preset, recipe.train.lr, recipe.seed) == ("mine", "s14", 0.25, 7)
    assert trainer == {"devices": "2"}


def test_an_unknown_key_is_named(tmp_path, capsys) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("train: {learning_rate: 1}\n")
    with pytest.raises(SystemExit):
        read_recipe(["--config", str(file)])
    assert "learning_rate" in capsys.readouterr().err


def test_an_unknown_model_field_is_named() -> None:
    recipe, _ = read_recipe(["--model", '{"adaptor_dim": 3}'])
    with pytest.raises(ValueError, match="SegmenterConfig has no adaptor_dim"):
        recipe.segmenter()


def test_missing_bundled_weights_say_how_to_make_them() -> None:
    with pytest.raises(FileNotFoundError, match=r"no bundled weights 'nothing' .* make them with `make assets`"):
        bundled_file("nothing")
