"""A service of two small models, and its client with the key."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small import small_segmenter

pytest.importorskip("fastapi", reason="the service needs fastapi")
pytest.importorskip("httpx", reason="its tests need httpx")
from fastapi.testclient import TestClient

from fsdino.serve.app import create_app
from fsdino.serve.service import Service
from fsdino.serve.store import MemoryStore
from tests.serve.small import KEY, LIMITS


@pytest.fixture(scope="session")
def engines() -> dict:
    return {"small": small_segmenter(promptable=True), "other": small_segmenter(seed=1)}


@pytest.fixture
def service(engines: dict, tmp_path: Path) -> Iterator[Service]:
    made = Service(engines, MemoryStore(tmp_path / "memories", LIMITS.max_memories), LIMITS)
    yield made
    made.close()


@pytest.fixture
def client(service: Service) -> TestClient:
    found = TestClient(create_app(service, KEY), raise_server_exceptions=False)
    found.headers["Authorization"] = f"Bearer {KEY}"
    return found
