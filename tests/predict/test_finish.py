"""Gate and edges at every door: predict, its tables and captions, the service, and annotation."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.annotate.lessons import Lessons, Teaching
from fsdino.base.result import LabelMap
from fsdino.base.storage import save
from fsdino.cli import main
from fsdino.predict import formats
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.finish import Finish
from fsdino.predict.memory_file import remembered
from fsdino.predict.support import Support, read_support
from fsdino.serve.service import Question, Runner
from fsdino.serve.store import MemoryStore
from fsdino.serve.uploads import Upload
from tests.base.test_drawn import lit
from tests.serve.small import LIMITS
from tests.small import scene, small_segmenter, write_references


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes everything for absent, references of a cat, and a photograph."""
    root = tmp_path_factory.mktemp("finish")
    model = small_segmenter(seed=1)
    model.threshold = 0.05
    for parameter in model.presence.out.parameters():
        parameter.data.zero_()
    model.presence.out.bias.data -= 1.0
    save(model, root / "model")
    write_references(root / "refs", {"cat": 1})
    (root / "photos").mkdir()
    Image.fromarray(scene(50, 70, seed=4)[0]).save(root / "photos" / "a.png")
    return root


def run(place: Path, out: str, *options: str) -> Path:
    given = {"support": "refs", "images": "photos", "out": out, "model": "model"}
    paths = [text for key, value in given.items() for text in (f"--{key}", str(place / value))]
    assert main(["predict", *paths, "--formats", "labels,coco", *options]) == 0
    return place / out


def test_predict_keeps_what_counts_as_absent_where_asked(place: Path) -> None:
    pixels, said = {}, {}
    for name, options in {"auto": [], "off": ["--min-presence", "0"], "low": ["--min-presence", "0.2"]}.items():
        out = run(place, name, *options)
        (row,) = csv.DictReader((out / "scores.csv").open())
        pixels[name], said[name] = int(row["pixels"]), float(row["presence"])
        assert np.count_nonzero(np.asarray(Image.open(out / "labels" / "a.png"))) == pixels[name]
        notes = json.loads((out / "predictions.json").read_text())["annotations"]
        assert [note["presence"] for note in notes] == [said[name]] * bool(pixels[name])
    assert pixels["auto"] == 0 < pixels["off"] == pixels["low"] and set(said.values()) == {0.2689}
    # What is as before is continued; results of another gate are not.
    assert "min_presence" not in (place / "auto" / "progress.jsonl").read_text()
    arguments = ["--support", str(place / "refs"), "--images", str(place / "photos"), "--model", str(place / "model")]
    assert main(["predict", *arguments, "--formats", "labels,coco", "--out", str(place / "off")]) == 2


def test_windows_of_a_large_image_obey_too(place: Path) -> None:
    out = run(place, "tiles", "--min-presence", "0", "--tile", "40")
    (row,) = csv.DictReader((out / "scores.csv").open())
    assert int(row["pixels"]) > 0


def test_the_caption_of_a_doubtful_mask_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(formats, "overlay", lambda image, labels, captions: told.append(captions) or image)
    labels = np.array([[0, 1, 2]], np.uint8)
    found = LabelMap(labels, labels / np.float32(2), {"a": 0.5, "b": 0.6}, {"a": 0.47, "b": 0.9})
    formats.captioned(np.zeros((1, 3, 3), np.uint8), found, ["a", "b"])
    assert told == [{1: "a 0.50 (there 47 %)", 2: "b 0.60"}]


def test_the_service_obeys_and_warns(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, engine = MemoryStore(tmp_path / "memories", 9), EngineChoice(str(place / "model")).open()
    runner = Runner("small", engine, store, LIMITS)
    support = read_support(str(place / "refs"))
    records = store.add([remembered(engine, "cat", support.references["cat"], runner.fingerprint)])
    Image.fromarray(lit(1)).save(tmp_path / "lit.png")

    def ask(**finish: Any) -> dict[str, Any]:
        with (tmp_path / "lit.png").open("rb") as file:
            question = Question(records, 0.05, 0.0, "json", Finish(**finish))
            (answer,), _ = runner.find(question, [Upload(file, "lit.png")], float("inf"))
        return answer

    usual, off, edges = ask(), ask(min_presence=0.0), ask(min_presence=0.0, refine_edges=True)
    assert [one["found"][0]["present"] for one in (usual, off, edges)] == [False, True, True]
    assert usual["found"][0]["area"] == 0 < off["found"][0]["area"] != edges["found"][0]["area"]
    assert usual["remark"] is None
    monkeypatch.setattr("fsdino.base.drawn.bundled_fingerprint", lambda _: runner.fingerprint)
    answer = ask()  # as the bundled model would be: the gate is off on what was not drawn
    assert answer["found"][0]["area"] == off["found"][0]["area"] and "photographs" in answer["remark"]
    store.close()


def test_annotation_obeys_and_warns_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, support = EngineChoice(str(place / "model")).open(), read_support(str(place / "refs"))

    def masks(**options: Any) -> tuple[int, str]:
        lessons = Lessons(engine, support, Teaching(**options))
        return int(lessons.find(lit(1)).classes["cat"].mask.sum()), lessons.version()

    usual, off, edges = masks(), masks(min_presence=0.0), masks(min_presence=0.0, refine_edges=True)
    tiled = masks(min_presence=0.0, tile=64)
    assert usual[0] == 0 < off[0] != edges[0] and tiled[0] > 0
    assert len({usual[1], off[1], edges[1]}) == 3  # predictions of other settings are made anew
    monkeypatch.setattr("fsdino.base.drawn.bundled_fingerprint", lambda _: engine.fingerprint())
    lessons = Lessons(engine, Support(support.references), Teaching())
    for _ in range(2):
        assert lessons.find(lit(1)).classes["cat"].mask.sum() == off[0]
    assert capsys.readouterr().err.count("careful:") == 1
