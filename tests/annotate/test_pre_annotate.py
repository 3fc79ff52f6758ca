"""A whole project before anybody opens it: what is predicted, going on after a stop, and what is broken."""

import sys
from collections.abc import Iterator
from importlib import import_module, reload
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient

from fsdino.annotate.label_studio.canvas import drawn, read_canvas
from fsdino.annotate.label_studio.command import label_studio, pre_annotate
from fsdino.annotate.label_studio.connection import Connection
from fsdino.annotate.lessons import Teaching
from fsdino.cli import main
from tests.annotate import world
from tests.annotate.colour_engine import ColourEngine, picture, square
from tests.annotate.fake_label_studio import CONFIG, LEGACY, PERSONAL, FakeLabelStudio, annotation, brushed, serving
from tests.small import refuses

RED = (250, 10, 10)


class Colours:
    """In place of an `EngineChoice`."""

    def open(self) -> ColourEngine:
        return ColourEngine()


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    """Task 1 is drawn; tasks 2 to 4 are not."""
    fake = FakeLabelStudio()
    fake.add_task(picture(RED), annotation(7, brushed(square())))
    for top in (0, 10, 14):
        fake.add_task(picture(RED, top, 20))
    with serving(fake.app()) as fake.url:
        yield fake


def run(studio: FakeLabelStudio, key: str = LEGACY, **options: Any) -> int:
    connection = Connection(studio.url, key)
    return pre_annotate(1, Colours(), Teaching(**options), connection)  # type: ignore[arg-type]


def found(studio: FakeLabelStudio, task: int) -> np.ndarray:
    [prediction] = studio.tasks[task]["predictions"]
    mask = drawn(read_canvas(CONFIG), prediction["result"])["thing"].mask
    assert mask is not None
    return mask


def test_what_nobody_has_drawn_is_predicted(studio: FakeLabelStudio, capsys: pytest.CaptureFixture) -> None:
    assert run(studio, PERSONAL) == 0
    assert (found(studio, 2) == square(0, 20)).all() and (found(studio, 4) == square(14, 20)).all()
    assert studio.tasks[1]["predictions"] == [] and studio.refreshed > 0
    assert "3 of 3 tasks have a prediction of fsdino-" in capsys.readouterr().out


def test_a_second_run_goes_on_where_the_first_stopped(studio: FakeLabelStudio) -> None:
    studio.refuse_predictions_after = 1
    refuses("answers 503 for a prediction for task 3", run, studio, kind=OSError)
    first = studio.tasks[2]["predictions"]
    studio.refuse_predictions_after = None
    assert run(studio) == 0 and studio.tasks[2]["predictions"] is first
    assert all(len(studio.tasks[task]["predictions"]) == 1 for task in (2, 3, 4)) and studio.deleted == []


def test_a_new_model_replaces_its_own_predictions_and_no_others(studio: FakeLabelStudio) -> None:
    run(studio)
    theirs = {"id": 5, "model_version": "another model", "result": [], "task": 2}
    studio.tasks[2]["predictions"].append(theirs)
    run(studio, threshold=0.3)
    versions = [one["model_version"] for one in studio.tasks[2]["predictions"]]
    assert versions[0] == "another model" and len(versions) == 2 and len(studio.deleted) == 3


def test_broken_pictures_are_listed_at_the_end(studio: FakeLabelStudio, capsys: pytest.CaptureFixture) -> None:
    studio.add_task(b"no image")
    studio.add_address("s3://bucket/x.png")
    assert run(studio) == 1
    said = capsys.readouterr()
    assert "task 5: picture '/data/upload/1/5.png' cannot be read" in said.err and "task 6: picture 's3:" in said.err
    assert "3 of 5 tasks" in said.out and len(studio.tasks[4]["predictions"]) == 1


def test_a_drawn_picture_that_is_broken_is_said(studio: FakeLabelStudio, capsys: pytest.CaptureFixture) -> None:
    studio.add_task(b"no image", annotation(9, brushed(square())))
    assert run(studio) == 0
    assert "not learnt from: picture '/data/upload/1/5.png' cannot be read" in capsys.readouterr().err


def test_nothing_drawn_yet_is_one_sentence(studio: FakeLabelStudio) -> None:
    studio.tasks[1]["annotations"] = []
    refuses("there is nothing to look for yet: draw one of its labels", run, studio)
    assert not any(task["predictions"] for task in studio.tasks.values())


def test_many_tasks_come_page_by_page(studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsdino.annotate.label_studio.client.PAGE", 2)
    assert run(studio) == 0 and studio.tasks[4]["predictions"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["1"], "asks for a token"),
        (["1", "--api-key", "wrong"], "refuses the token (401)"),
        (["1", "--api-key", "a.b.c"], "refuses the token (401)"),
        (["2", "--api-key", LEGACY], "answers 404 for project 2"),
        (["1", "--api-key", "kéy"], "asks for a token"),
        (["1", "--api-key", LEGACY, "--url", "localhost"], "is no address of a Label Studio"),
        (["1", "--api-key", LEGACY, "--url", "http://127.0.0.1:9"], "cannot be reached"),
        (["1", "--api-key", LEGACY, "--support", "/none"], "does not exist"),
        (["1", "--api-key", LEGACY, "--max-picture-mb", "0"], "max_picture_mb: expected"),
        (["1", "--api-key", LEGACY, "--min-score", "3"], "min_score: expected"),
        (["x", "--api-key", LEGACY], "--project"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    studio: FakeLabelStudio, capsys: pytest.CaptureFixture, given: list[str], words: str
) -> None:
    where = [] if "--url" in given else ["--url", studio.url]
    assert main(["pre-annotate", *given, *where]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said
    assert not any(task["predictions"] for task in studio.tasks.values())


@pytest.mark.parametrize(
    ("module", "missing"), [("label_studio", "uvicorn"), ("label_studio", "fastapi"), ("cvat", "cvat_sdk")]
)
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, module: str, missing: str) -> None:
    package = import_module(f"fsdino.annotate.{module}")
    monkeypatch.setitem(sys.modules, missing, None)
    refuses(f"needs {missing}; install it with `pip install fsdino.annotate.`", reload, package, kind=ImportError)


def test_a_port_that_is_taken_is_one_sentence(studio: FakeLabelStudio) -> None:
    port = int(studio.url.rpartition(":")[2])
    refuses("cannot listen on port", label_studio, connection=Connection(studio.url, LEGACY), port=port)
    refuses("there is no port 70000", label_studio, connection=Connection(studio.url, LEGACY), port=70000)


def test_the_bundled_model_learns_and_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Any, Any]] = []
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    monkeypatch.setenv("FSDINO_BACKEND_PASSWORD", "secret")
    fake, scenes = FakeLabelStudio(), world.pictures(4)
    for image, mask in scenes[:3]:
        fake.add_task(image, annotation(len(fake.tasks) + 1, brushed(mask)))
    fake.add_task(scenes[3][0])
    with serving(fake.app()) as fake.url:
        # All but the loop that waits for Ctrl+C; that runs in the test with a real Label Studio.
        monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: served.append((server.config.app, sockets)))
        assert main(["label-studio", "--url", fake.url, "--port", "0"]) == 0
        [(app, [listening])] = served
        assert listening.fileno() == -1, "the port is given back"
        client = TestClient(app)
        asked = {"tasks": [fake.tasks[4]], "project": "1.17", "label_config": CONFIG}
        assert client.post("/predict", json=asked).status_code == 401
        [prediction] = client.post("/predict", json=asked, auth=("x", "secret")).json()["results"]
    mask = drawn(read_canvas(CONFIG), prediction["result"])["thing"].mask
    assert mask is not None and world.iou(mask, scenes[3][1]) > 0.6 and 0 < prediction["score"] <= 1
