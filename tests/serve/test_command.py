"""`fsdino serve`: its options, and a process of its own that is killed, started anew and asked to end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from fsdino.cli import main
from fsdino.predict.engines.choice import EngineChoice
from fsdino.serve.command import is_local, listening, named_models, read_key, serve
from tests.serve.small import files, square, taught
from tests.small import refuses

HERE = Path(__file__).parents[2]


def test_others_are_let_in_with_a_key_only(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.delenv("FSDINO_API_KEY", raising=False)
    assert [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.0.1")] == [True] * 4
    assert not any(is_local(host) for host in ("0.0.0.0", "::", "192.168.0.4", "example.org"))
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "lets others in, which needs a key of 16 characters or more" in capsys.readouterr().err
    (tmp_path / "key").write_text("0123456789abcdef\n")
    assert read_key(None) is None and read_key(str(tmp_path / "key")) == "0123456789abcdef"
    for wrong in ("short", "with space 0123456789", "schlüssel-0123456789"):
        monkeypatch.setenv("FSDINO_API_KEY", wrong)
        refuses("the key is not 16 or more plain characters", serve, host="0.0.0.0")


def test_models_have_names_of_their_own() -> None:
    asked = EngineChoice(runtime="onnx")
    assert named_models("a=runs/x,b=tiny", asked) == {
        "a": EngineChoice("runs/x", "onnx"),
        "b": EngineChoice("tiny", "onnx"),
    }
    assert named_models((), EngineChoice("runs/best/export")) == {"export": EngineChoice("runs/best/export")}
    assert named_models((), EngineChoice()) == {"tiny": EngineChoice("tiny")}
    refuses("'tiny' names no model; write --models name=model", named_models, ["tiny"], asked)
    refuses("two models are called 'a'", named_models, "a=x,a=y", asked)


def test_addresses_that_cannot_be_had(tmp_path) -> None:
    refuses("there is no port 70000", listening, "127.0.0.1", 70000)
    refuses(r"cannot listen on port 0 of \\ud800: ", listening, "\ud800", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refuses("cannot listen on port .* address already in use", serve, port=taken.getsockname()[1])


def started(folder: Path) -> tuple[subprocess.Popen[str], httpx.Client]:
    command = [sys.executable, "-m", "tests.serve.small", str(folder), "0"]
    process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    client = httpx.Client(base_url=line.split()[-1].removesuffix("/docs"), timeout=60)
    until = time.monotonic() + 60
    while True:
        try:
            client.get("/readyz")
            return process, client
        except httpx.ConnectError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_killed_and_started_anew_it_has_its_memories_and_ends_when_asked(tmp_path) -> None:
    process, client = started(tmp_path)
    try:
        memory = taught(client)
        ask = {"files": files(images=square(top=20)[0]), "data": {"memories": [memory]}}
        before = client.post("/v1/segment", **ask).json()
        process.kill()
        process.wait(30)
        process, client = started(tmp_path)
        assert client.post("/v1/segment", **ask).json() == before
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()


def test_the_service_needs_no_torch() -> None:
    code = "import sys, fsdino.serve.command; assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=HERE, check=True, capture_output=True)
