"""`fsdino predict` and `fsdino remember`: every format, continuing, tiles, video, and memories in place of images."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from fsdino.base.method import FewShotMethod
from fsdino.base.registry import build
from fsdino.base.result import Segmentation
from fsdino.base.storage import save
from fsdino.cli import main
from fsdino.predict import EngineChoice, predict, remember
from fsdino.predict.finish import Finish
from fsdino.predict.memory_file import load_memory
from fsdino.predict.outputs import Outputs
from tests.predict.test_images import write_video
from tests.small import METHOD_ARGS, refuses


def test_predict_writes_every_format(model_dir: str, support_dir: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    formats = ["labels", "overlays", "coco", "yolo"]
    assert predict(str(support_dir), str(photos), str(out), EngineChoice(model_dir), formats=formats) == 0  # type: ignore[arg-type]
    coco = json.loads((out / "predictions.json").read_text())
    assert [entry["name"] for entry in coco["categories"]] == ["cat", "dog"]
    assert json.loads((out / "classes.json").read_text()) == {"1": "cat", "2": "dog"}
    for image in coco["images"]:
        stem = os.path.splitext(image["file_name"])[0]
        shown = np.asarray(Image.open(photos / image["file_name"]))
        labels = np.asarray(Image.open(out / "labels" / f"{stem}.png"))
        assert labels.shape == shown.shape[:2] == (image["height"], image["width"])
        drawn = np.asarray(Image.open(out / "overlays" / f"{stem}.jpg"))
        assert drawn.shape == (6 * shown.shape[0], 6 * shown.shape[1], 3), "small images are enlarged for the eye"
        assert (out / "yolo" / f"{stem}.txt").exists()
        rebuilt = np.zeros_like(labels)
        for entry in coco["annotations"]:
            if entry["image_id"] == image["id"]:
                rebuilt[rle_tools.decode(entry["segmentation"]) == 1] = entry["category_id"]
        assert np.array_equal(rebuilt, labels), "masks of one image do not overlap"
    assert (out / "scores.csv").read_text().count("\n") == 1 + 3 * 2


def test_a_second_run_continues(model_dir, support_dir, photos, tmp_path: Path, monkeypatch) -> None:
    out, seen = tmp_path / "out", []
    original = FewShotMethod.find

    def counted(self: FewShotMethod, joined: Sequence[Any], image: np.ndarray) -> Iterator[Segmentation]:
        seen.append(image.shape)
        return original(self, joined, image)

    monkeypatch.setattr(FewShotMethod, "find", counted)
    choice = EngineChoice(model_dir)
    run = lambda **options: predict(str(support_dir), str(photos), str(out), choice, **options)  # noqa: E731
    run()
    record = (out / "progress.jsonl").read_text().splitlines(keepends=True)
    (out / "progress.jsonl").write_text("".join(record[:2]) + record[2][:10])  # killed while it wrote a line
    assert len(seen) == 3
    run()
    assert len(seen) == 5, "one image was done, the other two are made again"
    assert sorted((out / "progress.jsonl").read_text().splitlines(True)[1:]) == sorted(record[1:])
    run()
    assert len(seen) == 5
    refuses(r"results of another min_score \(0.0, now 0.5\).*--overwrite", run, min_score=0.5)
    run(min_score=0.5, overwrite=True)
    assert len(seen) == 8


def test_outputs_among_the_images_are_not_images(model_dir: str, support_dir: Path, photos: Path) -> None:
    for _ in range(2):
        assert predict(str(support_dir), str(photos), str(photos / "masks"), EngineChoice(model_dir)) == 0
    assert len(list((photos / "masks" / "labels").rglob("*.png"))) == 3


def test_tiles_and_video_through_predict(model_dir: str, support_dir: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.avi", frames=2)
    assert predict(str(support_dir), str(video), str(tmp_path / "out"), EngineChoice(model_dir), tile=40) == 0
    assert len(list((tmp_path / "out" / "labels" / "clip.avi").iterdir())) == 2


def test_remembered_classes_give_the_same(model_dir: str, support_dir: Path, photos: Path, tmp_path: Path) -> None:
    files = remember(str(support_dir), str(tmp_path / "memory"), EngineChoice(model_dir))
    assert [path.name for path in files] == ["cat.fsmem", "dog.fsmem"]
    one = tmp_path / "mine.fsmem"
    assert main(["remember", str(support_dir / "cat"), "--out", str(one), "--model", model_dir]) == 0
    assert load_memory(one).class_name == "cat" and load_memory(one).thumbnail.shape[2] == 3
    refuses("is a saved memory already", remember, str(tmp_path / "memory"), str(tmp_path), EngineChoice(model_dir))
    for name, support in (("a", support_dir), ("b", tmp_path / "memory")):
        predict(str(support), str(photos), str(tmp_path / name), EngineChoice(model_dir))
    for path in (tmp_path / "a" / "labels").rglob("*.png"):
        twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert (np.asarray(Image.open(path)) != np.asarray(Image.open(twin))).mean() < 0.02


def test_too_many_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="255 classes at once; a label map holds 254"):
        Outputs(tmp_path, [str(i) for i in range(255)], ["labels"], {}, {})


def test_other_methods_of_the_package_predict_too(support_dir: Path, photos: Path, tmp_path: Path) -> None:
    choice = EngineChoice(str(save(build("all_foreground", img_size=56), tmp_path / "all")))
    assert predict(str(support_dir / "cat"), str(photos), str(tmp_path / "out"), choice) == 0
    assert np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png")).min() == 1


def labels(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((out / "labels").rglob("*.png"))]


def test_edges_are_refined_where_asked_and_for_the_chain(
    model_dir: str, support_dir: Path, photos: Path, tmp_path: Path
) -> None:
    chain = str(save(build("chain", **METHOD_ARGS["chain"]), tmp_path / "chain"))

    def run(model: str, out: str, told: bool | None, tile: int = 0) -> list[bytes]:
        choice = EngineChoice(model)
        predict(
            str(support_dir / "cat"), str(photos), str(tmp_path / out), choice, Finish(refine_edges=told), tile=tile
        )
        return labels(tmp_path / out)

    for model, usual in ((model_dir, False), (chain, True)):
        made = {told: run(model, f"{usual} {told}", told) for told in (None, False, True)}
        assert made[None] == made[usual] != made[not usual]
        refuses(r"results of another refine_edges \(True, now None\)", run, model, f"{usual} True", told=False)
    assert run(model_dir, "tiles", True, tile=40) != run(model_dir, "plain tiles", False, tile=40)
    # A record from before there was this setting is continued.
    assert "refine_edges" not in (tmp_path / "False None" / "progress.jsonl").read_text()
