"""The documented part of Label Studio's API that is used, over HTTP: projects, tasks, predictions, uploads, tokens."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import Body, FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from PIL import Image

from fsdino.annotate.label_studio.brush import encode_brush

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="tag" toName="image"><Label value="thing"/><Label value="other"/><Label value="not thing"/>
</BrushLabels>
<PolygonLabels name="outline" toName="image"><Label value="outlined"/></PolygonLabels>
<RectangleLabels name="box" toName="image"><Label value="thing"/><Label value="boxed"/></RectangleLabels>
<EllipseLabels name="round" toName="image"><Label value="thing"/></EllipseLabels>
<KeyPointLabels name="click" toName="image" smart="true"><Label value="thing"/></KeyPointLabels></View>"""
LEGACY, PERSONAL = "0123456789abcdef", "head.personal.sign"


def region(kind: str, label: str, size: tuple[int, int], **value: Any) -> dict[str, Any]:
    """A region of an annotation on an image of (H, W)."""
    names = {"brushlabels": "tag", "polygonlabels": "outline", "rectanglelabels": "box"}
    whole = {"original_width": size[1], "original_height": size[0], "image_rotation": 0}
    names |= {"ellipselabels": "round", "keypointlabels": "click"}
    tags = {"from_name": names[kind], "to_name": "image", "type": kind, "id": f"{kind}{label}"}
    return {**tags, **whole, "value": {**value, kind: [label]}}


def brushed(mask: np.ndarray, label: str = "thing") -> dict[str, Any]:
    """A brush region of a mask (H, W) bool."""
    return region("brushlabels", label, mask.shape, format="rle", rle=encode_brush(mask))


def annotation(number: int, *regions: dict[str, Any], at: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    """An annotation as the API gives it."""
    return {"id": number, "result": list(regions), "was_cancelled": False, "ground_truth": False, "updated_at": at}


class FakeLabelStudio:
    """One project, number 1, whose state is read and changed by tests."""

    def __init__(self) -> None:
        self.config, self.url = CONFIG, ""
        self.tasks: dict[int, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.access, self.refreshed = "short-lived-0", 0
        self.deleted: list[int] = []
        self.asked_with: list[str | None] = []
        self.refuse_predictions_after: int | None = None

    def add_task(self, image: np.ndarray | bytes, *annotations: dict[str, Any]) -> int:
        """A task with an uploaded picture; its number."""
        number = len(self.tasks) + 1
        buffer = io.BytesIO()
        if isinstance(image, np.ndarray):
            Image.fromarray(image).save(buffer, format="PNG")
        self.uploads[f"{number}.png"] = buffer.getvalue() if isinstance(image, np.ndarray) else image
        self.add_address(f"/data/upload/1/{number}.png", *annotations)
        return number

    def add_address(self, address: Any, *annotations: dict[str, Any]) -> int:
        """A task with a picture at an address; its number."""
        number = len(self.tasks) + 1
        data = {"image": address}
        self.tasks[number] = {"id": number, "data": data, "annotations": list(annotations), "predictions": []}
        return number

    def app(self) -> FastAPI:
        """The server's addresses."""
        app = FastAPI()

        def check(request: Request) -> None:
            given = request.headers.get("authorization")
            if given not in (f"Token {LEGACY}", f"Bearer {self.access}"):
                raise HTTPException(401, "Invalid token.")

        @app.post("/api/token/refresh/")
        def refresh(body: Annotated[dict[str, str], Body()]) -> dict[str, str]:
            if body.get("refresh") != PERSONAL:
                raise HTTPException(401, "Token is invalid")
            self.refreshed += 1
            self.access = f"short-lived-{self.refreshed}"
            return {"access": self.access}

        @app.get("/api/projects/{number}/")
        def project(number: int, request: Request) -> dict[str, Any]:
            check(request)
            if number != 1:
                raise HTTPException(404, "Not found.")
            return {"id": 1, "title": "world", "label_config": self.config}

        @app.get("/api/tasks/")
        def tasks(project: int, page: int, page_size: int, request: Request) -> dict[str, Any]:
            check(request)
            every = [self.tasks[number] for number in sorted(self.tasks)]
            return {"tasks": every[(page - 1) * page_size : page * page_size], "total": len(every)}

        @app.post("/api/predictions/", status_code=201)
        def predict(request: Request, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
            check(request)
            made = sum(len(task["predictions"]) for task in self.tasks.values())
            if self.refuse_predictions_after is not None and made >= self.refuse_predictions_after:
                raise HTTPException(503, "Service Unavailable")
            body["id"] = 1000 + made + len(self.deleted)
            self.tasks[body["task"]]["predictions"].append(body)
            return body

        @app.delete("/api/predictions/{number}/", status_code=204)
        def delete(number: int, request: Request) -> None:
            check(request)
            self.deleted.append(number)
            for task in self.tasks.values():
                task["predictions"] = [one for one in task["predictions"] if one["id"] != number]

        @app.get("/data/upload/1/{name}")
        def upload(name: str, request: Request) -> Response:
            check(request)
            if name not in self.uploads:
                raise HTTPException(404)
            return Response(self.uploads[name], media_type="image/png")

        @app.get("/open/{name}")
        def open_to_all(name: str, request: Request) -> Response:
            self.asked_with.append(request.headers.get("authorization"))
            return Response(self.uploads[name], media_type="image/png")

        @app.get("/endless")
        def endless() -> StreamingResponse:
            return StreamingResponse((b"\0" * 2**20 for _ in range(10_000)), media_type="image/png")

        @app.get("/moved")
        def moved(to: str) -> RedirectResponse:
            return RedirectResponse(to)

        return app


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an app on a free port of this machine; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
