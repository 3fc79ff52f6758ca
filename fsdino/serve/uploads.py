"""Uploaded images and what was said of them, as references of classes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from fastapi import HTTPException
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from fsdino.base.image import to_mask, to_rgb
from fsdino.base.reference import Reference
from fsdino.predict.hints import HINTS, check_mask
from fsdino.predict.memory_file import MEMORY_SUFFIX, SavedMemory, load_memory
from fsdino.serve.limits import Limits
from fsdino.serve.schemas import Said

# What cameras and annotation tools write. Pillow knows many more, and some of those start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
LOGGER = logging.getLogger("fsdino.serve")
SAID = TypeAdapter(list[Said])


class Upload(NamedTuple):
    """A file of a request, and what its sender calls it."""

    file: BinaryIO
    name: str


def shown_name(name: str | None, otherwise: str) -> str:
    """The last part of a file's name, which is used in messages and answers and never as a path."""
    plain = PurePosixPath((name or "").replace("\\", "/")).name[:80]
    return plain if plain.isprintable() and plain else otherwise


@contextmanager
def reading(upload: Upload) -> Iterator[None]:
    """Whatever is raised inside says that the upload is no image."""
    try:
        yield
    except HTTPException:
        raise
    # Decoders raise anything on files that were made to fool them.
    except Exception as error:
        LOGGER.info("an image could not be read: %r", error)
        raise HTTPException(422, f"'{upload.name}' is not an image that can be read; send a JPEG or PNG.") from error


def header(upload: Upload, limits: Limits) -> Image.Image:
    """Open an image and look at its size before any pixel of it is decoded."""
    with reading(upload):
        upload.file.seek(0)
        try:
            image = Image.open(upload.file, formats=FORMATS)
            millions = image.width * image.height / 1e6
        except Image.DecompressionBombError:
            millions = math.inf
        if millions > limits.max_megapixels:
            much = f"{millions:.0f}" if millions < math.inf else "far too many"
            text = f"'{upload.name}' has {much} megapixels, {limits.max_megapixels} are taken; make it smaller."
            raise HTTPException(413, text)
        return image


def decoded(upload: Upload, limits: Limits, turned: Callable[[Image.Image], np.ndarray] = to_rgb) -> np.ndarray:
    """An image as RGB bytes (H, W, 3), or what `turned` makes of it."""
    with reading(upload):
        return turned(header(upload, limits))


def saved_memory(data: bytes, name: str) -> SavedMemory:
    """The memory of a .fsmem file; a 422 if it is none, or damaged."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{MEMORY_SUFFIX}"
        path.write_bytes(data)
        try:
            return load_memory(path)
        except ValueError as error:
            raise HTTPException(422, str(error).replace(str(path), name)) from error


def what_was_said(text: str | None, count: int, class_name: str | None) -> list[Said]:
    """Check the JSON on references; without one, image i has mask i and all are of one class.

    Args:
        text: a list of `Said`.
        count: of the images.
        class_name: of those whose class is not said.
    """
    try:
        entries = [Said(mask=i) for i in range(count)] if text is None else SAID.validate_json(text)
    except ValidationError as error:
        raise HTTPException(422, f"references: {first_error(error.errors())}") from error
    given = [one.model_copy(update={"class_name": one.class_name or class_name}) for one in entries]
    if any(one.class_name is None for one in given):
        raise HTTPException(422, "a reference has no class; send class_name, or say it in references.")
    return given


def first_error(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors as a part of a sentence: where, and what."""
    place = ".".join(str(part) for part in errors[0]["loc"] if part != "body")
    text = str(errors[0]["msg"])
    return f"{place}: {text[0].lower()}{text[1:]}." if place else f"{text[0].lower()}{text[1:]}."


def read_references(
    said: Sequence[Said], images: Sequence[Upload], masks: Sequence[Upload], limits: Limits
) -> dict[str, list[Reference]]:
    """Class name to references; several may share an image.

    Raises:
        HTTPException: 413 if an image has too many pixels, 422 if something is missing, unused or cannot be read.
    """
    chosen = [i if one.image is None else one.image for i, one in enumerate(said)]
    wanted = [one.mask for one in said if one.mask is not None]
    for kind, files, used in (("image", images, chosen), ("mask", masks, wanted)):
        if missing := sorted(set(used) - set(range(len(files)))):
            raise HTTPException(422, f"{kind} {missing[0]} is asked for, {len(files)} came (counted from 0).")
        if unused := sorted(set(range(len(files))) - set(used)):
            raise HTTPException(422, f"{kind} {unused[0]} ('{files[unused[0]].name}') belongs to no reference.")
    # All are held at once, unlike the images to segment.
    millions = sum(math.prod(header(upload, limits).size) for upload in images) / 1e6
    if millions > 4 * limits.max_megapixels:
        text = f"the references have {millions:.0f} megapixels, {4 * limits.max_megapixels} are taken together"
        raise HTTPException(413, f"{text}; make them smaller.")
    pixels = [decoded(upload, limits) for upload in images]
    found: dict[str, list[Reference]] = {}
    for one, place in zip(said, chosen):
        hints = {name: value for name in HINTS if (value := getattr(one, name)) is not None}
        name, image = f"{images[place].name} ({one.class_name})", pixels[place]
        if one.mask is None and not hints:
            raise HTTPException(422, f"{name} has neither a mask nor points, a box or a scribble; give one.")
        mask = None if one.mask is None else (decoded(masks[one.mask], limits, to_mask) == 1).astype(np.uint8)
        if mask is not None:
            check_mask(mask, image, name)
        reference = Reference(image, mask=mask, negative=one.negative, name=name, **hints)
        found.setdefault(str(one.class_name), []).append(reference)
    return found
