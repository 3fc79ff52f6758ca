"""The protocol of Label Studio's backends: what it asks, what is answered, and what is learnt in between."""

import threading
from typing import Any

import pytest
from fastapi.testclient import TestClient

from fsdino.annotate.label_studio.backend import Backend, build_app
from fsdino.annotate.label_studio.canvas import drawn, read_canvas
from fsdino.annotate.label_studio.client import Studio
from fsdino.annotate.label_studio.pictures import Pictures
from fsdino.annotate.label_studio.project import Project
from fsdino.annotate.lessons import Lessons
from fsdino.predict.support import Support
from tests.annotate.colour_engine import HintedEngine, picture, square
from tests.annotate.fake_label_studio import CONFIG, LEGACY, FakeLabelStudio, annotation, brushed, region, serving

RED, BLUE = (250, 10, 10), (10, 10, 250)
PROJECT = {"id": 1, "label_config": CONFIG}


class Place:
    """A fake Label Studio and a backend for it."""

    def __init__(self, studio: FakeLabelStudio, key: str = LEGACY, password: str | None = None) -> None:
        self.studio, api, engine = studio, Studio(studio.url, key), HintedEngine()
        pictures = Pictures(api.client)
        self.backend = Backend(api, lambda config: Project(config, Lessons(engine, Support()), pictures))
        self.client = TestClient(build_app(self.backend, password), raise_server_exceptions=False)

    def post(self, path: str, **message: Any) -> Any:
        response = self.client.post(path, json=message)
        assert response.status_code in (200, 201), response.text
        return response.json()

    def version(self) -> str:
        return str(self.post("/setup", project="1.1700000000", schema=CONFIG, access_token="x")["model_version"])

    def predict(self, *tasks: int, **params: Any) -> Any:
        asked = [self.studio.tasks[number] for number in tasks]
        return self.post("/predict", tasks=asked, project="1.1700000000", label_config=CONFIG, params=params)

    def mask(self, task: int, label: str = "thing") -> Any:
        [prediction] = self.predict(task)["results"]
        one = drawn(read_canvas(CONFIG), prediction["result"]).get(label)
        return None if one is None else one.mask

    def hook(self, action: str, **message: Any) -> Any:
        return self.post("/webhook", action=action, project=PROJECT, **message)


@pytest.fixture
def place() -> Any:
    """Task 1 is red and drawn, tasks 2 (red) and 3 (blue) are not."""
    studio = FakeLabelStudio()
    studio.add_task(picture(RED), annotation(7, brushed(square())))
    studio.add_task(picture(RED, 14, 20))
    studio.add_task(picture(BLUE))
    with serving(studio.app()) as studio.url:
        yield Place(studio)


def test_it_is_up(place: Place) -> None:
    assert place.client.get("/health").json()["status"] == place.client.get("/").json()["status"] == "UP"


def test_what_is_drawn_in_the_project_is_predicted(place: Place) -> None:
    version, answer = place.version(), place.predict(2, 3)
    assert (place.mask(2) == square(14, 20)).all() and place.mask(3) is None
    assert [one["score"] for one in answer["results"]] == [0.8, 0.0]
    assert {version, answer["model_version"], *(one["model_version"] for one in answer["results"])} == {version}
    assert place.client.get("/versions").json() == {"versions": [version]}


def test_a_new_annotation_is_learnt(place: Place) -> None:
    before = place.version()
    place.hook("ANNOTATION_CREATED", task=place.studio.tasks[3], annotation=annotation(8, brushed(square(), "other")))
    assert (place.mask(3, "other") == square()).all() and place.mask(2) is not None
    assert place.version() != before


def test_a_changed_annotation_is_learnt(place: Place) -> None:
    place.version()
    changed = annotation(7, brushed(square(), "other"), at="2026-02-01T00:00:00Z")
    place.hook("ANNOTATION_UPDATED", task=place.studio.tasks[1], annotation=changed)
    assert place.mask(2, "thing") is None and (place.mask(2, "other") == square(14, 20)).all()


@pytest.mark.parametrize(
    ("action", "key", "number"), [("ANNOTATIONS_DELETED", "annotations", 7), ("TASKS_DELETED", "tasks", 1)]
)
def test_what_is_deleted_is_forgotten(place: Place, action: str, key: str, number: int) -> None:
    assert place.mask(2) is not None
    place.hook(action, **{key: [{"id": number}]})
    assert place.predict(2)["results"] == [[]]


def test_a_configuration_that_changes_is_followed(place: Place) -> None:
    place.version()
    renamed = CONFIG.replace('name="tag"', 'name="brush"')
    place.post("/webhook", action="PROJECT_UPDATED", project={"id": 1, "label_config": renamed})
    asked = {"tasks": [place.studio.tasks[2]], "project": "1", "label_config": renamed}
    assert place.post("/predict", **asked)["results"][0]["result"][0]["from_name"] == "brush"


@pytest.mark.parametrize("action", ["START_TRAINING", "ANNOTATIONS_CREATED"])
def test_everything_can_be_read_again(place: Place, action: str) -> None:
    before = place.version()
    place.studio.tasks[3]["annotations"] = [annotation(9, brushed(square(), "other"))]
    place.hook(action)
    assert place.mask(3, "other") is not None and place.version() != before
    assert place.client.post("/train", json={"project": "1.17"}).status_code == 201


def test_a_project_is_heard_of_first_by_a_webhook(place: Place) -> None:
    assert place.hook("ANNOTATION_CREATED", task=place.studio.tasks[1], annotation={}) == {"status": "started"}
    assert place.mask(2) is not None
    assert place.hook("PROJECT_DELETED") == {"status": "forgotten"}
    assert place.client.get("/versions").json() == {"versions": []}


def test_what_changes_while_a_project_is_read_is_not_lost(place: Place) -> None:
    project = place.backend.start(CONFIG)

    def slowly() -> Any:
        yield place.studio.tasks[1]
        project.annotated(place.studio.tasks[3], annotation(8, brushed(square(), "other")))
        project.annotations_deleted([7])
        yield place.studio.tasks[2]

    project.learn(slowly())
    assert project.lessons.class_names() == ["other"]


def test_the_annotation_that_counts(place: Place) -> None:
    project = place.backend.start(CONFIG)
    truth = {**annotation(1, brushed(square(), "thing")), "ground_truth": True}
    later = annotation(2, brushed(square(), "other"), at="2026-03-01T00:00:00Z")
    skipped = {**annotation(3, brushed(square(), "other"), at="2026-04-01T00:00:00Z"), "was_cancelled": True}
    project.learn([{**place.studio.tasks[1], "annotations": [truth, later, skipped]}])
    assert project.lessons.class_names() == ["thing"]
    project.learn([{**place.studio.tasks[1], "annotations": [skipped]}])
    assert project.lessons.class_names() == []


def test_a_click_is_answered_with_its_mask(place: Place) -> None:
    on = region("keypointlabels", "thing", (24, 32), x=22 / 32 * 100, y=16 / 24 * 100, width=1)
    [prediction] = place.predict(2, context={"result": [{**on, "is_positive": True}]})["results"]
    assert (drawn(read_canvas(CONFIG), prediction["result"])["thing"].mask == square(14, 20)).all()


def test_a_broken_picture_does_not_take_the_others_away(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    broken = place.studio.add_task(b"no image")
    results = place.predict(broken, 2)["results"]
    assert results[0] == [] and results[1]["result"]
    assert "task 4: picture '/data/upload/1/4.png' cannot be read as an image" in caplog.text


def test_nothing_drawn_yet_is_no_prediction(place: Place) -> None:
    place.studio.tasks[1]["annotations"] = []
    assert place.predict(2)["results"] == [[]]


def test_without_a_token_that_works_webhooks_still_teach(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    other = Place(place.studio, key="wrong")
    other.version()
    assert "project 1 could not be read: Label Studio at" in caplog.text and "refuses the token" in caplog.text
    other.hook("ANNOTATION_CREATED", task=place.studio.tasks[1], annotation=annotation(7, brushed(square())))
    assert other.backend.setup({"project": "1"})["model_version"] != place.backend.start(CONFIG).lessons.version()


@pytest.mark.parametrize(
    ("path", "message", "words"),
    [
        ("/predict", {}, "not of Label Studio's form"),
        ("/predict", {"tasks": None, "project": "1", "label_config": CONFIG}, "not of Label Studio's form"),
        ("/predict", {"tasks": [], "project": "x", "label_config": CONFIG}, "is not a number"),
        ("/setup", {"project": "2.0", "schema": "<View/>"}, "no image with BrushLabels"),
        ("/setup", {"project": None}, "is not a number"),
        ("/webhook", {"action": "ANNOTATION_CREATED"}, "not of Label Studio's form"),
        ("/webhook", {"action": "ANNOTATION_CREATED", "project": 5}, "not of Label Studio's form"),
    ],
)
def test_other_messages_are_one_sentence(place: Place, path: str, message: dict, words: str) -> None:
    response = place.client.post(path, json=message)
    assert response.status_code == 422 and words in response.json()["detail"]
    assert "\n" not in response.json()["detail"]


def test_a_click_that_cannot_be_answered_says_why(place: Place) -> None:
    on = region("keypointlabels", "unknown", (24, 32), x=50, y=50, width=1)
    asked = {"tasks": [place.studio.tasks[2]], "project": "1", "label_config": CONFIG}
    response = place.client.post("/predict", json={**asked, "params": {"context": {"result": [on]}}})
    assert response.status_code == 422 and "'unknown' cannot be answered with a mask" in response.json()["detail"]


def test_a_password_is_asked_for(place: Place) -> None:
    other = Place(place.studio, password="secret")
    assert other.client.get("/health").status_code == 401
    assert other.client.get("/health", auth=("any", "wrong")).status_code == 401
    assert other.client.get("/health", auth=("any", "secret")).status_code == 200
    assert other.client.post("/webhook", json={}).status_code == 401


def test_setup_does_not_wait_for_a_large_project(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsdino.annotate.label_studio.backend.SETUP_SECONDS", 0.05)

    done = threading.Event()

    def slowly(project: int) -> Any:
        done.wait(30)
        yield from ()

    monkeypatch.setattr(place.backend.studio, "tasks", slowly)
    assert place.version().startswith("fsdino-") and not done.is_set()
    done.set()
