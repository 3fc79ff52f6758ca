"""`fsdino serve`: the HTTP service on this machine, or behind a key for others."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from fsdino.predict.engines import Engine
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.finish import AS_MEASURED, Finish
from fsdino.predict.formats import listed
from fsdino.serve.limits import Limits

try:
    import uvicorn

    from fsdino.serve.app import create_app
    from fsdino.serve.service import Service
    from fsdino.serve.store import MemoryStore
except ImportError as missing:
    raise ImportError(f"the service needs {missing.name}; install it with `pip install fsdino[serve]`.") from missing

KEY_VARIABLE = "FSDINO_API_KEY"
MIN_KEY = 16  # characters
STOP_SECONDS = 4  # that requests have to end; with what else there is to do, the process is gone within five


def serve(
    engine: EngineChoice = EngineChoice(),  # noqa: B008 - frozen
    limits: Limits = Limits(),  # noqa: B008
    finish: Finish = AS_MEASURED,
    models: Sequence[str] | str = (),
    folder: str = "runs/memories",
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: str | None = None,
    quiet: bool = False,
) -> None:
    """Serve models over HTTP: references in, memories kept, images in, masks out; /docs shows how.

    At Ctrl+C or SIGTERM, requests that run are finished first, for at most four seconds.

    Args:
        engine: the model, and what runs it.
        limits: of requests.
        finish: what becomes of an answer, where a request does not say.
        models: several models as name=model, comma-separated, in place of --model; the first is the default.
        folder: where memories are kept, one .fsmem each.
        host: address to listen on; any but this machine's own needs a key.
        port: port to listen on; 0 takes a free one.
        key_file: file with the key that requests must carry; without it the variable FSDINO_API_KEY.
        quiet: no line for each request on standard error.
    """
    key = read_key(key_file)
    if key is None and not is_local(host):
        raise ValueError(
            f"host {host} lets others in, which needs a key of {MIN_KEY} characters or more; set {KEY_VARIABLE} or "
            "--key-file, or leave --host out."
        )
    chosen = named_models(models, engine)
    # What can be wrong is looked at before the models are loaded, which takes time.
    with listening(host, port) as door:
        store = MemoryStore(folder, limits.max_memories)
        opened: dict[str, Engine] = {name: one.open() for name, one in chosen.items()}
        run(Service(opened, store, limits, finish), door, host, key, quiet)


def run(service: Service, door: socket.socket, host: str, key: str | None, quiet: bool) -> NoReturn:
    """Answer at an open socket until the process is asked to end, and end it."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("fsdino.serve").setLevel(logging.WARNING if quiet else logging.INFO)
    # Where a key is asked for, pages of other sites have none, and the service may be known by any name.
    hosts = ["*"] if key is not None else ["localhost", "127.0.0.1", "[::1]", "::1", host]
    app = create_app(service, key, hosts)
    limit = service.limits.max_connections
    config = uvicorn.Config(
        app, log_config=None, access_log=False, limit_concurrency=limit, timeout_graceful_shutdown=STOP_SECONDS
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn finishes its requests at these signals and then raises them again; by then all is done.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    shown = f"[{host}]" if ":" in host else host
    print(f"FS-DINO serves {', '.join(service.runners)} at http://{shown}:{door.getsockname()[1]}/docs", flush=True)
    server.run(sockets=[door])
    service.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is done and on the disk. Python would take seconds to tear down what torch has imported, and could not do it
    # under a call of the network that still runs: such a call cannot be interrupted.
    os._exit(0)


def read_key(key_file: str | None) -> str | None:
    """The key of a file or the environment; None where neither is given."""
    key = os.environ.get(KEY_VARIABLE) if key_file is None else Path(key_file).read_text(encoding="utf-8").strip()
    if key is not None and (len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError(
            f"the key is not {MIN_KEY} or more plain characters without spaces; make one with `openssl rand -hex 24`."
        )
    return key


def is_local(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def named_models(models: Sequence[str] | str, engine: EngineChoice) -> dict[str, EngineChoice]:
    """Names to what is opened under them; a ValueError if a text is not name=model, or a name comes twice."""
    chosen: dict[str, EngineChoice] = {}
    engine = engine if listed(models) else engine.settled()
    for text in listed(models) or [f"{Path(engine.model).name}={engine.model}"]:
        name, _, model = text.partition("=")
        if not name or not model:
            raise ValueError(f"{text!r} names no model; write --models name=model,other=model.")
        if name in chosen:
            raise ValueError(f"two models are called {name!r}; give each a name of its own.")
        chosen[name] = replace(engine, model=model)
    return chosen


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address, which only a running server listens to."""
    if not 0 <= port < 2**16:
        raise ValueError(f"there is no port {port}; choose one from 1 to 65535, or 0 for a free one.")
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except (OSError, TypeError) as error:  # a TypeError, where it is no text of a name
        door.close()
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        text = f"cannot listen on port {port} of {repr(host)[1:-1]}: {reason}; choose another --port or --host."
        raise ValueError(text) from error
    return door
