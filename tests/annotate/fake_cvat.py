"""The documented part of CVAT's API that its own SDK and command line use for one task, over HTTP."""

import io
import zipfile
from typing import Annotated, Any

import numpy as np
from cvat_sdk.masks import encode_mask
from cvat_sdk.version import VERSION
from fastapi import Body, FastAPI, HTTPException, Request, Response
from PIL import Image

TOKEN, TASK = "cvat-token", 12


def mask_shape(number: int, frame: int, label: int, mask: np.ndarray, source: str = "manual") -> dict[str, Any]:
    """A mask (H, W) bool as the server gives it."""
    return shape(number, frame, label, "mask", encode_mask(mask), source)


def shape(number: int, frame: int, label: int, kind: str, points: Any, source: str = "manual") -> dict[str, Any]:
    """A shape as the server gives it."""
    plain = {"occluded": False, "outside": False, "z_order": 0, "rotation": 0.0, "attributes": [], "elements": []}
    numbers = {"id": number, "frame": frame, "label_id": label, "group": 0}
    return {**plain, **numbers, "type": kind, "points": [float(value) for value in points], "source": source}


class FakeCvat:
    """One task whose frames and shapes are read and changed by tests; labels are numbered from 1."""

    def __init__(self, frames: list[np.ndarray | None], labels: dict[str, str]) -> None:
        self.frames, self.url, self.updates = frames, "", 0
        self.labels = [{"id": k, "name": name, "type": kind} for k, (name, kind) in enumerate(labels.items(), start=1)]
        self.shapes: list[dict[str, Any]] = []
        self.uploads = 0
        self.refuse_uploads_after: int | None = None

    def task(self) -> dict[str, Any]:
        """The task's own entry."""
        jobs = {"count": 1, "completed": 0, "validation": 0, "url": f"{self.url}/api/jobs?task_id={TASK}"}
        common = {"id": TASK, "name": "world", "mode": "annotation", "size": len(self.frames), "organization": None}
        data = {"data_chunk_size": 72, "data_original_chunk_type": "imageset", "data_compressed_chunk_type": "imageset"}
        # Whatever changes a task gives it another date, by which the SDK knows that its copy is old.
        date = {"updated_date": f"2026-01-01T00:00:00.{self.updates:06d}Z", "created_date": "2026-01-01T00:00:00Z"}
        return {**common, **data, **date, "jobs": jobs, "labels": {"url": f"{self.url}/api/labels?task_id={TASK}"}}

    def png(self, number: int) -> bytes:
        """A frame's file; of a broken one no image."""
        buffer, frame = io.BytesIO(), self.frames[number]
        if frame is None:
            return b"no image"
        Image.fromarray(frame).save(buffer, format="PNG")
        return buffer.getvalue()

    def add(self, body: dict[str, Any]) -> None:
        """Take shapes that a client has made."""
        if self.refuse_uploads_after is not None and self.uploads >= self.refuse_uploads_after:
            raise HTTPException(503, "Service Unavailable")
        self.uploads, self.updates = self.uploads + 1, self.updates + 1
        known = {one["id"] for one in self.labels}
        for one in body.get("shapes", []):
            assert one["label_id"] in known and 0 <= one["frame"] < len(self.frames)
            self.shapes.append({**shape(len(self.shapes) + 100, 0, 0, "mask", []), **one})

    def app(self) -> FastAPI:
        """The server's addresses."""
        app = FastAPI(redirect_slashes=True)

        def check(request: Request) -> None:
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                raise HTTPException(401, "Invalid token.")

        def known(task: int, request: Request) -> None:
            check(request)
            if task != TASK:
                raise HTTPException(404, "Not found.")

        @app.get("/api/server/about")
        def about() -> dict[str, str]:
            texts = dict.fromkeys(("name", "description", "logo_url", "subtitle"), "x")
            return {**texts, "version": VERSION}

        @app.get("/api/tasks/{task}")
        def retrieve(task: int, request: Request) -> dict[str, Any]:
            known(task, request)
            return self.task()

        @app.get("/api/labels")
        def labels(task_id: int, request: Request) -> dict[str, Any]:
            known(task_id, request)
            plain = {"attributes": [], "sublabels": [], "color": "#ffffff", "has_parent": False, "task_id": TASK}
            every = [{**plain, **one} for one in self.labels]
            return {"count": len(every), "next": None, "previous": None, "results": every}

        @app.get("/api/tasks/{task}/data/meta")
        def meta(task: int, request: Request) -> dict[str, Any]:
            known(task, request)
            frames = [
                {"name": f"frame_{k}.png", "related_files": 0, "width": 0 if f is None else f.shape[1], "height": 1}
                for k, f in enumerate(self.frames)
            ]
            last = {"start_frame": 0, "stop_frame": len(frames) - 1, "frame_filter": "", "size": len(frames)}
            chunks = {"chunks_updated_date": "2026-01-01T00:00:00Z", "chunk_size": 72, "image_quality": 70}
            return {**chunks, **last, "frames": frames, "deleted_frames": [], "included_frames": None}

        @app.get("/api/tasks/{task}/data")
        def data(task: int, request: Request, type: str, number: int) -> Response:
            known(task, request)
            if type == "frame":
                return Response(self.png(number), media_type="image/png")
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as chunk:
                for k in range(len(self.frames)):
                    chunk.writestr(f"{k:06d}.png", self.png(k))
            return Response(buffer.getvalue(), media_type="application/zip")

        @app.get("/api/tasks/{task}/annotations/")
        def annotations(task: int, request: Request) -> dict[str, Any]:
            known(task, request)
            return {"version": 0, "tags": [], "tracks": [], "shapes": self.shapes}

        @app.patch("/api/tasks/{task}/annotations/")
        def create(task: int, request: Request, action: str, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
            known(task, request)
            assert action == "create"
            self.add(body)
            return {"version": 0, "tags": [], "tracks": [], "shapes": []}

        return app
