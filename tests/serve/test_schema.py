"""Random requests made from the service's own description: no 500, and answers that it describes."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("schemathesis", reason="random requests need schemathesis")
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings, strategies
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fsdino.serve.app import create_app
from fsdino.serve.service import Service
from fsdino.serve.store import MemoryStore
from tests.serve.small import KEY, LIMITS, Colour, png, square, taught

IMAGE, MASK = square()
IMAGES = [IMAGE, MASK, png(np.zeros((1, 1), np.uint8)), b"", b"text"]
schemathesis.openapi.format("binary", strategies.sampled_from(IMAGES))
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
FEW = {"max_examples": 8, "deadline": None, "derandomize": True, "database": None}


RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


@pytest.mark.parametrize("mode", [RIGHT, WRONG])
def test_random_requests(mode: schemathesis.GenerationMode, tmp_path: Path) -> None:
    service = Service({"colour": Colour()}, MemoryStore(tmp_path, 1000), LIMITS)
    client = TestClient(app := create_app(service, KEY), headers={"Authorization": f"Bearer {KEY}"})
    answered: dict[str, set[int]] = {}

    def ask_all(operation: schemathesis.APIOperation) -> None:
        @settings(**FEW, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode), known=strategies.booleans())
        def ask(case: schemathesis.Case, known: bool) -> None:
            # Random numbers name no memory, and few random forms can be used: half of the right ones get real parts.
            if known and mode is RIGHT and case.path_parameters:
                case.path_parameters["memory_id"] = taught(client)
            if known and mode is RIGHT and isinstance(case.body, dict):
                real = {"memories": [taught(client)], "images": [IMAGE], "masks": [MASK], "class_name": "a"}
                asked = case.body if "memories" in case.body else {"images": [], "masks": [], "class_name": ""}
                case.body = {name: real.get(name, value) for name, value in asked.items() if name != "model"}
            response = case.call_and_validate(headers=dict(client.headers), checks=CHECKS)
            answered.setdefault(operation.label, set()).add(response.status_code)

        ask()

    for result in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        operation = result.ok()
        # What takes nothing cannot be asked wrongly.
        if mode is RIGHT or operation.body or operation.path_parameters:
            ask_all(operation)
    service.close()
    if mode is RIGHT:
        refused = {name for name, codes in answered.items() if min(codes) >= 300}
        assert len(answered) == 11 and refused == {"POST /v1/memories/upload"}, answered
    else:
        codes = {code for some in answered.values() for code in some}
        assert len(answered) == 6 and codes <= {400, 401, 404, 422}, answered
