"""Whole runs of every method; killed in each stage and started again by the same command, the same weights."""

import signal
from pathlib import Path

import pytest
import torch

from fsdino.base.storage import load, save
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.pipeline.recipe import Recipe, read_recipe
from fsdino.pipeline.report import measure
from fsdino.pipeline.run import Run
from tests.contract import assert_same, episodes
from tests.forked import started
from tests.small import VIT, small_segmenter, write_references

RECIPE = """
preset: tiny
model: {encoder_weights: "bundled:tiny_encoder", promptable: true, attention_taps: [4], centred: true}
data:
  train: [{name: own, root: mine}]
  test: {name: own, root: mine}
  in_domain: true
  val_by: images
  val_episodes: 4
  test_episodes: 4
cache: {shard_size: 4, hflip: false}
distill: {epochs: 2, sizes: [56, 112], batch_size: 4, val_count: 4}
train: {epochs: 2, epoch_length: 8, batch_size: 4}
presence: {episodes: 4}
draw: {epochs: 2, epoch_length: 8, batch_size: 4}
evaluate: {strips: 2}
log: {wandb: "off"}
"""
(OWN_FOLDER,) = (Path(__file__).parents[2] / "recipes").rglob("own_folder.yaml")


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """The recipe `small.yaml` in a folder, and the images that it learns from."""
    write_references(folder / "mine", {"cat": 8, "dog": 8})
    (folder / "small.yaml").write_text(text)
    return folder


def _run(folder: Path, kill_at: str | None = None) -> int:
    """Run in a folder; with `kill_at`, kill -9 as soon as a file of that pattern is there."""
    process = started(folder, ["run", "--config", "small.yaml"])
    while kill_at is not None and process.is_alive():
        if any(folder.glob(kill_at)):
            process.kill()
        process.join(0.01)
    process.join()
    return process.exitcode or 0


def _weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    (path,) = folder.glob(f"runs/small/*/{stage}/checkpoints/last.ckpt")
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def test_kill_in_every_stage_changes_no_weight(tmp_path) -> None:
    # One method to measure: the others take the same way.
    text = RECIPE.replace("{strips: 2}", "{strips: 2, baselines: false}")
    whole, parts = (write_recipe(tmp_path / name, text) for name in ("whole", "parts"))
    assert _run(whole) == 0, (whole / "log.txt").read_text()[-2000:]
    for pattern in (
        "runs/cache/teacher-*/*.npy", "runs/small/*/distill/checkpoints/last.ckpt",
        "runs/small/*/train/checkpoints/last.ckpt", "runs/small/*/draw/checkpoints/last.ckpt",
        "runs/small/*/evaluate/*/rows.0.csv",
    ):  # fmt: skip
        assert _run(parts, pattern) == -signal.SIGKILL, f"no {pattern}: {(parts / 'log.txt').read_text()[-2000:]}"
    assert _run(parts) == 0, (parts / "log.txt").read_text()[-2000:]
    for stage in ("distill", "train", "draw"):
        expected, found = _weights(whole, stage), _weights(parts, stage)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), stage
        fitted = expected["model.compared.means"]
        assert fitted.shape == (4, 192) and bool(fitted.any()) == (stage != "distill"), "of training images, once"
    assert len(list(parts.glob("runs/small/*"))) == 1, "killed before its first checkpoint it goes on in its folder"
    (expected,), (found,) = (list(f.glob("runs/small/*/evaluate/*/rows.0.csv")) for f in (whole, parts))
    assert expected.read_text() == found.read_text()


METHODS = {
    "sansa": {"size": "mini", "img_size": 64},
    "fssam": {**VIT, "size": "mini", "img_size": 64, "encoder_img_size": 56, "encoder_stride": 7, "tap": 1},
}
OWN = {
    "sansa": ["--train.num_targets=2"],
    "fssam": ["--train.loss=dice", "--train.schedule=poly", "--cache.hflip=true"],
}


def _small_recipe(name: str, tmp_path: Path, *overrides: str) -> tuple[Recipe, dict]:
    """Two steps of two episodes on the embedded world, three images a class."""
    world = "{name: synthetic, options: {images_per_class: 3}}"
    return read_recipe(
        [
            f"--method.name={name}",
            f"--method.args={METHODS[name]}",
            f"--data.train=[{world}]",
            f"--data.test={world}",
            f"--cache.dir={tmp_path / 'cache'}",
            *["--data.test_episodes=3", "--data.val_episodes=3", "--evaluate.strips=3", "--log.wandb=off"],
            *["--train.epochs=1", "--train.epoch_length=4", "--train.batch_size=2", "--trainer.accelerator=cpu"],
            *overrides,
        ]
    )


@pytest.mark.parametrize("name", list(METHODS))
def test_a_recipe_trains_measures_and_exports(name: str, tmp_path: Path) -> None:
    recipe, options = _small_recipe(name, tmp_path, *OWN[name], "--trainer.log_every_n_steps=1")
    run = Run(recipe, options, tmp_path / "run")
    run.cache()
    assert [path.name.split("-")[0] for path in tmp_path.glob("cache/*")] == ([] if name == "sansa" else ["fssam"])
    assert run.distill() is None
    checkpoint = run.train()
    assert (tmp_path / "run" / "train" / "images").is_dir() and not (tmp_path / "run" / "presence").exists()
    with (tmp_path / "run" / "train" / "metrics.csv").open() as file:
        assert any(column.startswith("train/lr") for column in file.readline().strip().split(","))
    report = measure(run, checkpoint)
    assert set(report.scores) == {"all foreground", {"sansa": "SANSA", "fssam": "FSSAM"}[name]}
    assert report.sheet.is_file() and "trained in episodes" in report.table({}, 0.0)
    folder = run.export(report.model, report.headline)
    inputs = episodes(report.model, 1, 1)
    with torch.no_grad():
        assert_same(load(folder)(*inputs), load(checkpoint)(*inputs), 0.0)
    # a second call finds everything done
    assert Run(recipe, options, tmp_path / "run").train() == checkpoint


def test_weights_of_a_seed_repeat(tmp_path: Path) -> None:
    recipe, options = _small_recipe("sansa", tmp_path)
    first, again = (Run(recipe, options, tmp_path / "run").build() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))


def test_a_trained_segmenter_is_adapted(tmp_path: Path) -> None:
    root = str(write_references(tmp_path / "mine", {"cat": 8, "dog": 6}))
    first = small_segmenter(variant="full", promptable=True)
    model = str(save(first, tmp_path / "model"))
    spec = "{name: own, root: " + root + "}"
    recipe, options = read_recipe([
        "--config", str(OWN_FOLDER), f"--data.train=[{spec}]", f"--data.test={spec}", f"--train.init_from={model}",
        "--train.epochs=1", "--train.epoch_length=4", "--train.batch_size=2", "--presence.episodes=8",
        "--data.test_episodes=4", "--data.val_episodes=4", f"--cache.dir={tmp_path / 'cache'}", "--log.wandb=off",
        "--evaluate.strips=3", "--evaluate.baselines=false", "--trainer.accelerator=cpu",
    ])  # fmt: skip
    run = Run(recipe, options, tmp_path / "run")
    run.cache()
    assert run.distill() is None
    trained = run.train(None)
    adapted = load(trained)
    assert isinstance(adapted, FewShotSegmenter) and adapted.config.presence_likeness
    before, after = first.state_dict(), adapted.state_dict()
    assert not (tmp_path / "run" / "draw").exists()
    frozen = ("encoder.", "adapter.", "sam.")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(frozen))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("decoder."))
    report = measure(run, trained)
    assert set(report.headline) == {"in-domain mIoU", "in-domain FB-IoU"} and "in-domain classes" in report.table({}, 0)
