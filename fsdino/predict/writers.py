"""The output formats of predict, a class each; a new one is a class here and a line in `WRITERS`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from fsdino.base.result import Instance, LabelMap
from fsdino.predict.formats import OVERLAY_FORM, annotation, captioned, label_png, yolo_lines

TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}  # names on disk may be any bytes


class Writer:
    """One format; `Outputs` makes it with the folder of all results and the names of labels 1, 2, ...

    Attributes:
        suffix: of the file that each image gets; empty: none.
        summaries: files that cover all images, relative to the folder.
    """

    suffix: ClassVar[str] = ""
    summaries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, folder: Path, names: Sequence[str], split_instances: bool) -> None:
        self.folder, self.names, self.split_instances = folder, list(names), split_instances

    def write(self, path: Path, image: np.ndarray, found: LabelMap) -> Any:
        """Write the file of one image (H, W, 3) uint8, whole or not at all; called from several threads.

        What comes back is what `finish` must know of the image, in values that JSON takes; None: nothing.
        """

    def finish(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write the files that cover all images, from `image`, `height`, `width` and what `write` gave for `notes`."""


class LabelsWriter(Writer):
    """PNG label maps."""

    suffix = ".png"

    def write(self, path: Path, image: np.ndarray, found: LabelMap) -> None:
        """See `Writer.write`."""
        _save(label_png(found.labels), path, format="PNG")


class OverlaysWriter(Writer):
    """The images with their masks and the classes' names."""

    suffix = ".jpg"

    def write(self, path: Path, image: np.ndarray, found: LabelMap) -> None:
        """See `Writer.write`."""
        _save(captioned(image, found, self.names), path, **OVERLAY_FORM)


class YoloWriter(Writer):
    """Polygons for YOLO's segmentation training."""

    suffix = ".txt"
    summaries = ("yolo/classes.txt",)

    def write(self, path: Path, image: np.ndarray, found: LabelMap) -> None:
        """See `Writer.write`."""
        path.write_text(yolo_lines(found.labels, self.names), encoding="utf-8")

    def finish(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """See `Writer.finish`."""
        target = self.folder / self.summaries[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{name}\n" for name in self.names), **TEXT)


class CocoWriter(Writer):
    """One COCO JSON with RLE masks."""

    summaries = ("predictions.json",)

    def write(self, path: Path, image: np.ndarray, found: LabelMap) -> list[dict[str, Any]]:
        """See `Writer.write`; the image's annotations."""
        notes = []
        for label, (name, one) in enumerate(found.classes.items(), start=1):
            whole = [Instance(one.mask, (0, 0, 0, 0), one.score)] if one.mask.any() else []
            parts = one.instances(name=name) if self.split_instances else whole
            told = {} if one.presence is None else {"presence": round(one.presence, 4)}
            notes += [annotation(part.mask, label, part.score) | told for part in parts]
        return notes

    def finish(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """See `Writer.finish`."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, entry in enumerate(entries, start=1):
            size = {"height": entry["height"], "width": entry["width"]}
            images.append({"id": image_id, "file_name": entry["image"], **size})
            for one in entry["notes"]["coco"]:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **one})
        categories = [{"id": i, "name": name} for i, name in enumerate(self.names, start=1)]
        whole = {"images": images, "annotations": annotations, "categories": categories}
        (self.folder / self.summaries[0]).write_text(json.dumps(whole) + "\n", encoding="utf-8")


WRITERS: dict[str, type[Writer]] = {
    "labels": LabelsWriter,
    "overlays": OverlaysWriter,
    "yolo": YoloWriter,
    "coco": CocoWriter,
}


def _save(image: Image.Image, target: Path, **options: Any) -> None:
    """Write an image whole or not at all, so that a run killed here leaves nothing half done."""
    # With the process's number: two runs into one folder must not write into each other's halves.
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    image.save(partial, **options)
    partial.replace(target)
