"""What was found in images, in the forms that can be asked for."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from fsdino.base.result import LabelMap
from fsdino.predict.formats import OVERLAY_FORM, annotation, captioned, label_png
from fsdino.serve.store import Record

Form = Literal["json", "labels", "mask", "overlay"]
MEDIA = {"labels": ("image/png", ".png"), "mask": ("image/png", ".png"), "overlay": ("image/jpeg", ".jpg")}


def as_json(found: LabelMap, records: Sequence[Record], name: str, remark: str | None = None) -> dict[str, Any]:
    """What `ImageAnswer` describes."""
    classes = []
    for label, (record, one) in enumerate(zip(records, found.classes.values()), start=1):
        says = {"memory": record.id, "class_name": record.class_name, "present": one.present, "presence": one.presence}
        classes.append(says | annotation(one.mask, label, one.score))
    size = {"height": found.labels.shape[0], "width": found.labels.shape[1]}
    return {"name": name, **size, "found": classes, "remark": remark}


def drawn(form: Form, image: np.ndarray, found: LabelMap, records: Sequence[Record]) -> bytes:
    """One image's label map (PNG), mask (PNG, 255 on the object) or overlay (JPEG) as a file."""
    buffer = io.BytesIO()
    if form == "overlay":
        captioned(image, found, [record.class_name for record in records]).save(buffer, **OVERLAY_FORM)
    elif form == "labels":
        label_png(found.labels).save(buffer, format="PNG")
    else:
        Image.fromarray((found.labels > 0).astype(np.uint8) * np.uint8(255)).save(buffer, format="PNG")
    return buffer.getvalue()


def zipped(form: Form, files: Sequence[bytes], answer: dict[str, Any]) -> bytes:
    """The files of several images as 0001.png, 0002.png, ..., with the JSON of all."""
    buffer = io.BytesIO()
    # Stored, not deflated: PNG and JPEG are compressed already.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, data in enumerate(files, start=1):
            archive.writestr(f"{number:04d}{MEDIA[form][1]}", data)
        archive.writestr("answer.json", json.dumps(answer))
    return buffer.getvalue()
