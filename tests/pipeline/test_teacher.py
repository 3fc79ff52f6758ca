"""Stage 0 of a run: regions first and once for all folds, then the masks of base classes, and nothing twice."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fsdino.pipeline.recipe import read_recipe
from fsdino.pipeline.run import Run
from tests.small import SAM_SIZES

RECIPE = f"""
preset: tiny
data:
  train: [{{name: synthetic, options: {{images_per_class: 2}}}}]
  test: {{name: synthetic, options: {{images_per_class: 3}}}}
  val_episodes: 4
  test_episodes: 4
teacher: {{checkpoint: own}}
teach: {{sam: {json.dumps(SAM_SIZES)}, regions: [regions], region_epochs: 1, epochs: 1, epoch_length: 8, batch_size: 4}}
cache: {{dir: cache}}
log: {{wandb: "off"}}
"""


def _regions(root: Path) -> None:
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(root / "images" / f"{i}.jpg")
        halves = np.repeat([[1, 2]], 24, axis=1).repeat(48, axis=0).astype(np.uint8)
        Image.fromarray(halves).save(root / "labels" / f"{i}_0.png")


def _run(name: str, *overrides: str) -> Run:
    recipe, options = read_recipe(["--config", "own.yaml", *overrides])
    return Run(recipe, options, Path("runs") / name)


@pytest.mark.parametrize("overrides", [["--teach.region_epochs=0", "--teach.objects=false"], []])
def test_a_teacher_without_masks_is_refused(tmp_path: Path, monkeypatch, overrides: list[str]) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(RECIPE)
    with pytest.raises(ValueError, match="name folders of regions"):
        _run("bare", "--teach.regions=[]", *overrides).teacher  # noqa: B018


def test_regions_are_learnt_once_and_classes_by_each_run(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    _regions(tmp_path / "regions")
    (tmp_path / "own.yaml").write_text(RECIPE)
    first = _run("first")
    assert first.teacher.img_size == 32
    (shared,) = tmp_path.glob("cache/teacher-regions-*/teach/sam.safetensors")
    made = shared.stat().st_mtime_ns
    _run("second", "--teach.objects=false").teacher  # noqa: B018 - asking for it trains it
    assert shared.stat().st_mtime_ns == made

    file = tmp_path / "runs" / "first" / "teach" / "sam.safetensors"
    regions, all_masks, regions_again = (
        load_file(path)["mask_decoder.iou_token.weight"]
        for path in (shared, file, tmp_path / "runs" / "second" / "teach" / "sam.safetensors")
    )
    assert not torch.equal(all_masks, regions)
    assert not torch.equal(all_masks, regions_again)  # it has seen other masks
    made = file.stat().st_mtime_ns
    _run("first").teacher  # noqa: B018
    assert file.stat().st_mtime_ns == made
