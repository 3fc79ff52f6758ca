"""The folder of `fsdino predict`: what a second run takes over, what it removes, names that meet, and scores."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from fsdino.base.storage import save
from fsdino.predict import Finding, Labelling, command, predict, resolve
from fsdino.predict.engine import segment_tiled
from fsdino.predict.formats import polygons
from fsdino.predict.outputs import Outputs, file_stems
from tests.predict.test_command import Whiteness
from tests.small import scene, small_segmenter, write_references


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(small_segmenter(), tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_references(tmp_path_factory.mktemp("refs"), {"cat": 1}))


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(30, 40, seed=seed)[0]).save(path)
    return path


def table(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---- a second run


SOURCES = {"a.jpg": ("/photos/a.jpg", 10, 20), "b.jpg": ("/photos/b.jpg", 10, 20)}


def labelling(label: int = 1, presence: float | None = 0.75) -> Labelling:
    labels = np.zeros((4, 6), np.uint8)
    labels[1, 1:3] = labels[3, 3:] = label
    probs = np.zeros((4, 6), np.float16)
    probs[1, 1:3], probs[3, 3:] = 0.75, 1.0
    return Labelling(labels, probs, [0.5], [presence])


def outputs(
    out: Path, images: dict[str, Any] = SOURCES, formats: tuple[str, ...] = ("labels", "coco"), **options: Any
) -> Outputs:
    return Outputs(out, ["cat"], formats, {"formats": sorted(formats)}, images, **options)


def fill(opened: Outputs, images: dict[str, Any] = SOURCES) -> None:
    for name in images.keys() - opened.done:
        opened.write(name, np.zeros((4, 6, 3), np.uint8), labelling())
    opened.finish()


@pytest.mark.parametrize("source", [("/other/a.jpg", 10, 20), ("/photos/a.jpg", 11, 20), ("/photos/a.jpg", 10, 21)])
def test_another_or_an_edited_image_is_made_again(tmp_path: Path, source: tuple[str, int, int]) -> None:
    fill(outputs(tmp_path))
    assert outputs(tmp_path).done == set(SOURCES)
    assert outputs(tmp_path, {**SOURCES, "a.jpg": source}).done == {"b.jpg"}
    assert files_in(tmp_path / "labels") == ["b.png"], "what is left of the older image is gone"


def test_a_image_whose_result_is_gone_is_made_again(tmp_path: Path) -> None:
    fill(outputs(tmp_path))
    (tmp_path / "labels" / "a.png").unlink()
    assert outputs(tmp_path).done == {"b.jpg"}


def test_a_image_that_gets_another_file_name_leaves_no_older_one(tmp_path: Path) -> None:
    fill(outputs(tmp_path))
    more = {**SOURCES, "a.png": ("/photos/a.png", 1, 2)}
    fill(outputs(tmp_path, more), more)
    assert files_in(tmp_path / "labels") == ["a.jpg.png", "a.png.png", "b.png"]


def test_tables_hold_the_images_of_this_run(tmp_path: Path) -> None:
    fill(outputs(tmp_path))
    one = {"b.jpg": SOURCES["b.jpg"]}
    assert outputs(tmp_path, one).finish() == 1
    assert [row["image"] for row in table(tmp_path)] == ["b.jpg"]
    assert [image["file_name"] for image in json.loads((tmp_path / "predictions.json").read_text())["images"]] == [
        "b.jpg"
    ]
    assert outputs(tmp_path).done == set(SOURCES), "the others need not be made again"
    same_file = {"a.png": ("/photos/a.png", 1, 2)}
    fill(outputs(tmp_path, same_file), same_file)
    assert outputs(tmp_path).done == {"b.jpg"}, "its file now shows another image"


def test_starting_over_removes_what_was_written(tmp_path: Path) -> None:
    fill(outputs(tmp_path, formats=("labels", "overlays", "coco", "yolo")))
    (tmp_path / "labels" / "mine.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    one = {"b.jpg": SOURCES["b.jpg"]}
    fill(outputs(tmp_path, one, ("labels",), overwrite=True), one)
    kept = ["classes.json", "labels/b.png", "labels/mine.png", "notes.txt", "progress.jsonl", "scores.csv"]
    assert files_in(tmp_path) == kept
    (tmp_path / "progress.jsonl").write_text("no record\n")
    assert outputs(tmp_path, one, ("labels",), overwrite=True).done == set()


def test_nothing_outside_the_folder_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(outputs(out))
    (tmp_path / "mine.png").write_bytes(b"")
    text = (out / "progress.jsonl").read_text()
    text = text.replace("labels/a.png", "../mine.png").replace("labels/b.png", str(tmp_path / "mine.png"))
    (out / "progress.jsonl").write_text(text)
    outputs(out, overwrite=True)
    assert (tmp_path / "mine.png").exists()


def test_predict_sees_other_images_of_the_same_names(model_dir: str, refs: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for seed, folder in enumerate(("one", "two")):
        save(tmp_path / folder / "a.png", seed)
    for folder in ("one", "two", "two"):
        assert predict(refs, str(tmp_path / folder), str(out), model_dir, formats="labels") == 0
        (line,) = (out / "progress.jsonl").read_text().splitlines()[1:]
        assert json.loads(line)["source"][0] == str((tmp_path / folder / "a.png").resolve())
    (tmp_path / "two" / "a.png").write_bytes(b"damaged since")
    assert predict(refs, str(tmp_path / "two"), str(out), model_dir, formats="labels") == 1
    assert files_in(out / "labels") == [] and table(out) == []


def test_another_runtime_or_other_graphs_are_other_settings(
    model_dir: str, refs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "photos" / "a.png")
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    for name in ("remember.onnx", "segment.onnx"):
        (graphs / name).write_bytes(b"float")
    before = command._graph_digest(graphs)
    engine = command.open_engine(model_dir, device="cpu")
    monkeypatch.setattr(command, "open_engine", lambda *given: engine)

    def again(**more: Any) -> int:
        return predict(refs, str(tmp_path / "photos"), str(tmp_path / "out"), str(graphs), **more)

    again(runtime="onnx")
    (graphs / "segment.onnx").write_bytes(b"eight bits")
    assert command._graph_digest(graphs) != before
    with pytest.raises(ValueError, match="holds results of another graph"):
        again(runtime="onnx")
    with pytest.raises(ValueError, match="holds results of another graph"):
        again()
    shutil.rmtree(tmp_path / "out")
    again()
    with pytest.raises(ValueError, match="holds results of another"):
        again(runtime="openvino")


# ---- names


def test_images_whose_files_would_meet_keep_their_suffix() -> None:
    assert file_stems(["a.jpg", "b.jpg", "deep/a.jpg"]) == {"a.jpg": "a", "b.jpg": "b", "deep/a.jpg": "deep/a"}
    names = ["a.jpg", "A.png", "a.jpg.png", "a.jpg.png.png", "classes.jpg", "clip.avi/000000", "clip.avi/000000.jpg"]
    stems = file_stems(names)
    assert stems["a.jpg"] == "a.jpg" and stems["a.jpg.png"] == "a.jpg.png" and stems["classes.jpg"] == "classes.jpg"
    assert len({stem.lower() for stem in stems.values()}) == len(names)


def test_a_image_called_classes_does_not_meet_the_names(model_dir: str, refs: str, tmp_path: Path) -> None:
    save(tmp_path / "photos" / "classes.jpg")
    predict(refs, str(tmp_path / "photos"), str(tmp_path / "out"), model_dir, formats="yolo")
    assert files_in(tmp_path / "out" / "yolo") == ["classes.jpg.txt", "classes.txt"]
    assert (tmp_path / "out" / "yolo" / "classes.txt").read_text() == "cat\n"


def test_names_on_disk_may_be_any_bytes(model_dir: str, refs: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    shutil.move(save(tmp_path / "photos" / "a.png"), tmp_path / "photos" / f"{name}.png")
    shutil.copytree(Path(refs) / "cat", tmp_path / "refs" / name)
    given = (str(tmp_path / "refs"), str(tmp_path / "photos"), str(tmp_path / "out"), model_dir)
    for _ in range(2):
        assert predict(*given, formats="labels,overlays,coco,yolo", threshold=0.01) == 0
    assert [(row["image"], row["class"]) for row in table(tmp_path / "out")] == [(f"{name}.png", name)]
    assert (tmp_path / "out" / "labels" / f"{name}.png").exists()


# ---- scores


@pytest.mark.parametrize(("presence", "shown"), [(0.75, "0.75"), (None, "")])
def test_the_presence_is_in_the_table(tmp_path: Path, presence: float | None, shown: str) -> None:
    opened = outputs(tmp_path, {"a.jpg": SOURCES["a.jpg"]})
    opened.write("a.jpg", np.zeros((4, 6, 3), np.uint8), labelling(presence=presence))
    opened.finish()
    assert table(tmp_path) == [
        {"image": "a.jpg", "class": "cat", "score": "0.5", "pixels": "5", "presence": shown},
    ]


def test_presence_survives_absence_and_tiles() -> None:
    found = Finding(np.ones((1, 1), np.float32), 0.9, False, 0.25)
    assert resolve(iter([found]), (1, 1), 0.5).presences == [0.25]

    class Present(Whiteness):
        def segment(self, memories: Any, image: np.ndarray) -> Iterator[Finding]:
            for found in super().segment(memories, image):
                yield Finding(found.probs, found.score, found.present, found.score)

    image = np.zeros((150, 90, 3), np.uint8)
    image[120:] = 204
    assert segment_tiled(Present(), [None], image, 64)[0].presence == pytest.approx(0.8)
    assert segment_tiled(Whiteness(), [None], image, 64)[0].presence is None


@pytest.mark.parametrize(("split", "scores"), [(False, [0.5]), (True, [0.5, 0.375])])
def test_each_instance_has_its_own_score(tmp_path: Path, split: bool, scores: list[float]) -> None:
    opened = outputs(tmp_path, {"a.jpg": SOURCES["a.jpg"]}, split_instances=split)
    opened.write("a.jpg", np.zeros((4, 6, 3), np.uint8), labelling())
    opened.finish()
    annotations = json.loads((tmp_path / "predictions.json").read_text())["annotations"]
    assert [one["score"] for one in annotations] == scores  # the class's times the part's mean probability


# ---- polygons


@pytest.mark.parametrize("seed", range(6))
def test_polygons_with_any_holes_fill_to_the_same_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random((90, 120)), (0, 0), 0.6 + 0.4 * seed)
    mask = (noise > np.quantile(noise, 0.3)).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    mask[stats[parts, cv2.CC_STAT_AREA] < 20] = 0  # some of these are lines, which have no area
    filled = np.zeros_like(mask)
    for polygon in polygons(mask):
        cv2.fillPoly(filled, [polygon.astype(np.int32)], 1)
    assert np.array_equal(filled, mask)


def test_many_holes_take_no_longer_than_their_pixels() -> None:
    mask = np.ones((1000, 1000), np.uint8)
    mask[2:-2:4, 2:-2:4] = 0  # 62 001 holes
    start = time.perf_counter()
    (outline,) = polygons(mask)
    assert time.perf_counter() - start < 20
    filled = np.zeros_like(mask)
    cv2.fillPoly(filled, [outline.astype(np.int32)], 1)
    assert np.array_equal(filled, mask)
