"""Recipes of SANSA and FSSAM, from training to the exported folder, with the stages' own files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fsdino.base.registry import load_method
from fsdino.base.storage import load
from fsdino.cache.image_list import ImageList
from fsdino.data.episodes.episode import EpisodeData, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec
from fsdino.data.world.index import SyntheticWorld
from fsdino.methods.fssam.method import Fssam
from fsdino.pipeline.commands import export, train
from fsdino.pipeline.folder import make_job
from fsdino.pipeline.method_job import MethodJob
from fsdino.pipeline.recipe import Recipe, read_recipe
from fsdino.pipeline.report import measure
from fsdino.pipeline.run import Job
from fsdino.training.method_data import EpisodesWithMaps, FssamMaps
from fsdino.training.method_module import MethodModule
from tests.contract import assert_same, episodes
from tests.small import small_encoder, small_sam2

TINY_VIT = "{embed_dim: 32, depth: 2, num_heads: 2}"
METHODS = {
    "sansa": "{size: mini, img_size: 64}",
    "fssam": "{size: mini, img_size: 64, encoder: vit_small_patch14_dinov2, encoder_img_size: 56, "
    f"encoder_kwargs: {TINY_VIT}, encoder_stride: 7, tap: 1}}",
}


def small_recipe(name: str, tmp_path: Path, *overrides: str) -> tuple[Recipe, dict]:
    """Two steps of two episodes on the embedded world, three images a class."""
    world = "{name: synthetic, options: {images_per_class: 3}}"
    return read_recipe([
        f"--method.name={name}", f"--method.args={METHODS[name]}", f"--data.train=[{world}]", f"--data.test={world}",
        "--data.test_episodes=3", "--data.val_episodes=3", "--train.epochs=1", "--train.epoch_length=4",
        "--train.batch_size=2", f"--cache.dir={tmp_path / 'cache'}", "--cache.hflip=false", "--log.wandb=off",
        "--evaluate.strips=3", "--trainer.accelerator=cpu", *overrides,
    ])  # fmt: skip


@pytest.mark.parametrize("name", list(METHODS))
def test_a_recipe_trains_measures_and_exports(name: str, tmp_path: Path) -> None:
    targets = ["--method.num_targets=2"] if name == "sansa" else ["--method.loss=dice", "--method.schedule=poly"]
    recipe, options = small_recipe(name, tmp_path, *targets)
    job = make_job(recipe, options, tmp_path / "run")
    assert isinstance(job, MethodJob) and job.distill() is None
    job.cache()
    checkpoint = job.train(job.distill())
    assert (tmp_path / "run" / "train" / "images").is_dir()
    report = measure(job, checkpoint)
    assert set(report.scores) == {"all foreground", {"sansa": "SANSA", "fssam": "FSSAM"}[name]}
    assert report.sheet.is_file() and "trained in episodes" in report.table({}, 0.0)
    folder = job.export(report.model, report.headline)
    inputs = episodes(report.model, 1, 1)
    with torch.no_grad():
        assert_same(load(folder)(*inputs), load_method(checkpoint)(*inputs), 0.0)
    # a second call finds everything done
    assert make_job(recipe, options, tmp_path / "run").train() == checkpoint


def test_weights_of_a_seed_repeat(tmp_path: Path) -> None:
    recipe, options = small_recipe("sansa", tmp_path)
    first, again = (make_job(recipe, options, tmp_path / "run").build() for _ in range(2))  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))


def test_fsdino_stays_the_default(tmp_path: Path) -> None:
    recipe, options = read_recipe([])
    assert type(make_job(recipe, options, tmp_path)) is Job


def test_sansa_has_no_maps(tmp_path: Path) -> None:
    recipe, options = small_recipe("sansa", tmp_path)
    job = make_job(recipe, options, tmp_path / "run")
    job.cache()
    assert not (tmp_path / "cache").exists()


def test_cached_maps_are_what_the_method_computes(tmp_path: Path) -> None:
    recipe, options = small_recipe("fssam", tmp_path)
    job = make_job(recipe, options, tmp_path / "run")
    assert isinstance(job, MethodJob)
    method = Fssam(small_sam2(), small_encoder()).eval()
    index = SyntheticWorld("base", 2)
    few = tuple(index.images(0) + index.images(1))
    maps = job.maps(method, ImageList("few", few, index.load_image))
    assert maps is not None and maps[0].recipe.entry_shape == (1, *FssamMaps(method).entry_shape)
    specs = tuple(EpisodeSpec(c, index.images(c)[0], (index.images(c)[1],)) for c in (0, 1))
    plain = EpisodeData(index, EpisodeList(index.name, 0, 1, 0, specs, "test"), method.resize)
    batch = collate_episodes([*plain])
    cached = collate_episodes([*EpisodesWithMaps(plain, *maps)])
    assert cached["support_features"].shape == (2, 1, *FssamMaps(method).entry_shape)
    found = method.features(batch["query_image"])
    torch.testing.assert_close(cached["query_features"].float(), found, atol=5e-3, rtol=5e-3)  # stored in half
    torch.testing.assert_close(
        cached["support_features"][:, 0].float(), method.features(batch["support_images"][:, 0]), atol=5e-3, rtol=5e-3
    )


@torch.no_grad()
def test_training_reads_maps_in_place_of_the_encoder() -> None:
    method = Fssam(small_sam2(), small_encoder()).eval()
    module, (query, images, masks) = MethodModule(method, (0, 1)), episodes(method, 2, 2)
    batch = {"query_image": query, "support_images": images, "support_masks": masks}
    maps = {"query_features": method.features(query), "support_features": method.features(images.flatten(0, 1))}
    maps["support_features"] = maps["support_features"].unflatten(0, (2, 2))
    expected = module(batch)
    method.encoder = torch.nn.Identity()  # type: ignore[assignment]
    assert_same(module(batch | maps), expected, 1e-6)


def test_the_loss_reaches_everything_that_trains() -> None:
    """DDP refuses a parameter without a gradient; FSSAM's IoU head has one only where its error is a loss."""
    method = Fssam(small_sam2(), small_encoder())
    module, (query, images, masks) = MethodModule(method, (0, 1), loss="dice").train(), episodes(method, 2, 1)
    batch = {"query_image": query, "support_images": images, "support_masks": masks}
    losses = module.losses(module(batch), (torch.rand(2, *query.shape[-2:]) > 0.5).long())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in method.trainable_parameters())


def test_another_optimiser_is_refused(tmp_path: Path) -> None:
    recipe, options = small_recipe("sansa", tmp_path, "--train.optimizer=muon")
    with pytest.raises(ValueError, match=r"train\.optimizer is 'muon', but sansa trains with 'adamw'"):
        make_job(recipe, options, tmp_path / "run").train()


def test_the_commands_take_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, options = small_recipe("sansa", tmp_path, "--name=mine")
    assert train(recipe, options) == 0 and "checkpoint" in capsys.readouterr().out
    assert export(recipe, options) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert type(load(folder)).__name__ == "Sansa"
