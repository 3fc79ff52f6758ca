"""Queues, time and stopping: what happens when more is asked than can be done."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient

from fsdino.serve.app import create_app
from fsdino.serve.limits import Limits
from fsdino.serve.service import Service
from fsdino.serve.store import MemoryStore
from fsdino.serve.worker import Busy, Worker
from tests.serve.small import LIMITS, Colour, files, square, taught
from tests.small import refuses


class Slow(Colour):
    """Finds nothing before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.begun = threading.Event(), threading.Event()

    def find(self, joined, image):
        self.begun.set()
        assert self.may.wait(60)
        yield from super().find(joined, image)


@pytest.fixture
def slow(tmp_path):
    engine = Slow()
    service = Service({"slow": engine}, MemoryStore(tmp_path, 4), replace(LIMITS, max_waiting=1, max_seconds=2))
    with TestClient(create_app(service)) as client:
        yield client, engine, service
        engine.may.set()
        service.close()


def test_a_full_queue_says_when_to_come_again_and_nothing_is_lost(slow) -> None:
    client, engine, service = slow
    memory, image = taught(client), square()[0]

    def ask() -> int:
        return client.post("/v1/segment", files=files(images=image), data={"memories": [memory]}).status_code

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(ask)]
        assert engine.begun.wait(30)
        running.append(pool.submit(ask))
        while service.runners["slow"].worker.waiting < 1:
            time.sleep(0.01)
        refused = client.post("/v1/segment", files=files(images=image), data={"memories": [memory]})
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["detail"].startswith("1 requests wait for model slow; come again in ")
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
        engine.may.set()
        assert [future.result() for future in running] == [200, 200]
    assert client.get("/readyz").status_code == 200


def test_a_request_that_takes_too_long_is_told_so_and_gives_way(slow) -> None:
    client, engine, service = slow
    memory, image = taught(client), square()[0]
    answer = client.post("/v1/segment", files=files(images=[image] * 2), data={"memories": [memory]})
    assert answer.status_code == 504 and answer.json()["detail"].startswith("the request took longer than 2 s")
    engine.may.set()
    after = client.post("/v1/segment", files=files(images=image), data={"memories": [memory]})
    assert after.status_code == 200, "the thread is free again"
    assert 'status="504"} 1.0' in client.get("/metrics").text


def test_a_failure_nobody_expected_is_a_500_and_the_next_request_works(tmp_path) -> None:
    class Broken(Colour):
        def find(self, joined, image):
            if image.shape[0] != 40:
                raise RuntimeError("secret")
            yield from super().find(joined, image)

    service = Service({"broken": Broken()}, MemoryStore(tmp_path, 4), LIMITS)
    client = TestClient(create_app(service), raise_server_exceptions=False)
    memory = taught(client)
    wrong = client.post("/v1/segment", files=files(images=square(side=60)[0]), data={"memories": [memory]})
    assert wrong.status_code == 500 and "secret" not in wrong.text
    assert client.post("/v1/segment", files=files(images=square()[0]), data={"memories": [memory]}).status_code == 200
    service.close()


def test_what_a_colour_engine_finds_is_the_square(tmp_path) -> None:
    service = Service({"colour": Colour()}, MemoryStore(tmp_path, 4), LIMITS)
    client = TestClient(create_app(service))
    ask = {"memories": [taught(client)], "threshold": 0.9}
    (found,) = client.post("/v1/segment", files=files(images=square(top=22)[0]), data=ask).json()["images"][0]["found"]
    assert found["bbox"] == [5, 22, 15, 12] and found["area"] == 180 and found["present"]
    service.close()


def test_a_worker_runs_in_turn_bounds_its_queue_and_ends() -> None:
    worker, may, order = Worker("test", 2), threading.Event(), []
    first = worker.submit(may.wait)
    second, third = (worker.submit(lambda i=i: order.append(i)) for i in range(2))
    with pytest.raises(Busy):
        worker.submit(print)
    assert second.cancel() and worker.waiting == 1
    fourth = worker.submit(lambda: order.append(3))
    may.set()
    assert first.result(10) and fourth.result(10) is None and third.done() and order == [1, 3]
    worker.submit(may.wait).result(10)
    worker.close()
    with pytest.raises(RuntimeError):
        worker.submit(print)


def test_limits_are_positive_and_shown(slow) -> None:
    refuses("max_images: expected greater than or equal to 1, got 0", Limits, max_images=0)
    refuses("max_seconds: expected less than or equal to 86400", Limits, max_seconds=10**12)
    assert slow[0].get("/v1/models").json()["limits"]["max_waiting"] == 1


def test_memories_all_or_none(tmp_path, monkeypatch) -> None:
    service = Service({"colour": Colour()}, MemoryStore(tmp_path, 4), LIMITS)
    client = TestClient(create_app(service), raise_server_exceptions=False)
    written = []

    def full_disk(memory, path):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path.write_bytes(b"x"))
        return path

    monkeypatch.setattr("fsdino.serve.store.save_memory", full_disk)
    said = '[{"class_name": "a", "mask": 0}, {"class_name": "b", "image": 0, "mask": 0}]'
    image, mask = square()
    answer = client.post("/v1/memories", files=files(images=image, masks=mask), data={"references": said})
    assert answer.status_code == 500 and not list(tmp_path.glob("*.fsmem"))
    assert np.size(service.store.records()) == 0
    service.close()
