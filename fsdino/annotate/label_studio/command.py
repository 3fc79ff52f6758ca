"""`fsdino label-studio` and `fsdino pre-annotate` as plain functions."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn
from tqdm import tqdm

from fsdino.annotate.label_studio.backend import EXPECTED, Backend, build_app
from fsdino.annotate.label_studio.client import Studio
from fsdino.annotate.label_studio.connection import Connection
from fsdino.annotate.label_studio.project import Project, Task
from fsdino.annotate.lessons import AS_ASKED, Lessons, NothingShown, Teaching
from fsdino.predict.engines.choice import EngineChoice

PASSWORD_VARIABLE = "FSDINO_BACKEND_PASSWORD"
HERE = Connection()
MODEL = EngineChoice()


def label_studio(
    engine: EngineChoice = MODEL,
    teaching: Teaching = AS_ASKED,
    connection: Connection = HERE,
    host: str = "127.0.0.1",
    port: int = 9090,
    password: str | None = None,
    split_instances: bool = False,
) -> int:
    """Serve masks to Label Studio: it learns from what is drawn in a project and predicts the rest.

    Args:
        engine: the model, and what runs it.
        teaching: what is known before anything is drawn.
        connection: the Label Studio.
        host: address to listen on; anything but 127.0.0.1 lets others on the network in.
        port: port to listen on.
        password: what Label Studio has to give, with any name; of the variable FSDINO_BACKEND_PASSWORD when left out,
            and none when that is empty.
        split_instances: one brush region per connected part; polygons and rectangles are always one per part.

    Returns:
        Exit code, after Ctrl+C.
    """
    # What can be wrong is looked at before the model is loaded, which is what takes time.
    studio, pictures = connection.open()
    support, listening = teaching.read(), _listen(host, port)
    secret = password or os.environ.get(PASSWORD_VARIABLE) or None
    with listening:
        runs = engine.open()

        def start(config: str) -> Project:
            return Project(config, Lessons(runs, support, teaching), pictures, split_instances)

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        where = f"http://{host}:{listening.getsockname()[1]}"
        print(f"masks for Label Studio at {where} (Ctrl+C stops it); add it in a project's settings, Model", flush=True)
        if secret is None and host not in ("127.0.0.1", "localhost", "::1"):
            print(f"Others on the network can reach it at {host}: it has no password.", flush=True)
        app = build_app(Backend(studio, start), secret)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ValueError(f"there is no port {port}; choose one from 1 to 65535.")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"cannot listen on port {port} of {host}: {reason}; choose another --port.") from error


def pre_annotate(
    project: int,
    engine: EngineChoice = MODEL,
    teaching: Teaching = AS_ASKED,
    connection: Connection = HERE,
    split_instances: bool = False,
) -> int:
    """Predict all tasks of a Label Studio project that nobody has annotated; a second run continues the first.

    Args:
        project: number of the project, as in its address.
        engine: the model, and what runs it.
        teaching: what is known before anything is drawn.
        connection: the Label Studio.
        split_instances: one brush region per connected part; polygons and rectangles are always one per part.

    Returns:
        Exit code: 0, or 1 when pictures could not be read (they are listed on standard error).
    """
    studio, pictures = connection.open()
    support = teaching.read()
    settings = studio.project(project)
    work = Project(settings["label_config"], Lessons(engine.open(), support, teaching), pictures, split_instances)
    tasks: list[Task] = []
    work.learn(_noted(studio.tasks(project), tasks))
    todo = [task for task in tasks if not task["annotated"]]
    version, failed = work.lessons.version(), {}
    with tqdm(total=len(todo), unit="picture", desc="pre-annotate") as bar:
        for task in todo:
            # Predictions are the record of what is done: each names the model and all that it was shown.
            if version not in task["predictions"].values():
                try:
                    prediction = work.predict(task)
                except NothingShown:
                    raise
                except EXPECTED as error:
                    failed[task["id"]] = str(error)
                else:
                    _exchange(studio, task, prediction)
            bar.update()
    for note in sorted(set(work.lessons.notes.values())):
        print(f"not learnt from: {note}", file=sys.stderr)
    for number, reason in failed.items():
        print(f"task {number}: {reason}", file=sys.stderr)
    done, learnt = len(todo) - len(failed), work.lessons.count
    print(f"{done} of {len(todo)} tasks have a prediction of {version}, learnt from {learnt} annotated ones")
    return 1 if failed else 0


def _noted(tasks: Iterator[Task], noted: list[Task]) -> Iterator[Task]:
    """Tasks as they come; of each only what is needed later is kept."""
    for task in tasks:
        ours = {one["id"]: str(one.get("model_version")) for one in task.get("predictions") or ()}
        annotated = any(not one.get("was_cancelled") for one in task.get("annotations") or ())
        noted.append({"id": task["id"], "data": task["data"], "annotated": annotated, "predictions": ours})
        yield task


def _exchange(studio: Studio, task: Task, prediction: dict[str, Any]) -> None:
    """Add a prediction, and only then take away those that it replaces."""
    studio.add_prediction(task["id"], prediction)
    for number, version in task["predictions"].items():
        if version.startswith("fsdino-"):
            studio.delete_prediction(number)
