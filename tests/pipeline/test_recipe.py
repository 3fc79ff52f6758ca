"""Recipes: every committed one parses and its model can be built; overrides and their errors."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from fsdino.base import registry
from fsdino.base.bundled import bundled_file
from fsdino.base.method import FewShotMethod
from fsdino.cli import main
from fsdino.pipeline.recipe import Recipe, read_recipe, read_run
from fsdino.pipeline.run import Run
from fsdino.training.episodes import EpisodeModule
from tests.small import refuses

RECIPES = sorted(Path(__file__).parents[2].joinpath("recipes").glob("*/*.yaml"))
README = Path(__file__).parents[2] / "recipes" / "README.md"


def run_name(path: Path) -> str:
    """`system-file`, as the run's folder is called."""
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=run_name)
def test_committed_recipe_parses_builds_and_says_what_it_is(path) -> None:
    head = path.read_text().splitlines()[:4]
    for line, key in zip(head, ("# Reproduces:", "# Command:", "# Hardware:", "# Expect:")):
        assert line.startswith(key), f"{path}: expected a line {key}"
    if "make distill RECIPE" in head[1]:
        assert f"RECIPE=recipes/{path.parent.name}/{path.name}" in head[1]
    assert f"({path.parent.name}/{path.name})" in README.read_text(encoding="utf-8"), f"{path} is not in {README}"
    recipe, _ = read_recipe(["--config", str(path)])
    assert recipe.name == run_name(path) and recipe.method.name == path.parent.name
    with torch.device("meta"):
        module = EpisodeModule(untrained(recipe), part=recipe.train)
    if recipe.method.name != "fsdino":
        assert module.model.img_size == recipe.method.args["img_size"]


def untrained(recipe: Recipe) -> FewShotMethod:
    """The recipe's method, of the size that its weights have, without them."""
    sizes = {"facebook/sam2.1-hiera-small": "small", "facebook/sam2-hiera-large": "large"}
    args = {k: v for k, v in recipe.arguments().items() if k not in registry.FILE_ARGUMENTS}
    if recipe.method.name != "fsdino":
        args["size"] = sizes.get(recipe.method.args["weights"], "mini")
    return registry.build(recipe.method.name, **args)


PUBLISHED = {
    "sansa": {"lr": 1e-4, "loss": "bce_dice", "schedule": "cosine", "horizon": 1.0, "num_targets": 3, "epochs": 5},
    "fssam": {"lr": 1e-3, "loss": "dice", "schedule": "poly", "horizon": 3.0, "num_targets": 1, "batch_size": 8},
}


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name in PUBLISHED], ids=run_name)
def test_methods_keep_their_published_hyper_parameters(path) -> None:
    recipe, options = read_recipe(["--config", str(path)])
    chosen, mask_alone = asdict(recipe.train), {"warmup": 0, "beta2": 0.999, "iou_weight": 0, "presence_weight": 0}
    mask_alone["weight_decay"] = 0
    assert {key: chosen[key] for key in mask_alone} == mask_alone
    if path.stem == "tiny":
        return
    wanted = PUBLISHED[recipe.method.name]
    assert {key: chosen[key] for key in wanted} == wanted and not recipe.train.tune_threshold
    assert options == {"precision": "bf16-mixed"}
    if recipe.method.name == "sansa":
        assert recipe.method.args["img_size"] == 1024 and recipe.train.batch_size * 8 == 32
        assert recipe.method.args["factor"] == (0.8 if "generalist" in path.stem else 0.3)
        assert recipe.method.args["memory_order"] == "video"
        assert recipe.method.args.get("first_size") == {"fss1000": 518, "pascal5i": None}.get(path.stem, 640)
    else:
        assert (recipe.method.args["img_size"], recipe.method.args["encoder_img_size"]) == (512, 560)
        assert recipe.train.epochs == (100 if path.stem in ("pascal5i", "fss1000") else 25)


def test_bundled_files_of_a_method_are_found() -> None:
    args = '{"weights": "bundled:tiny_sam", "img_size": 128}'
    recipe, _ = read_recipe(["--method.name=sansa", "--method.args", args])
    assert recipe.arguments() == {"weights": str(bundled_file("tiny_sam")), "img_size": 128}


def test_bundled_recipes_are_found_by_name_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = read_recipe(["--config", str(RECIPES[0].parents[1] / "fsdino" / "tiny.yaml")])[0]
    for name in ("tiny", "fsdino/tiny", "recipes/fsdino/tiny.yaml"):
        assert read_recipe(["--config", name])[0] == whole
    assert read_recipe(["--config=sansa/tiny"])[0].name == "sansa-tiny" and read_recipe(["--config=own_folder"])
    (tmp_path / "tiny").write_text("seed: 5\n")  # a file of that name comes first
    assert read_recipe(["--config", "tiny"])[0].seed == 5
    refuses("there is no recipe 'tinny'; give a YAML file, or one of fsdino/b14", read_recipe, ["--config", "tinny"],
            kind=FileNotFoundError)  # fmt: skip


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "a\\b"])
def test_a_name_leads_out_of_no_folder(name: str) -> None:
    refuses("is no plain name of a folder", read_recipe, ["--name", name])


def test_a_start_that_failed_leaves_no_folder(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--config", "tiny", "--data.test_list", "bundled:none.json"]) == 2
    assert "no bundled list 'none.json'" in capsys.readouterr().err
    assert list((tmp_path / "runs").rglob("*")) == [tmp_path / "runs" / "fsdino-tiny"]


def test_stages_are_no_part_of_the_recipe() -> None:
    recipe, _, stages = read_run(["--stages", "train,export"])
    assert stages == ("train", "export") and recipe == read_recipe([])[0]


def test_overrides_win_over_the_file(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"preset": "s14", "train": {"lr": 0.5}}))
    recipe, trainer = read_recipe(
        ["--config", str(file), "--train.lr", "0.25", "--seed", "7", "--trainer.devices", "2"]
    )
    assert (recipe.name, recipe.preset, recipe.train.lr, recipe.seed) == ("mine", "s14", 0.25, 7)
    assert trainer == {"devices": "2"}
    # what is Lightning's default is asked for all the same
    assert read_recipe(["--trainer.devices=auto"])[1] == {"devices": "auto"} and read_recipe(["--seed=1"])[1] == {}


def test_a_run_without_progress_bars(tmp_path) -> None:
    recipe, options = read_recipe(["--trainer.enable_progress_bar=false"])
    assert Run(recipe, options, tmp_path).fitter.trainer("train").progress_bar_callback is None


def test_missing_bundled_weights_say_how_to_make_them() -> None:
    with pytest.raises(FileNotFoundError, match=r"no bundled weights 'nothing' .* make them with `make assets`"):
        bundled_file("nothing")
