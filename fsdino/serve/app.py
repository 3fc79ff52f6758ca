"""The addresses of the service and what they take and give, as the OpenAPI page shows them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Path, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fsdino import __version__
from fsdino.serve import schemas
from fsdino.serve.answers import MEDIA, zipped
from fsdino.serve.answers import Form as AnswerForm
from fsdino.serve.gate import Gate
from fsdino.serve.limits import MAX_MEMORY_FILE
from fsdino.serve.service import Question, Service
from fsdino.serve.store import ID_PATTERN, Record
from fsdino.serve.uploads import Upload, first_error, saved_memory, shown_name, what_was_said

Described = dict[int | str, dict[str, Any]]
REASONS = {
    400: "The request is cut or damaged.",
    401: "The key is missing or wrong.",
    403: "A page of another site asked, and the service has no key.",
    404: "There is no such memory or model.",
    409: "There are as many memories as there may be, or the memory's file is damaged.",
    413: "The request or an image is too large.",
    422: "Something in the request cannot be used.",
    503: "The model has too many requests waiting; Retry-After says when to come again.",
    504: "It took too long.",
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
MEMORY_FILE: Described = {200: {"content": {"application/octet-stream": BINARY}, "description": "The .fsmem."}}
ANSWERS: Described = {
    200: {
        "description": "JSON; or the file of one image; or a ZIP of several with answer.json.",
        "content": {kind: BINARY for kind in ("image/png", "image/jpeg", "application/zip")},
    }
}
SENTENCES = {
    "Not Found": "there is nothing at this address; /docs lists what there is.",
    "Method Not Allowed": "this address does not take that method; /docs lists what it takes.",
    "There was an error parsing the body": "the body is cut or damaged; send the form again.",
}
REFERENCES = '[{"image": 0, "box": [60, 40, 300, 260]}, {"image": 1, "points": [[120, 80]], "negative": true}]'
ID = "0123456789abcdef"


def problems(*codes: int) -> Described:
    """The answers of these codes, as they are described."""
    return {code: {"model": schemas.Problem, "description": REASONS[code]} for code in codes}


def serving(request: Request) -> Service:
    """The service of a request."""
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(serving)]
MemoryPath = Annotated[str, Path(pattern=ID_PATTERN, description="The memory's id.", examples=[ID])]
ModelName = Annotated[str | None, Form(max_length=200, description="A name of GET /v1/models.", examples=["tiny"])]
Images = Annotated[list[UploadFile], File(description="JPEG, PNG, WebP, BMP or TIFF; EXIF orientation is applied.")]

bearer = HTTPBearer(auto_error=False, description="The service's key, where it has one.")
router = APIRouter(prefix="/v1", dependencies=[Depends(bearer)], responses=problems(400, 401, 403, 422))
plain = APIRouter()


@router.get("/models", tags=["models"], summary="What is served")
async def models(service: Serving) -> schemas.Models:
    """The models by name, the first being the one that runs where none is named, and the limits of requests."""
    found = [
        schemas.ServedModel(
            name=name, fingerprint=one.fingerprint, threshold=one.engine.threshold, waiting=one.worker.waiting
        )
        for name, one in service.runners.items()
    ]
    return schemas.Models(models=found, limits=service.limits)


@router.post(
    "/memories", tags=["memories"], summary="Remember", status_code=201, responses=problems(404, 409, 413, 503, 504)
)
async def remember(
    service: Serving,
    images: Images,
    masks: Annotated[
        list[UploadFile], File(description="Black and white images of the size of theirs; white is the object.")
    ] = [],  # noqa: B006 - FastAPI copies it
    class_name: Annotated[schemas.ClassName | None, Form(description="The class.", examples=["cat"])] = None,
    references: Annotated[
        str | None,
        Form(
            description="What is shown where: a JSON list of objects with `image` and `mask` (places in `images` and "
            "`masks`, counted from 0), or `points`, `labels`, `box`, `scribble` in pixels; `negative` for what is not "
            "meant; `class_name` where there are several. Left out: image i has mask i, and all are of `class_name`.",
            examples=[REFERENCES],
        ),
    ] = None,
    model: ModelName = None,
) -> schemas.Memories:
    """Remember what annotated images show, one memory a class; each is saved before the answer comes."""
    runner = service.runner(model)
    said = what_was_said(references, len(images), class_name)
    if not 0 < len(said) <= service.limits.max_references:
        raise HTTPException(422, f"{len(said)} references came, 1 to {service.limits.max_references} are taken.")
    sent = uploads(images, "image"), uploads(masks, "mask")
    records = await service.run(runner, lambda: runner.remember(said, *sent))
    service.metrics.remembered.labels(runner.name).inc(len(records))
    return listed(service, records)


@router.post(
    "/memories/upload", tags=["memories"], summary="Upload", status_code=201, responses=problems(409, 413, 503, 504)
)
async def upload_memory(
    service: Serving, file: Annotated[UploadFile, File(description="A .fsmem of one of the served models.")]
) -> schemas.Memory:
    """Keep a memory that `fsdino remember` or another service saved; its fingerprint says which model it is for."""
    data = await file.read(MAX_MEMORY_FILE + 1)
    if len(data) > MAX_MEMORY_FILE:
        raise HTTPException(413, f"the file has more than {MAX_MEMORY_FILE / 1e6:.0f} MB, no memory is that large.")
    memory = await run_in_threadpool(saved_memory, data, shown_name(file.filename, "the file"))
    able = service.names_of(memory.fingerprint)
    if not able:
        raise HTTPException(422, f"the file was made by model {memory.fingerprint}, which is not served here.")
    runner = service.runner(able[0])
    return described(service, await service.run(runner, lambda: runner.adopt(memory, data)))


@router.get("/memories", tags=["memories"], summary="List")
async def list_memories(service: Serving) -> schemas.Memories:
    """All memories, the oldest first."""
    return listed(service, service.store.records())


@router.get("/memories/{memory_id}", tags=["memories"], summary="Describe", responses=problems(404))
async def get_memory(service: Serving, memory_id: MemoryPath) -> schemas.Memory:
    """One memory."""
    return described(service, service.record(memory_id))


@router.get(
    "/memories/{memory_id}/file",
    tags=["memories"],
    summary="Download",
    response_class=Response,
    responses=MEMORY_FILE | problems(404),
)
async def download_memory(service: Serving, memory_id: MemoryPath) -> Response:
    """The memory as a file, for `fsdino predict --support` or another service of the same model."""
    path = service.store.path(service.record(memory_id).id)
    headers = {"Content-Disposition": f'attachment; filename="{path.name}"'}
    return Response(await run_in_threadpool(path.read_bytes), media_type="application/octet-stream", headers=headers)


@router.delete("/memories/{memory_id}", tags=["memories"], summary="Delete", status_code=204, responses=problems(404))
async def delete_memory(service: Serving, memory_id: MemoryPath) -> None:
    """Delete a memory and its file."""
    service.store.remove(service.record(memory_id).id)
    for runner in service.runners.values():
        runner.forget(memory_id)


@router.post(
    "/segment",
    tags=["segment"],
    summary="Segment images",
    response_model=schemas.Answer,
    responses=ANSWERS | problems(404, 409, 413, 503, 504),
)
async def segment(
    service: Serving,
    images: Images,
    memories: Annotated[
        list[schemas.MemoryId], Form(min_length=1, description="Ids of what to look for.", examples=[[ID]])
    ],
    output: Annotated[
        AnswerForm,
        Form(
            description="`json`: masks as COCO run lengths; `labels`: a palette PNG whose value k is the k-th memory; "
            "`mask`: a PNG that is 255 on all that was found; `overlay`: a JPEG to look at."
        ),
    ] = "json",
    threshold: Annotated[
        float | None,
        Form(
            gt=0, lt=1, description="Probability above which a pixel is a class's; else a memory's cut or the model's."
        ),
    ] = None,
    min_score: Annotated[float, Form(ge=0, le=1, description="Classes whose score is below count as absent.")] = 0.0,
    min_presence: Annotated[
        schemas.MinPresence | None,
        Form(
            description="Presence above which a class gets a mask; 0: always. `auto`: one half where the model learnt "
            "what absent means, else 0. The service's own option when left out."
        ),
    ] = None,
    refine_edges: Annotated[
        bool | None, Form(description="Move the masks' edges to the image's. The service's own option when left out.")
    ] = None,
    model: ModelName = None,
) -> Response:
    """Find what memories hold in one or more images; each pixel belongs to the most probable of them or to none.

    Files of one image have the scores in the header `FSDINO-Scores`, in the order of `memories`.
    """
    limits = service.limits
    for name, sent, most in (("images", images, limits.max_images), ("memories", memories, limits.max_classes)):
        if len(sent) > most:
            raise HTTPException(422, f"{len(sent)} {name} came, up to {most} are taken; ask in parts.")
    if len(set(memories)) < len(memories):
        raise HTTPException(422, "a memory is asked for twice; name each once.")
    records = [service.record(memory_id) for memory_id in memories]
    runner = service.runner_for(records, model)
    asked: dict[str, Any] = {"min_presence": min_presence, "refine_edges": refine_edges}
    finish = replace(service.finish, **{name: value for name, value in asked.items() if value is not None})
    question = Question(records, threshold, min_score, output, finish)
    opened, until = uploads(images, "image"), time.monotonic() + limits.max_seconds
    answers, files = await service.run(runner, lambda: runner.find(question, opened, until))
    service.metrics.images.labels(runner.name).inc(len(images))
    limit = runner.engine.threshold if threshold is None else threshold
    whole = {"model": runner.name, "threshold": limit, "images": answers}
    if output == "json":
        return JSONResponse(whole)
    if len(files) > 1:
        return Response(await run_in_threadpool(zipped, output, files, whole), media_type="application/zip")
    scores = ", ".join(f"{found['score']:.4f}" for found in answers[0]["found"])
    return Response(files[0], media_type=MEDIA[output][0], headers={"FSDINO-Scores": scores})


@plain.get("/healthz", tags=["service"], summary="Is it alive")
async def healthz() -> schemas.Ready:
    """Answers as long as the service runs."""
    return schemas.Ready()


@plain.get("/readyz", tags=["service"], summary="Does it take work", responses=problems(503))
async def readyz(service: Serving) -> schemas.Ready:
    """Whether every model has room in its queue, and the folder of the memories is there."""
    for name, one in service.runners.items():
        if one.worker.waiting >= service.limits.max_waiting:
            raise HTTPException(503, f"model {name} takes no more requests now.", {"Retry-After": "1"})
    if not service.store.folder.is_dir():
        raise HTTPException(503, "the folder of the memories is gone.")
    return schemas.Ready()


@plain.get("/metrics", tags=["service"], summary="Numbers for Prometheus", response_class=Response)
async def metrics(service: Serving) -> Response:
    """Counts, times, queues and the memory of the process, in Prometheus' text format."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def uploads(files: Sequence[UploadFile], kind: str) -> list[Upload]:
    """Files of a request with the names that messages call them."""
    return [Upload(one.file, shown_name(one.filename, f"{kind} {i}")) for i, one in enumerate(files)]


def described(service: Service, record: Record) -> schemas.Memory:
    """A memory as it is shown."""
    return schemas.Memory(**vars(record), models=service.names_of(record.fingerprint))


def listed(service: Service, records: Sequence[Record]) -> schemas.Memories:
    """Memories as they are shown."""
    return schemas.Memories(memories=[described(service, record) for record in records])


async def told(_: Request, error: Any) -> JSONResponse:
    """An error that a route raised, or what the framework says in two words."""
    return JSONResponse(
        {"detail": SENTENCES.get(str(error.detail), str(error.detail))}, error.status_code, error.headers
    )


async def invalid(_: Request, error: Any) -> JSONResponse:
    """What FastAPI found wrong with a form, in one sentence."""
    return JSONResponse({"detail": first_error(error.errors())}, 422)


async def failed(_: Request, __: Exception) -> JSONResponse:
    """What nobody expected; the server's log has the rest."""
    return JSONResponse({"detail": "the service failed on this request; its log says why."}, 500)


def create_app(service: Service, key: str | None = None, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """The service as an ASGI application.

    Args:
        service: what answers.
        key: that requests must carry; None asks for none.
        hosts: names by which the service may be called.
    """
    app = FastAPI(
        title="FS-DINO",
        version=__version__,
        summary="Segments what a few annotated images show.",
        description="References in, a memory out; images and memories in, masks out. Errors are one sentence.",
        redoc_url=None,
        exception_handlers={AnyHTTPException: told, RequestValidationError: invalid, Exception: failed},
    )
    app.state.service = service
    # A page of another site can have a name of its own lead to this machine, so only its own names are heard.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(Gate, limits=service.limits, metrics=service.metrics, key=key)
    app.include_router(router)
    app.include_router(plain)
    return app
