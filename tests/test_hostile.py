"""Broken files, descriptions and arguments by the hundred: refused in one sentence, or answered as if nothing were."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsdino.base.digest import told_sha256
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.base.storage import describe, load, save
from fsdino.cache.cache import EmbeddingCache, cache_recipe
from fsdino.cache.store import ShardStore
from fsdino.cli import main
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.images import read_image, read_mask
from fsdino.data.readers.coco import CocoIndex
from fsdino.data.readers.yolo import yolo_folder
from fsdino.evaluation.compare import compare_tables
from fsdino.evaluation.tables import read_episodes
from fsdino.models.config import SegmenterConfig
from fsdino.pipeline.recipe import read_run
from fsdino.predict.hints import hinted_folder
from fsdino.predict.memory_file import load_memory
from fsdino.serve.store import MemoryStore
from tests.data.small import MemoryIndex
from tests.hostile import ODD_VALUES, Tally, changed, damaged, ended, hostile_texts, judge
from tests.small import scene, small_segmenter, write_references
from tests.training.small import image_list, small_teacher


@dataclass
class Kind:
    """A kind of file: where it lies, what reads it and gives a comparable answer, and whether it has a checksum."""

    file: Path
    read: Callable[[], Any]
    checked: bool = False
    flips: int = 8


def _answer(model: FewShotMethod) -> dict[str, Any]:
    image, mask = scene(seed=3)
    memory = model.remember([Reference(image, mask=mask)])
    return {"probs": model.segment(memory, scene(seed=4)[0]).probs, "threshold": model.threshold}


def _index(index: ClassIndex) -> dict[str, Any]:
    return {
        f"{class_id} {image}": (index.load_mask(image, class_id), index.load_image(image))
        for class_id in index.class_names
        for image in index.images(class_id)
    }


def _references(root: Path) -> list[Any]:
    found = hinted_folder(root)
    return [(name, one.points, one.box, one.negative) for name, ones in found.items() for one in ones]


def _cli(*arguments: str) -> int:
    """A command in this process; its refusal as an error, once it is known to be one sentence."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(arguments))
    lines = [line for line in said.getvalue().splitlines() if line.startswith(f"fsdino {arguments[0]}: ")]
    if code == 2:
        assert len(lines) == 1, said.getvalue()[-500:]
        raise ValueError(lines[0])
    return code


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole file of every kind."""
    root = tmp_path_factory.mktemp("world")
    model = small_segmenter(seed=1, variant="full", promptable=True)
    save(model, root / "model")
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "fsdino": describe(model)}, root / "last.ckpt")
    write_references(root / "refs", {"cat": 2})
    (root / "photos").mkdir()
    for i, suffix in enumerate(("png", "jpg", "tiff")):
        Image.fromarray(scene(50, 70, seed=4)[0]).save(root / "photos" / f"{i}.{suffix}")
    Image.fromarray(scene(50, 70, seed=4)[1] * np.uint8(255)).save(root / "mask.png")
    _cli("remember", "--support", str(root / "refs"), "--out", str(root / "cat.fsmem"), "--model", str(root / "model"))
    (root / "memories").mkdir()
    shutil.copy(root / "cat.fsmem", root / "memories" / "0123456789abcdef.fsmem")
    _cli(*_predict(root))
    (root / "coco" / "images").mkdir(parents=True)
    Image.fromarray(scene()[0]).save(root / "coco" / "images" / "0.png")
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": 60, "width": 80}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 7, "segmentation": [[5, 5, 40, 5, 40, 40]],
                         "area": 600, "bbox": [5, 5, 35, 35], "iscrowd": 0},
                        {"id": 1, "image_id": 0, "category_id": 7, "iscrowd": 1,
                         "segmentation": {"size": [60, 80], "counts": [100, 200, 4500]}}],
        "categories": [{"id": 7, "name": "box"}],
    }  # fmt: skip
    (root / "coco" / "instances.json").write_text(json.dumps(content))
    for name in ("images", "labels"):
        (root / "yolo" / name).mkdir(parents=True)
    Image.fromarray(scene()[0]).save(root / "yolo" / "images" / "0.png")
    (root / "yolo" / "labels" / "0.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n1 0.6 0.6 0.9 0.6 0.9 0.9\n")
    (root / "yolo" / "data.yaml").write_text("train: images\nnames: {0: cat, 1: dog}\n")
    (root / "hints" / "cat").mkdir(parents=True)
    Image.fromarray(scene()[0]).save(root / "hints" / "cat" / "a.jpg")
    hint = {"points": [[20, 20], [30, 31.5]], "labels": [1, 0], "box": [5, 5, 40, 40], "negative": False}
    (root / "hints" / "cat" / "a.json").write_text(json.dumps(hint))
    EpisodeList.draw(MemoryIndex(), 0, num_episodes=6).save(root / "list.json")
    images, teacher = image_list(6), small_teacher()
    recipe = cache_recipe(teacher, images, shard_size=4)
    store = ShardStore(root / "cache", recipe)
    rows = np.random.default_rng(0).normal(size=(6, *recipe.entry_shape))
    while places := store.claim():
        store.put(list(places), rows[places.start : places.stop])
    store.close()
    _cli("evaluate", "all_foreground", "--options.img_size", "56", "--episodes", "4", "--folds", "0", "--strips", "0",
         "--data_options.images_per_class", "3", "--device", "cpu", "--out", str(root / "measured"))  # fmt: skip
    (root / "recipe.yaml").write_text("preset: tiny\nseed: 3\ntrain: {epochs: 2, lr: 0.01}\ndata: {fold: 1}\n")
    return root


def _predict(root: Path, out: str = "out") -> list[str]:
    given = {"support": "refs", "images": "photos", "out": out, "model": "model"}
    return ["predict", *(text for key, value in given.items() for text in (f"--{key}", str(root / value)))]


def _results(root: Path) -> dict[str, bytes]:
    assert _cli(*_predict(root)) == 0
    return {
        str(file.relative_to(root / "out")): file.read_bytes()
        for file in sorted((root / "out").rglob("*"))
        if file.is_file() and file.name != "progress.jsonl"
    }


def _compared(root: Path) -> list[Any]:
    table = read_episodes(root / "measured")
    return [(one.name, one.a, one.b, one.episodes) for one in compare_tables(table, table)]


def _memory(root: Path) -> dict[str, Any]:
    found = load_memory(root / "cat.fsmem")
    return {"name": found.class_name, "arrays": found.arrays, "made by": found.fingerprint, "image": found.thumbnail}


def _store(root: Path) -> list[Any]:
    store = MemoryStore(root / "memories", 9)
    try:
        found = [(one.id, store.load(one).arrays) for one in store.records()]
    finally:
        store.close()
    if not found:
        raise ValueError("not served, which the log says.")
    return found


def _recipe(root: Path) -> str:
    recipe, options, stages = read_run(["--config", str(root / "recipe.yaml")])
    return repr((recipe, options, stages))


def _cached(root: Path) -> list[np.ndarray]:
    cache = EmbeddingCache(root / "cache")
    return [cache[i].numpy() for i in range(len(cache))]


KINDS: dict[str, Callable[[Path], Kind]] = {
    "config.json": lambda r: Kind(r / "model/config.json", lambda: _answer(load(r / "model")), checked=True, flips=12),
    "model.safetensors": lambda r: Kind(r / "model/model.safetensors", lambda: _answer(load(r / "model")), True),
    "checkpoint": lambda r: Kind(r / "last.ckpt", lambda: _answer(load(r / "last.ckpt")), checked=True, flips=10),
    "memory": lambda r: Kind(r / "cat.fsmem", lambda: _memory(r), checked=True, flips=30),
    "recipe": lambda r: Kind(r / "recipe.yaml", lambda: _recipe(r)),
    "episode list": lambda r: Kind(r / "list.json", lambda: EpisodeList.load(r / "list.json").content_hash, True, 30),
    "COCO": lambda r: Kind(r / "coco/instances.json",
                           lambda: _index(CocoIndex(r / "coco/instances.json", r / "coco/images")), flips=40),
    "YOLO labels": lambda r: Kind(r / "yolo/labels/0.txt", lambda: _index(yolo_folder(r / "yolo")), flips=30),
    "YOLO yaml": lambda r: Kind(r / "yolo/data.yaml", lambda: _index(yolo_folder(r / "yolo")), flips=30),
    "hints": lambda r: Kind(r / "hints/cat/a.json", lambda: _references(r / "hints"), flips=30),
    "png": lambda r: Kind(r / "photos/0.png", lambda: read_image(r / "photos/0.png"), checked=True, flips=30),
    "jpg": lambda r: Kind(r / "photos/1.jpg", lambda: read_image(r / "photos/1.jpg"), flips=30),
    "tiff": lambda r: Kind(r / "photos/2.tiff", lambda: read_image(r / "photos/2.tiff"), flips=40),
    "mask": lambda r: Kind(r / "mask.png", lambda: read_mask(r / "mask.png"), checked=True, flips=30),
    "cache manifest": lambda r: Kind(r / "cache/manifest.json", lambda: _cached(r), flips=30, checked=True),
    "cache shard": lambda r: Kind(r / "cache/shard-00000.npy", lambda: _cached(r), flips=20, checked=True),
    "record": lambda r: Kind(r / "out/progress.jsonl", lambda: _results(r), flips=6),
    "episodes.csv": lambda r: Kind(r / "measured/episodes.csv", lambda: _compared(r), flips=30),
    "saved memories of a server": lambda r: Kind(r / "memories/0123456789abcdef.fsmem", lambda: _store(r), flips=20),
}  # fmt: skip
TEXTS = ("config.json", "recipe", "episode list", "COCO", "YOLO yaml", "hints", "cache manifest", "record")


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(name: str, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    kind, tally = KINDS[name](tmp_path / "world"), Tally()
    whole = kind.file.read_bytes()
    wanted = kind.read()
    for case, data in damaged(whole, seed=len(name), flips=kind.flips):
        kind.file.write_bytes(data)
        judge(tally, case, kind.read, wanted, free=not kind.checked)
    for case, text in hostile_texts().items() if name in TEXTS else ():
        kind.file.write_text(text)
        judge(tally, case, kind.read, wanted, free=not kind.checked)
    ended(tally, name, 18)


@pytest.mark.parametrize("name", ["COCO", "hints", "cache manifest", "episode list"])
def test_descriptions_with_other_values(name: str, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    kind, tally = KINDS[name](tmp_path / "world"), Tally()
    whole, wanted = json.loads(kind.file.read_text()), kind.read()
    for case, values in changed(whole, seed=1, count=60):
        kind.file.write_text(json.dumps(values))
        judge(tally, case, kind.read, wanted, free=not kind.checked)
    ended(tally, name, 60)


def test_a_model_s_description_with_other_values(world: Path, tmp_path: Path) -> None:
    # Signed again, as by somebody who edits it on purpose: the checksum finds nothing.
    shutil.copytree(world / "model", tmp_path / "model")
    file, tally = tmp_path / "model" / "config.json", Tally()
    whole = json.loads(file.read_text())
    whole.pop("sha256")

    def read() -> tuple[str, float]:
        model = load(tmp_path / "model")
        return model.fingerprint(), model.threshold

    wanted = read()
    for case, values in changed(whole, seed=2, count=60):
        file.write_text(json.dumps({**values, "sha256": told_sha256(values)}))
        # The threshold and results are anybody's to choose: another one is another model.
        judge(tally, case, read, wanted, free="threshold" in case)
    for name in SegmenterConfig.__dataclass_fields__:
        for odd in ("text", "minus one", "huge", "NaN", "a list"):
            args = {**whole["args"], name: ODD_VALUES[odd]}
            values = {**whole, "args": args}
            file.write_text(json.dumps({**values, "sha256": told_sha256(values)}))
            judge(tally, f"{name} = {odd}", read, wanted, free=name == "threshold")
    ended(tally, "description of a model", 150)
