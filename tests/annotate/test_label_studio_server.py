"""The whole way with a real Label Studio: it runs, its own SDK draws, connects and exports, and its masks are compared.

Off unless FSDINO_LABEL_STUDIO is the path of the program `label-studio` in an environment of its own, as made by
`python -m venv ls && ls/bin/pip install label-studio`. Takes a few minutes, most of them to make its database.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.annotate import world

PROGRAM = os.environ.get("FSDINO_LABEL_STUDIO", "")
pytestmark = pytest.mark.skipif(
    not PROGRAM, reason="no Label Studio: set FSDINO_LABEL_STUDIO to the path of its program, label-studio"
)
REPOSITORY = Path(__file__).parents[2]
SCENES, DRAWN = 8, 3
# Label Studio calls no server on its own machine or network unless it is told that it may.
MAY_CALL_HERE = {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen, seconds: int, log: Path, **options: Any) -> None:
    for _ in range(2 * seconds):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if httpx.get(url, timeout=5, **options).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer: {log.read_text()[-2000:]}")


class Place:
    """A running Label Studio with a project of drawn scenes, and the backend for it."""

    def __init__(self, folder: Path, url: str, token: str) -> None:
        self.folder, self.url, self.token = folder, url, token
        size = {"original_width": 112, "original_height": 112}
        (folder / "size.json").write_text(json.dumps(size))
        for k, (image, mask) in enumerate(world.pictures(SCENES)):
            Image.fromarray(image).save(folder / f"p{k}.png")
            np.save(folder / f"p{k}.npy", mask)
        made = self.person("create", DRAWN)
        self.project, self.tasks = made["project"], made["tasks"]

    def person(self, action: str, *arguments: Any) -> Any:
        """What a person does, through the SDK, in Label Studio's own environment."""
        script = str(REPOSITORY / "tests/annotate/sdk_annotator.py")
        command = [str(Path(PROGRAM).parent / "python"), script, self.url, self.token, action, str(self.folder)]
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    def scores(self, kind: str) -> dict[str, float]:
        """IoU of the masks that the SDK has read, by picture; 0 where there is none."""
        found = {}
        for name, task in self.tasks.items():
            path = self.folder / f"{kind}-{task}-thing.npy"
            found[name] = world.iou(np.load(path), np.load(self.folder / f"{name}.npy")) if path.exists() else 0.0
        return found

    def fsdino(self, *arguments: Any) -> list[str]:
        return [sys.executable, "-m", "fsdino.cli", *map(str, arguments), "--url", self.url]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "LABEL_STUDIO_API_KEY": self.token, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, port, token = tmp_path_factory.mktemp("studio"), free_port(), secrets.token_hex(20)
    log = folder / "label-studio.log"
    plain = {"LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"), "COLLECT_ANALYTICS": "false", "SENTRY_RATE": "0"}
    command = [PROGRAM, "start", "--no-browser", "--port", str(port), "--enable-legacy-api-token"]
    command += ["--username", "person@example.org", "--password", secrets.token_hex(8), "--user-token", token]
    (folder / "pictures").mkdir()
    with log.open("w") as output:
        environment = {**os.environ, **MAY_CALL_HERE, **plain}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=folder)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, 400, log)
            yield Place(folder / "pictures", f"http://127.0.0.1:{port}", token)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def backend(place: Place) -> Iterator[str]:
    """The address of the backend, with the password in it."""
    port, log = free_port(), place.folder / "backend.log"
    with log.open("w") as output:
        environment = {**place.environment, "FSDINO_BACKEND_PASSWORD": "secret"}
        command = place.fsdino("label-studio", "--port", port)
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, 120, log, auth=("x", "secret"))
            yield f"http://x:secret@127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def test_the_backend_answers_with_masks_and_learns(place: Place, backend: str) -> None:
    connected = place.person("connect", place.project, backend)
    assert connected["state"] == "CO"
    place.person("retrieve", place.project)
    versions = place.person("predictions", place.project)
    assert all(len(given) == 1 for given in versions.values()), versions
    scores = place.scores("found")
    print("predicted by the backend:", scores)
    assert np.median(list(scores.values())[DRAWN:]) > 0.6
    before = httpx.get(f"{backend}/versions").json()
    place.person("draw", place.tasks["p3"], "p3")
    assert httpx.get(f"{backend}/versions").json() != before, "the webhook of the new annotation was not heard"
    # A click in the middle of the object of a picture that nobody has drawn.
    rows, columns = np.nonzero(np.load(place.folder / "p7.npy"))
    nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    spot = [(columns[nearest] + 0.5) / 1.12, (rows[nearest] + 0.5) / 1.12]
    assert place.person("click", connected["id"], place.tasks["p7"], *spot) == []
    assert place.scores("clicked")["p7"] > 0.3


def test_a_whole_project_is_predicted_and_exported(place: Place) -> None:
    command = place.fsdino("pre-annotate", place.project)
    for _ in range(2):
        done = subprocess.run(command, env=place.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        print(done.stdout)
    drawn = DRAWN + 1
    versions = place.person("predictions", place.project)
    ours = {task: given[-1] for task, given in versions.items() if int(task) > place.tasks[f"p{drawn - 1}"]}
    assert len(set(ours.values())) == 1 and all(len(versions[task]) == 1 for task in ours), versions
    labels = place.person("accept", place.project)
    scores = place.scores("exported")
    print("exported:", scores)
    assert list(scores.values())[:drawn] == [1.0] * drawn
    assert np.median(list(scores.values())[drawn:]) > 0.6
    assert all(given in ([], ["thing"]) for given in labels.values())
    assert sum(given == ["thing"] for given in labels.values()) >= SCENES - 1
