"""The routes: what is remembered, found, kept and deleted, and that answers are the model's own."""

import io
import json
import zipfile

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as rle_tools

from fsdino.base.result import resolve
from fsdino.predict.memory_file import load_memory
from fsdino.serve.app import create_app
from fsdino.serve.gate import OPEN_PATHS
from fsdino.serve.service import Service
from fsdino.serve.store import MemoryStore
from tests.serve.small import LIMITS, files, square, taught


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def asked(client, ids, images=None, **form):
    return client.post("/v1/segment", files=files(images=images or square(top=20)[0]), data={"memories": ids, **form})


def test_answers_are_those_of_the_model_on_the_saved_memory(client, service, engines) -> None:
    memory, image = taught(client), square(top=20)[0]
    answer = asked(client, [memory], threshold=0.3).json()
    engine = engines["small"]
    joined = engine.join([engine.unpack(load_memory(service.store.path(memory)).arrays)])
    expected = resolve(zip("a", engine.find(joined, opened(image))), (40, 50), 0.3)
    (found,) = answer["images"][0]["found"]
    assert answer["model"] == "small" and answer["threshold"] == 0.3 and answer["images"][0]["height"] == 40
    assert np.array_equal(rle_tools.decode(found["segmentation"]), expected.labels)
    assert found["score"] == round(expected.scores["a"], 4) and found["presence"] == expected.presences["a"]


def test_every_form_shows_the_same_masks(client) -> None:
    ids = [taught(client), taught(client, "other square", references=json.dumps([{"box": [5, 20, 20, 32], "mask": 0}]))]
    images = [square(top=20)[0], square(side=60, top=30)[0]]
    found = asked(client, ids, images).json()["images"]
    archive = zipfile.ZipFile(io.BytesIO(asked(client, ids, images, output="labels").content))
    assert archive.namelist() == ["0001.png", "0002.png", "answer.json"]
    assert json.loads(archive.read("answer.json"))["images"] == found
    for one, name in zip(found, archive.namelist()):
        labels = opened(archive.read(name))
        masks = [rle_tools.decode(part["segmentation"]) for part in one["found"]]
        assert [part["category_id"] for part in one["found"]] == [1, 2]
        assert labels.shape == (one["height"], one["width"])
        assert all(np.array_equal(labels == k, mask) for k, mask in enumerate(masks, start=1))
    single = asked(client, ids, images[0], output="mask")
    assert single.headers["content-type"] == "image/png" and single.headers["fsdino-scores"].count(",") == 1
    assert np.array_equal(opened(single.content) == 255, opened(archive.read("0001.png")) > 0)
    drawn = asked(client, ids, images[0], output="overlay")
    assert drawn.headers["content-type"] == "image/jpeg" and opened(drawn.content).ndim == 3


def test_several_classes_hints_and_negatives_in_one_request(client, engines) -> None:
    said = [
        {"class_name": "red", "mask": 0},
        {"class_name": "red", "image": 1, "points": [[10, 25]], "labels": [1], "negative": True},
        {"class_name": "blue", "image": 1, "scribble": [[6, 22], [15, 28]]},
    ]
    images = [square()[0], square(top=20, colour=(10, 10, 250))[0]]
    sent = files(images=images, masks=square()[1])
    answer = client.post("/v1/memories", files=sent, data={"references": json.dumps(said)})
    assert answer.status_code == 201, answer.text
    made = answer.json()["memories"]
    assert [one["class_name"] for one in made] == ["red", "blue"] and made[0]["models"] == ["small"]
    assert made[0]["fingerprint"] == engines["small"].fingerprint()
    assert asked(client, [one["id"] for one in made]).status_code == 200


def test_a_higher_threshold_leaves_less(client) -> None:
    memory = taught(client)
    areas = [asked(client, [memory], threshold=t).json()["images"][0]["found"][0]["area"] for t in (0.01, 0.5, 0.99)]
    assert areas[0] >= areas[1] >= areas[2] and areas[0] > areas[2]
    assert asked(client, [memory], min_score=1).json()["images"][0]["found"][0]["score"] == 0


def test_memories_are_listed_downloaded_uploaded_and_deleted(client) -> None:
    first = taught(client, "  größer ✓ ")
    file = client.get(f"/v1/memories/{first}/file").content
    second = client.post("/v1/memories/upload", files={"file": ("../x.fsmem", file)}).json()["id"]
    shown = client.get("/v1/memories").json()["memories"]
    assert [one["id"] for one in shown] == [first, second] and {one["class_name"] for one in shown} == {"größer ✓"}
    assert client.get(f"/v1/memories/{second}/file").content == file, "byte by byte"
    before = asked(client, [first]).json()["images"][0]["found"][0]["segmentation"]
    assert asked(client, [second]).json()["images"][0]["found"][0]["segmentation"] == before
    assert client.delete(f"/v1/memories/{first}").status_code == 204
    assert client.get(f"/v1/memories/{first}").status_code == asked(client, [first]).status_code == 404
    assert client.get(f"/v1/memories/{second}").json() == shown[1]


def test_memories_belong_to_the_model_that_made_them(client) -> None:
    mine, others = taught(client), taught(client, model="other")
    assert asked(client, [others]).json()["model"] == "other"
    answer = asked(client, [mine], model="other")
    assert answer.status_code == 422 and answer.json()["detail"].endswith("was made by small, not by other; ask small.")
    assert asked(client, [mine, others]).status_code == 422
    assert [one["name"] for one in client.get("/v1/models").json()["models"]] == ["small", "other"]


def test_a_service_started_anew_finds_its_memories(client, service, engines, tmp_path) -> None:
    kept, broken = taught(client), taught(client)
    before = asked(client, [kept]).json()
    path = service.store.path(broken)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert asked(client, [broken]).json()["detail"].startswith(f"memory {broken} is damaged")
    service.close()
    (service.store.folder / f".{kept}.fsmem.part").write_bytes(b"half")
    again = Service(engines, MemoryStore(service.store.folder, 4), LIMITS)
    anew = TestClient(create_app(again))
    assert [one["id"] for one in anew.get("/v1/memories").json()["memories"]] == [kept] and path.exists()
    assert asked(anew, [kept]).json() == before
    assert not list(service.store.folder.glob(".*part")), "what a killed process left is removed"
    with pytest.raises(ValueError, match="another service keeps its memories in"):
        MemoryStore(service.store.folder, 4)
    again.close()


def test_few_memories_are_held_ready(client, service) -> None:
    ids = [taught(client) for _ in range(3)]
    first = asked(client, ids[:1]).json()
    for memory in ids:
        asked(client, [memory])
    assert service.runners["small"].loaded == LIMITS.max_loaded == 1
    assert asked(client, ids[:1]).json() == first
    client.delete(f"/v1/memories/{ids[0]}")
    assert service.runners["small"].loaded == 0


def test_the_key_opens_all_but_health_and_the_page(client, service) -> None:
    for key in ("", "Bearer", "Bearer wrong-key-of-tests", "Basic a-key-of-tests-only"):
        answer = client.get("/v1/memories", headers={"Authorization": key})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    stranger = TestClient(client.app)
    assert all(stranger.get(path).status_code == 200 for path in OPEN_PATHS)
    assert stranger.get("/metrics").status_code == 401 and client.get("/metrics").status_code == 200


def test_a_service_without_a_key_is_called_by_its_own_names_only(service) -> None:
    app = create_app(service, None, ["localhost"])
    assert TestClient(app, base_url="http://localhost").get("/v1/memories").status_code == 200
    assert TestClient(app, base_url="http://elsewhere.example").get("/v1/memories").status_code == 400


def test_pages_of_other_sites_need_the_key(client, service) -> None:
    alone = TestClient(create_app(service, None, ["localhost"]), base_url="http://localhost:8000")
    codes = {"http://localhost:8000": 200, "https://elsewhere.example": 403, "http://localhost:9000": 403, "null": 403}
    for origin, code in codes.items():
        assert alone.get("/v1/memories", headers={"Origin": origin}).status_code == code
        assert client.get("/v1/memories", headers={"Origin": origin}).status_code == 200


def test_requests_are_counted_by_route_and_logged_without_contents(client, caplog) -> None:
    caplog.set_level("INFO", "fsdino.serve.access")
    memory = taught(client, "secret name")
    asked(client, [memory])
    client.get("/v1/unknown%0Aline")
    text = client.get("/metrics").text
    assert 'fsdino_requests_total{method="POST",route="/v1/segment",status="200"} 1.0' in text
    assert 'route="none",status="404"} 1.0' in text and 'fsdino_images_total{model="small"} 1.0' in text
    assert 'fsdino_waiting{model="small"} 0.0' in text and "fsdino_memories 1.0" in text
    lines = [record.getMessage() for record in caplog.records]
    assert any("POST '/v1/segment' 200" in line for line in lines)
    assert not any("\n" in line or "secret" in line or "images 0" in line for line in lines)


def test_the_page_describes_and_exemplifies(client) -> None:
    schema = client.get("/openapi.json").json()
    operations = [one for path in schema["paths"].values() for one in path.values()]
    assert len(operations) == 11 and all(one["summary"] and one["description"] for one in operations)
    form = schema["components"]["schemas"]["Body_segment_v1_segment_post"]["properties"]
    assert form["memories"]["examples"] and all("description" in field for field in form.values())
    assert client.get("/docs").status_code == 200
