"""The server that Label Studio asks for masks: its protocol for machine learning backends, in FastAPI.

The official package that has a base class for such servers, label-studio-ml, is on PyPI in a version of 2022 alone that
asks for Flask 1 and Werkzeug 2.0; the protocol has seven addresses. So they are answered here.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from fsdino.annotate.label_studio.client import Studio
from fsdino.annotate.label_studio.project import Project

logger = logging.getLogger(__name__)
EXPECTED = (ValueError, OSError)
SETUP_SECONDS = 2.0  # Label Studio waits three for an answer to /setup, and one for one to /health or a webhook
LEARN_SECONDS = 90.0  # and a hundred for one to /predict
MALFORMED = (KeyError, TypeError, AttributeError)
Message = Mapping[str, Any]
Sent = Annotated[dict[str, Any], Body()]
BASIC = HTTPBasic()


class Backend:
    """Answers for any number of projects; each is read when it is first heard of.

    Args:
        studio: where annotations of a project are read from.
        start: makes what remembers a project, of its labelling configuration.
    """

    def __init__(self, studio: Studio, start: Callable[[str], Project]) -> None:
        self.studio, self.start = studio, start
        self._projects: dict[int, tuple[Project, threading.Thread]] = {}
        self._lock = threading.RLock()

    def setup(self, message: Message) -> dict[str, str]:
        """Label Studio has connected a project, or asks which version of the model answers now."""
        project = self._project(_number(message["project"]), str(message.get("schema") or ""), SETUP_SECONDS)
        return {"model_version": project.lessons.version()}

    def predict(self, message: Message) -> dict[str, Any]:
        """Predictions for tasks, or the answer to a click in the editor."""
        number, config = _number(message["project"]), str(message.get("label_config") or "")
        project = self._project(number, config, LEARN_SECONDS)
        context = (message.get("params") or {}).get("context") or {}
        tasks = list(message["tasks"])
        if regions := context.get("result"):
            # Somebody is waiting for this one, and is shown what went wrong.
            results: list[Any] = [project.draw(tasks[0], regions)]
        else:
            results = [self._predicted(project, task) for task in tasks]
        return {"results": results, "model_version": project.lessons.version()}

    def webhook(self, message: Message) -> dict[str, str]:
        """Something was drawn, changed or deleted."""
        action = str(message["action"])
        with self._lock:
            number = int(message["project"]["id"])
            known = number in self._projects
            config = str(message["project"].get("label_config") or "")
            if action == "PROJECT_DELETED":
                self._projects.pop(number, None)
                return {"status": "forgotten"}
            # One that is new is read as a whole, this change included; so is one where many things changed at once.
            if known and action in ("START_TRAINING", "ANNOTATIONS_CREATED"):
                project = self._projects[number][0]
                self._projects[number] = project, self._learning(number, project)
            elif known:
                self._follow(self._projects[number][0], action, message)
                self._projects[number][0].configure(config or self._projects[number][0].label_config)
            elif config:
                self._project(number, config, 0.0)
        return {"status": "learnt" if known else "started"}

    def versions(self) -> list[str]:
        """Versions of the model that answer now, one a project."""
        with self._lock:
            return sorted(project.lessons.version() for project, _ in self._projects.values())

    def _follow(self, project: Project, action: str, message: Message) -> None:
        if action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED"):
            project.annotated(message["task"], message["annotation"])
        elif action == "ANNOTATIONS_DELETED":
            project.annotations_deleted(int(one["id"]) for one in message["annotations"])
        elif action == "TASKS_DELETED":
            project.tasks_deleted(int(one["id"]) for one in message["tasks"])

    def _predicted(self, project: Project, task: Message) -> Any:
        try:
            return project.predict(task)
        # No prediction for this task, and those of the others reach Label Studio.
        except EXPECTED as error:
            logger.warning("task %s: %s", task.get("id"), error)
            return []

    def _project(self, number: int, config: str, seconds: float) -> Project:
        """A project, after it was read or after so many seconds."""
        with self._lock:
            if number not in self._projects:
                project = self.start(config)
                self._projects[number] = project, self._learning(number, project)
            project, reading = self._projects[number]
            if config:
                project.configure(config)
        reading.join(seconds)
        return project

    def _learning(self, number: int, project: Project) -> threading.Thread:
        """Read a project's annotations in a thread of its own: a large project takes longer than is waited."""
        thread = threading.Thread(target=self._learn, args=(number, project), name=f"project-{number}", daemon=True)
        thread.start()
        return thread

    def _learn(self, number: int, project: Project) -> None:
        try:
            project.learn(self.studio.tasks(number))
            logger.info("project %d: %d annotated tasks", number, project.lessons.count)
        # Whatever is told by webhooks is still used; a button in Label Studio starts the reading again.
        except EXPECTED as error:
            logger.error("project %d could not be read: %s", number, error)


def build_app(backend: Backend, password: str | None = None) -> FastAPI:
    """The server's addresses.

    Args:
        password: what callers have to give, with any name (HTTP basic authentication); None: nothing.
    """
    app = FastAPI(title="FS-DINO for Label Studio", docs_url=None, redoc_url=None, openapi_url=None)
    allowed = Depends(_asking_for(password))

    @app.exception_handler(ValueError)
    @app.exception_handler(OSError)
    def refused(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.get("/", dependencies=[allowed])
    @app.get("/health", dependencies=[allowed])
    def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "FS-DINO"}

    @app.post("/setup", dependencies=[allowed])
    def setup(message: Sent) -> dict[str, str]:
        return _checked(backend.setup, message)

    @app.post("/predict", dependencies=[allowed])
    def predict(message: Sent) -> dict[str, Any]:
        return _checked(backend.predict, message)

    @app.post("/webhook", status_code=201, dependencies=[allowed])
    def webhook(message: Sent) -> dict[str, str]:
        return _checked(backend.webhook, message)

    # What an older Label Studio sends for its button "Start training".
    @app.post("/train", status_code=201, dependencies=[allowed])
    def train(message: Sent) -> dict[str, str]:
        project = {"id": _number(message.get("project")), "label_config": message.get("label_config")}
        return _checked(backend.webhook, {"action": "START_TRAINING", "project": project})

    @app.get("/versions", dependencies=[allowed])
    def versions() -> dict[str, list[str]]:
        return {"versions": backend.versions()}

    return app


def _asking_for(password: str | None) -> Callable[..., None]:
    if password is None:
        return lambda: None

    def check(given: Annotated[HTTPBasicCredentials, Depends(BASIC)]) -> None:
        # In a time that does not tell how much of it was right.
        if not secrets.compare_digest(given.password.encode(), password.encode()):
            raise HTTPException(401, "wrong password", headers={"WWW-Authenticate": "Basic"})

    return check


def _checked(answer: Callable[[Message], dict[str, Any]], message: Message) -> dict[str, Any]:
    try:
        return answer(message)
    except MALFORMED as error:
        raise ValueError(f"the message is not of Label Studio's form ({type(error).__name__}: {error}).") from error


def _number(project: Any) -> int:
    """The number of a project of which Label Studio says "5.1700000000": its number and when it was made."""
    text = str(project).partition(".")[0]
    if not text.isdecimal():
        raise ValueError(f"project {project!r} is not a number; connect the backend in a project's settings.")
    return int(text)
