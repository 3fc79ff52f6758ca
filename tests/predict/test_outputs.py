"""The folder of `fsdino predict`: what a second run takes over, what it removes, names that meet, and scores."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsdino.base.result import LabelMap
from fsdino.predict import EngineChoice, command, predict
from fsdino.predict.outputs import Outputs, file_stems
from tests.small import refuses, write_image


@pytest.fixture(scope="module")
def refs(support_dir: Path) -> str:
    return str(support_dir / "cat")


def table(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


SOURCES = {"a.jpg": ("/photos/a.jpg", 10, 20), "b.jpg": ("/photos/b.jpg", 10, 20)}


def label_map(presence: float | None = 0.75) -> LabelMap:
    labels, probs = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.float32)
    labels[1, 1:3] = labels[3, 3:] = 1
    probs[1, 1:3], probs[3, 3:] = 0.75, 1.0
    return LabelMap(labels, probs, {"cat": 0.5}, {"cat": presence})


def outputs(
    out: Path, images: dict[str, Any] = SOURCES, formats: tuple[str, ...] = ("labels", "coco"), **options: Any
) -> Outputs:
    return Outputs(out, ["cat"], formats, {"formats": sorted(formats)}, images, **options)


def fill(opened: Outputs, images: dict[str, Any] = SOURCES) -> None:
    for name in images.keys() - opened.done:
        opened.write(name, np.zeros((4, 6, 3), np.uint8), label_map())
    opened.finish()


@pytest.mark.parametrize("source", [("/other/a.jpg", 10, 20), ("/photos/a.jpg", 11, 20), ("/photos/a.jpg", 10, 21)])
def test_another_or_an_edited_image_is_made_again(tmp_path: Path, source: tuple[str, int, int]) -> None:
    fill(outputs(tmp_path))
    assert outputs(tmp_path).done == set(SOURCES)
    assert outputs(tmp_path, {**SOURCES, "a.jpg": source}).done == {"b.jpg"}
    assert files_in(tmp_path / "labels") == ["b.png"], "what is left of the older image is gone"


def test_an_image_whose_result_is_gone_is_made_again(tmp_path: Path) -> None:
    fill(outputs(tmp_path))
    (tmp_path / "labels" / "a.png").unlink()
    assert outputs(tmp_path).done == {"b.jpg"}


def test_half_a_line_of_the_record_is_no_image(tmp_path: Path) -> None:
    fill(outputs(tmp_path))
    path = tmp_path / "progress.jsonl"
    path.write_text(path.read_text()[:-5])  # killed while it wrote the last line
    opened = outputs(tmp_path)
    assert len(opened.done) == 1
    fill(opened)
    assert [row["image"] for row in table(tmp_path)] == ["a.jpg", "b.jpg"]


def test_an_image_that_gets_another_file_name_leaves_no_older_one(tmp_path: Path) -> None:
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
        write_image(tmp_path / folder / "a.png", seed=seed)
    for folder in ("one", "two", "two"):
        assert predict(refs, str(tmp_path / folder), str(out), EngineChoice(model_dir), formats="labels") == 0
        (line,) = (out / "progress.jsonl").read_text().splitlines()[1:]
        assert json.loads(line)["source"][0] == str((tmp_path / folder / "a.png").resolve())
    (tmp_path / "two" / "a.png").write_bytes(b"damaged since")
    assert predict(refs, str(tmp_path / "two"), str(out), EngineChoice(model_dir), formats="labels") == 1
    assert files_in(out / "labels") == [] and table(out) == []


def test_another_runtime_or_other_graphs_are_other_settings(model_dir, refs, tmp_path, monkeypatch) -> None:
    write_image(tmp_path / "photos" / "a.png")
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    for name in ("remember.onnx", "segment.onnx"):
        (graphs / name).write_bytes(b"float")
    before = command._graph_digest(graphs)
    engine = EngineChoice(model_dir, device="cpu").open()
    monkeypatch.setattr(EngineChoice, "open", lambda choice: engine)

    def again(**more: Any) -> int:
        return predict(refs, str(tmp_path / "photos"), str(tmp_path / "out"), EngineChoice(str(graphs), **more))

    again(runtime="onnx")
    (graphs / "segment.onnx").write_bytes(b"eight bits")
    assert command._graph_digest(graphs) != before
    refuses("holds results of another graph", again, runtime="onnx")
    refuses("holds results of another graph", again)
    shutil.rmtree(tmp_path / "out")
    again()
    refuses("holds results of another", again, runtime="openvino")


def test_images_whose_files_would_meet_keep_their_suffix() -> None:
    assert file_stems(["a.jpg", "b.jpg", "deep/a.jpg"]) == {"a.jpg": "a", "b.jpg": "b", "deep/a.jpg": "deep/a"}
    names = ["a.jpg", "A.png", "a.jpg.png", "a.jpg.png.png", "classes.jpg", "clip.avi/000000", "clip.avi/000000.jpg"]
    stems = file_stems(names)
    assert stems["a.jpg"] == "a.jpg" and stems["a.jpg.png"] == "a.jpg.png" and stems["classes.jpg"] == "classes.jpg"
    assert len({stem.lower() for stem in stems.values()}) == len(names)


def test_names_on_disk_may_be_any_bytes(model_dir: str, refs: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    shutil.move(write_image(tmp_path / "photos" / "a.png"), tmp_path / "photos" / f"{name}.png")
    shutil.copytree(refs, tmp_path / "refs" / name)
    given = (str(tmp_path / "refs"), str(tmp_path / "photos"), str(tmp_path / "out"), EngineChoice(model_dir))
    for _ in range(2):
        assert predict(*given, formats="labels,overlays,coco,yolo", threshold=0.01) == 0
    assert [(row["image"], row["class"]) for row in table(tmp_path / "out")] == [(f"{name}.png", name)]
    assert (tmp_path / "out" / "labels" / f"{name}.png").exists()


@pytest.mark.parametrize(("presence", "shown"), [(0.75, "0.75"), (None, "")])
def test_the_presence_is_in_the_table(tmp_path: Path, presence: float | None, shown: str) -> None:
    opened = outputs(tmp_path, {"a.jpg": SOURCES["a.jpg"]})
    opened.write("a.jpg", np.zeros((4, 6, 3), np.uint8), label_map(presence=presence))
    opened.finish()
    assert table(tmp_path) == [{"image": "a.jpg", "class": "cat", "score": "0.5", "pixels": "5", "presence": shown}]
