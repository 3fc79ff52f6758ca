"""What goes in and out as JSON: the descriptions here are those of the OpenAPI page."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fsdino.serve.limits import Limits
from fsdino.serve.store import ID_PATTERN

# Control characters would make lines of their own in logs and tables.
ClassName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$"),
]
MemoryId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Pixel = Annotated[float, Field(ge=-1e6, le=1e6)]
Point = Annotated[list[Pixel], Field(min_length=2, max_length=2)]
Index = Annotated[int, Field(ge=0)]
MinPresence = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]


class Said(BaseModel):
    """One reference: which of the sent images it is, of which class, and what marks the object."""

    model_config = ConfigDict(extra="forbid")

    class_name: ClassName | None = Field(default=None, description="Its class; the form's `class_name` when left out.")
    image: Index | None = Field(
        default=None, description="Which of `images`, counted from 0; the reference's own place when left out."
    )
    mask: Index | None = Field(default=None, description="Which of `masks`, counted from 0.")
    points: list[Point] | None = Field(
        default=None, max_length=1000, description="Clicks [x, y] in pixels of the image."
    )
    labels: list[int] | None = Field(
        default=None, max_length=1000, description="1 for a click on the object, 0 off it."
    )
    box: list[Pixel] | None = Field(
        default=None, min_length=4, max_length=4, description="[x0, y0, x1, y1] around the object."
    )
    scribble: list[Point] | None = Field(
        default=None, min_length=1, max_length=1000, description="A stroke on the object: the corners [x, y] of a line."
    )
    negative: bool = Field(default=False, description='The reference shows what is not meant: "not this".')


class Problem(BaseModel):
    """What was expected, what came, and what to do, in one sentence."""

    detail: str


class Ready(BaseModel):
    """The service is there."""

    status: str = "ok"


class Memory(BaseModel):
    """A remembered class."""

    id: MemoryId
    class_name: str
    fingerprint: str = Field(description="Of the model that remembered it, and that alone can look for it.")
    models: list[str] = Field(description="Names of the served models of that fingerprint.")
    bytes: int = Field(description="Size of its file.")
    created: datetime


class Memories(BaseModel):
    """Remembered classes, the oldest first."""

    memories: list[Memory]


class ServedModel(BaseModel):
    """A model that is served."""

    name: str
    fingerprint: str
    threshold: float = Field(description="Probability above which a pixel belongs to the object, when none is asked.")
    waiting: int = Field(description="Requests that wait for it now.")


class Models(BaseModel):
    """What is served, and how much may be asked for."""

    models: list[ServedModel]
    limits: Limits


class Rle(BaseModel):
    """A mask in COCO's compressed run lengths, for `pycocotools.mask.decode`."""

    size: list[int] = Field(description="Height and width.")
    counts: str


class Found(BaseModel):
    """One class in one image; beside the names of COCO's annotations what the model says of its answer."""

    memory: MemoryId
    class_name: str
    category_id: int = Field(description="Its value in label maps: 1 for the first memory asked for, and so on.")
    present: bool = Field(description="Whether its presence is high enough for a mask, see `min_presence`.")
    presence: float | None = Field(description="Probability to be in the image; null where the model says none.")
    score: float = Field(description="The model's own estimate of the mask's IoU, in [0, 1]; 0 where it is absent.")
    area: int = Field(description="Pixels of the mask.")
    bbox: list[float] = Field(description="x, y, width, height.")
    iscrowd: int = 0
    segmentation: Rle


class ImageAnswer(BaseModel):
    """What was found in one image, at the image's own size."""

    name: str
    height: int
    width: int
    found: list[Found]
    remark: str | None = Field(description="Why little should be expected of this image; null where nothing is known.")


class Answer(BaseModel):
    """What was found."""

    model: str
    threshold: float
    images: list[ImageAnswer]
