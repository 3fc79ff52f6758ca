"""`fsdino cvat`: learn from what is drawn in a task of CVAT, and annotate the frames on which nothing is."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial

import numpy as np
import urllib3
from cvat_sdk import exceptions, make_client, models
from cvat_sdk.core.client import Client
from cvat_sdk.core.exceptions import CvatSdkException
from cvat_sdk.datasets import MediaDownloadPolicy, Sample, TaskDataset
from cvat_sdk.masks import decode_mask
from tqdm import tqdm

from fsdino.annotate.cvat.function import MASK, POLYGON, RECTANGLE, Answers, shapes
from fsdino.annotate.drawn import Drawn, meant
from fsdino.annotate.lessons import AS_ASKED, Lesson, Lessons, NothingShown, Teaching
from fsdino.annotate.outlines import ellipse, filled, turned
from fsdino.base.image import to_rgb
from fsdino.data.images import UNREADABLE
from fsdino.predict.engines.choice import EngineChoice

TOKEN_VARIABLE, PASSWORD_VARIABLE = "CVAT_ACCESS_TOKEN", "CVAT_PASSWORD"
MODEL = EngineChoice()
AUTO = "auto"  # source of a shape that no person has drawn; ours have it
DRAWABLE = (MASK, POLYGON, RECTANGLE, "ellipse", "points")
SECONDS = 60.0
FAILURES = (exceptions.ApiException, CvatSdkException, urllib3.exceptions.HTTPError)


def cvat(
    task: int,
    engine: EngineChoice = MODEL,
    teaching: Teaching = AS_ASKED,
    url: str = "http://localhost:8080",
    token: str | None = None,
    user: str | None = None,
    organization: str | None = None,
    split_instances: bool = False,
) -> int:
    """Learn from what is drawn in a CVAT task and annotate its other frames; a second run continues the first.

    Args:
        task: number of the task, as in its address.
        engine: the model, and what runs it.
        teaching: what is known before anything is drawn.
        url: address of the CVAT server.
        token: a personal access token; of the variable CVAT_ACCESS_TOKEN when left out.
        user: name to log in with where there is no token; the password is of the variable CVAT_PASSWORD.
        organization: short name of the organization that the task is in.
        split_instances: a mask per connected part instead of one per class.

    Returns:
        Exit code: 0, or 1 when frames could not be read (they are listed on standard error).
    """
    support = teaching.read()
    with _sentences(url), _connected(url, token, user) as client:
        client.organization_slug = organization
        policy = MediaDownloadPolicy.FETCH_FRAMES_ON_DEMAND
        # Frame by frame: a task of thousands is not copied to this disk, and one that is broken stays one.
        dataset = TaskDataset(client, task, media_download_policy=policy)
        names = {label.id: str(label.name) for label in dataset.labels}
        lessons = Lessons(engine.open(), support, teaching)
        for sample in dataset.samples:
            if (lesson := lesson_of(sample, names)) is not None:
                lessons.put(sample.frame_index, lesson)
        answers = answers_of(dataset.labels)
        todo = [sample for sample in dataset.samples if sample.annotations is None or not sample.annotations.shapes]
        failed = {}
        for sample in tqdm(todo, unit="frame", desc="cvat"):
            try:
                found = lessons.find(to_rgb(_image(sample)), answers)
            except NothingShown:
                raise
            except (*UNREADABLE, *FAILURES) as error:
                failed[sample.frame_name] = _said(error)
                continue
            # At once, so that a stopped run has lost nothing: frames with shapes are not asked for again.
            _upload(client, task, sample, shapes(found, answers, split_instances))
    for note in sorted(set(lessons.notes.values())):
        print(f"not learnt from: {note}", file=sys.stderr)
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(f"{len(todo) - len(failed)} of {len(todo)} frames searched, learnt from {lessons.count} drawn ones")
    return 1 if failed else 0


def answers_of(labels: Iterator[models.ILabel]) -> Answers:
    """The labels of a task that an answer can be given in."""
    kinds = {"any": MASK, MASK: MASK, POLYGON: POLYGON, RECTANGLE: RECTANGLE}
    answered = [label for label in labels if str(label.type) in kinds and not meant(label.name)[1]]
    return {str(label.name): (int(label.id), kinds[str(label.type)]) for label in answered}


def lesson_of(sample: Sample, names: Mapping[int, str]) -> Lesson | None:
    """What people have drawn on a frame; None where nothing is that shows an object.

    Args:
        names: number of a label to its name.
    """
    given = sample.annotations.shapes if sample.annotations else []
    drawn = [one for one in given if str(one.source) != AUTO and str(one.type) in DRAWABLE and one.label_id in names]
    if not drawn:
        return None
    picture = lru_cache(1)(partial(_rgb, sample))
    labels = frozenset(names[one.label_id] for one in drawn)
    # Shapes have no date, but numbers that grow; a shape that was changed keeps its number and not its points.
    stamp = f"{max(int(one.id) for one in drawn):012d} {hash(tuple(tuple(one.points) for one in drawn))}"
    return Lesson(stamp, labels, picture, partial(_drawn, drawn, names, picture), f"frame {sample.frame_name}")


def _drawn(
    given: list[models.LabeledShape], names: Mapping[int, str], picture: Callable[[], np.ndarray]
) -> dict[str, Drawn]:
    height, width = picture().shape[:2]
    found: dict[str, Drawn] = {}
    for one in given:
        drawn, points = found.setdefault(names[one.label_id], Drawn()), [float(value) for value in one.points]
        kind, degrees = str(one.type), float(one.rotation or 0)
        if kind == MASK:
            drawn.add(decode_mask(points, image_width=width, image_height=height))
        elif kind == POLYGON:
            drawn.add(filled(points, (height, width)))
        elif kind == "ellipse":
            # The centre, and the x of its right and the y of its upper end.
            x, y, right, upper = points
            drawn.add(filled(ellipse((x, y), (right - x, y - upper), degrees), (height, width)))
        elif kind == RECTANGLE:
            drawn.boxes.append(_box(points, degrees))
        else:
            places = np.asarray(points).reshape(-1, 2) - 0.5
            drawn.points += [(float(x), float(y), True) for x, y in places]
    return found


def _box(points: list[float], degrees: float) -> tuple[float, float, float, float]:
    """The upright box around a rectangle, which CVAT turns around its centre; pixel centres at whole numbers."""
    x0, y0, x1, y1 = points
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    corners = turned(corners, ((x0 + x1) / 2, (y0 + y1) / 2), degrees) - 0.5
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    return float(left), float(top), float(right), float(bottom)


def _rgb(sample: Sample) -> np.ndarray:
    try:
        return to_rgb(_image(sample))
    except (*UNREADABLE, *FAILURES) as error:
        raise OSError(f"frame {sample.frame_name} cannot be fetched: {_said(error)}") from error


def _image(sample: Sample):  # type: ignore[no-untyped-def]
    image = sample.media.load_image()
    image.load()
    return image


def _upload(client: Client, task: int, sample: Sample, made: list[models.LabeledShapeRequest]) -> None:
    for one in made:
        one.frame, one.source = sample.frame_index, AUTO
    if made:
        data = models.PatchedLabeledDataRequest(shapes=made, tags=[], tracks=[])
        client.tasks.api.partial_update_annotations("create", task, patched_labeled_data_request=data)


def _connected(url: str, token: str | None, user: str | None) -> Client:
    secret, password = token or os.environ.get(TOKEN_VARIABLE), os.environ.get(PASSWORD_VARIABLE)
    if secret:
        return make_client(url, access_token=secret)
    if not user or not password:
        raise ValueError(
            "CVAT asks who you are: set CVAT_ACCESS_TOKEN to a personal access token, or give --user and set "
            "CVAT_PASSWORD."
        )
    return make_client(url, credentials=(user, password))


@contextmanager
def _sentences(url: str) -> Iterator[None]:
    """Errors of the SDK, whose texts are pages of headers, as one sentence each; and it does not wait for ever."""
    # The SDK sets no limit, so that of sockets counts.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    except exceptions.ApiException as error:
        hints = {401: "check the token", 403: "the user may not do this", 404: "check the number of the task"}
        hint = hints.get(error.status, "see the server's log")
        raise OSError(f"CVAT at {url} answers {error.status} {error.reason}; {hint}.") from error
    except (CvatSdkException, urllib3.exceptions.HTTPError) as error:
        raise OSError(f"CVAT at {url} cannot be used ({_said(error)}); check --url and the task.") from error
    finally:
        socket.setdefaulttimeout(before)


def _said(error: Exception) -> str:
    if isinstance(error, exceptions.ApiException):
        return f"the server answers {error.status} {error.reason}"
    return " ".join(str(error).split())[:200] or type(error).__name__
