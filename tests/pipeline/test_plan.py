"""What a recipe needs is said before it starts, and is what it then takes."""

import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdino.base.storage import load
from fsdino.cache.image_list import ImageList
from fsdino.cli import main
from fsdino.pipeline import disk, plan
from fsdino.pipeline.needs import CacheNeed, Needs
from fsdino.pipeline.recipe import read_recipe
from fsdino.training.cache_writer import CachePart, write_cache
from tests.pipeline.test_recipe import RECIPES, run_name
from tests.pipeline.test_run import write_recipe
from tests.small import refuses
from tests.training.small import image_list, noise, small_teacher

Usage = namedtuple("Usage", "total used free")
# What changes no size.
SHORT = [
    "--data.val_episodes", "2", "--train.epoch_length", "8", "--train.epochs", "1", "--distill.epochs", "1",
    "--distill.sizes", "[56]", "--presence.episodes", "4", "--draw.epochs", "1",
]  # fmt: skip
B14 = next(path for path in RECIPES if path.name == "b14_coco20i.yaml")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(write_recipe(tmp_path))
    return ["--config", "small.yaml"]


def free(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**15, 0, number))


def test_stages_alone_take_what_was_planned_and_the_run_s_folder_is_a_model(
    small: list[str], tmp_path: Path, capsys
) -> None:
    assert main(["plan", *small, "--rate", "0.1"]) == 0
    text = capsys.readouterr().out
    run = ["run", *small, *SHORT, "--stages"]
    assert main([*run, "cache"]) == 0
    assert sorted(path.name.split("-")[0] for path in Path("runs/cache").iterdir()) == ["features", "teacher"]
    assert main([*run, "train"]) == 0
    (folder,) = Path("runs/small").iterdir()  # the unfinished run goes on
    assert not (folder / "export").exists() and not (folder / "done").exists()
    world = ["--data_options.images_per_class", "3", "--episodes", "2", "--folds", "0", "--strips", "0"]
    assert main(["evaluate", str(folder), *world, "--device", "cpu", "--out", "measured"]) == 0
    assert main([*run, "export"]) == 0
    assert load(folder).fingerprint() == load(folder / "export").fingerprint()
    assert "checkpoint" in capsys.readouterr().out
    for kind in ("teacher", "features"):
        (cache,) = Path("runs/cache").glob(f"{kind}-*")
        written = sum(path.stat().st_size for path in cache.glob("*.npy"))
        planned = re.search(rf"cache {kind}: ([\d,]+) images x ([\dx ]+) x 2 bytes = ([\d.]+) MB", text)
        assert planned, text
        assert float(planned[3]) == pytest.approx(written / 1e6, rel=0.01)
        numbers = [int(planned[1].replace(",", "")), *map(int, planned[2].split(" x "))]
        assert 2 * np.prod(numbers) == pytest.approx(written, rel=0.01), "the formula that is printed"
    kept = [path for path in Path("runs/small").rglob("*") if path.suffix in (".ckpt", ".safetensors", ".pt")]
    planned = re.search(r"checkpoints and export: ([\d.]+) MB", text)
    assert planned and float(planned[1]) == pytest.approx(sum(path.stat().st_size for path in kept) / 1e6, rel=0.15)
    assert "download  nothing" in text and "all folders are there" in text and "= 0.00" in text


def test_sizes_to_the_byte(small: list[str]) -> None:
    recipe, _ = read_recipe(small)
    needs = Needs(recipe, images=37, annotated=20)
    assert [(need.kind, need.entry_shape) for need in needs.caches] == [
        ("teacher", (1, 64, 28, 28)),
        ("features", (1, 5, 192, 16, 16)),  # four blocks, and the attention of one
    ]
    # Nine files of four images and one of one, each with a header of 128 bytes.
    assert needs.caches[0].bytes(37) == 37 * 64 * 28 * 28 * 2 + 10 * 128


HEADER = re.compile(
    r"cache of ([\d,]+) SAM-([HB]) embeddings \((\d+) GB at (\d+)x\4, (\d+) GB with --cache.grid (\d+)\)"
)


@pytest.mark.parametrize("path", RECIPES, ids=run_name)
def test_headers_say_what_the_caches_take(path: Path) -> None:
    recipe, _ = read_recipe(["--config", str(path)])
    told = HEADER.search(path.read_text())
    assert bool(told) == recipe.teacher.checkpoint.startswith("vit_"), "a recipe with a large cache says how large"
    if told:
        number, name, *sizes = told.groups()
        assert recipe.teacher.checkpoint == f"vit_{name.lower()}"
        count = int(number.replace(",", ""))
        smaller, _ = read_recipe(["--config", str(path), "--cache.grid", sizes[3]])
        for one, (size, grid) in zip((recipe, smaller), (sizes[:2], sizes[2:])):
            (need,) = Needs(one, count, None).caches
            assert need.entry_shape[-2:] == (int(grid),) * 2 and round(need.bytes(count) / 1e9) == int(size)
        # The student's own grid, where nothing is resized in a step.
        assert int(sizes[3]) == recipe.distill.sizes[-1] // 14


def test_a_large_recipe_without_its_data(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    free(monkeypatch, 10**11)
    assert main(["plan", str(B14), "--rate", "50"]) == 0
    text = capsys.readouterr().out
    assert "images x 1 x 256 x 64 x 64 x 2 bytes = 2.1 GB for 1,000 images" in text and "give --images N" in text
    assert "data/COCO2014 --download`" in text and "missing: images of distillation in 'data/SA-1B-1percent'" in text
    assert "sam_vit_h_4b8939.pth, 2.6 GB, from https://" in text and "vit_base_patch14_dinov2, about 0.3 GB" in text
    assert main(["plan", "--config", str(B14), "--images", "110000", "--rate", "50"]) == 0
    text = capsys.readouterr().out
    assert "110,000 images x 1 x 256 x 64 x 64 x 2 bytes = 230.7 GB" in text and "NOT ENOUGH" in text
    found = re.search(r"cache teacher: 110,000 x ([\d.e+]+) operations = ([\d.]+)", text)
    assert found and float(found[2]) == pytest.approx(110_000 * float(found[1]) / 50e12 / 3600, rel=0.01)
    # SAM-H is known to take about 2.7 to 3 x 10^12 multiplications with their additions an image.
    assert 5.4e12 < float(found[1]) < 6.2e12


def test_systems_without_caches_and_own_models() -> None:
    sansa = next(path for path in RECIPES if run_name(path) == "sansa-tiny")
    needs = Needs(read_recipe(["--config", str(sansa)])[0], None, None)
    assert needs.caches == [] and [stage.name for stage in needs.stages] == ["train", "validate and evaluate"]
    own = next(path for path in RECIPES if path.name == "own_folder.yaml")
    needs = Needs(read_recipe(["--config", str(own)])[0], None, 20)
    assert "distill" not in {stage.name for stage in needs.stages} and needs.checkpoints > 1e6


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(small, capsys, monkeypatch) -> None:
    free(monkeypatch, 1_000_000)
    assert main(["run", *small]) == 2
    told = capsys.readouterr().err
    assert re.search(
        r"the caches need [\d.]+ MB more in 'runs/cache' \(teacher: \d+ images x 1 x 64 x 28 x 28 x 2 b", told
    )
    assert "1.0 MB are free: make room, name another disk with --cache.dir, store fewer cells with --cache.gri" in told
    assert "ask the teacher in every step with --cache.teacher false, or go on all the same with --cache.check" in told
    assert not Path("runs/cache").exists() and not list(Path("runs").rglob("config.yaml"))
    assert main(["run", *small, "--stages", "cache", "--cache.check_disk", "false"]) == 0
    # What is there need not be written again, so the same disk is now large enough.
    assert main(["run", *small, "--stages", "cache"]) == 0
    capsys.readouterr()
    shutil.rmtree(next(Path("runs/cache").glob("teacher-*")))
    assert main(["run", *small, "--stages", "cache"]) == 2
    assert re.search(r"features: .* = ([\d.]+) MB, \1 MB of it there", capsys.readouterr().err)


def test_holes_of_a_file_do_not_count_as_written(tmp_path: Path) -> None:
    teacher, images = small_teacher(), image_list(8)
    write_cache(teacher, images, CachePart(str(tmp_path)), kind="teacher")
    need = CacheNeed("teacher", 8, (1, *teacher.entry_shape), ("plain",), 256)
    assert disk.written(need, images, tmp_path) == pytest.approx(need.bytes(8), rel=0.01)
    shard = next(tmp_path.rglob("*.npy"))
    with shard.open("wb") as file:
        file.truncate(need.bytes(8))
    assert disk.written(need, images, tmp_path) < 0.1 * need.bytes(8)
    begun = shard.with_name(f"{shard.name}.0.tmp")
    begun.write_bytes(bytes(need.bytes(8)))
    assert disk.written(need, images, tmp_path) == pytest.approx(need.bytes(8), rel=0.1)
    (shard.parent / "manifest.json").write_text("{")
    assert disk.written(need, images, tmp_path) == 0


def test_a_folder_of_images_is_counted(small: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    for part in ("hours", "memory"):  # operations, which are counted for seconds
        monkeypatch.setattr(plan, part, lambda *_: "")
    (tmp_path / "more").mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20)).save(tmp_path / f"more/{i}.png")
    images = '[{name: images, root: "more"}]'
    assert main(["plan", "small.yaml", "--data.images", images, "--rate", "1"]) == 0
    assert "cache teacher: 3 images x" in capsys.readouterr().out


def test_shards_of_a_shorter_list_are_there_already(tmp_path: Path) -> None:
    teacher, part = small_teacher(), CachePart(str(tmp_path), shard_size=3)
    write_cache(teacher, image_list(8), part, kind="teacher")
    need = CacheNeed("teacher", 11, (1, *teacher.entry_shape), ("plain",), 3)
    assert disk.written(need, image_list(11), tmp_path) == pytest.approx(need.bytes(6), rel=0.01)
    other = ImageList("noise", tuple("76543210"), noise)
    assert disk.written(need, other, tmp_path) == 0


BAD = {
    "no recipe": ([], "give a recipe to plan"),
    "a recipe that is not there": (["none.yaml"], "there is no recipe 'none.yaml'"),
    "an unknown option": (["small.yaml", "--hours", "3"], "hours"),
    "no images": (["small.yaml", "--images", "0"], "--images 0 is not a number above 0"),
    "text for images": (["small.yaml", "--images", "many"], "invalid int value: 'many'"),
    "more cells than the teacher has": (["small.yaml", "--cache.grid", "29"], "at most the teacher's own 28 cells"),
    "the mask loss on fewer cells": (
        ["small.yaml", "--cache.grid", "8", "--distill.mask_weight", "1"],
        "the mask loss needs the teacher's own grid",
    ),
    "a rate below zero": (["small.yaml", "--rate", "-1"], "--rate -1.0 is not a number above 0"),
    "a teacher that is not there": (["small.yaml", "--teacher.checkpoint", "x.pth"], "sizes of the teacher 'x.pth'"),
    "an unknown data set": (["small.yaml", "--data.test.name", "imagenet9"], "no data set 'imagenet9'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, small: list[str], capsys) -> None:
    arguments, words = BAD[case]
    assert main(["plan", *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("fsdino plan: ") and words in told[0]


def test_the_rate_is_measured_where_it_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SIDE", 64)
    assert plan.measured_rate("32") > 1e6
    refuses("sizes of the teacher", lambda: Needs(read_recipe(["--teacher.checkpoint", "a.pth"])[0], 1, 1).caches)
