"""The folder that predict writes: files per picture, and the record by which a second run continues the first."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from fsdino.predict.formats import MAX_CLASSES, annotation, instances, label_png, yolo_lines
from fsdino.visualize import overlay

Format = Literal["labels", "overlays", "coco", "yolo"]
FORMATS: tuple[Format, ...] = ("labels", "overlays", "coco", "yolo")
RECORD_FILE = "progress.jsonl"
OVERLAY_SIDE = 448  # pixels; smaller pictures are enlarged, or the captions would hide them


class Outputs:
    """Writes the results of a run; `write` is safe to call from several threads.

    Args:
        folder: Where to; made when missing.
        names: Class names in the order of their labels 1, 2, ...
        formats: What to write.
        settings: What the results depend on; a folder with results of other settings is refused.
        split_instances: Whether the COCO file has an annotation per connected part.
        overwrite: Start over instead of continuing.

    Attributes:
        done: Names of the pictures that are finished.

    Raises:
        ValueError: If a format is unknown, there are too many classes, or the folder holds results of other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        formats: Sequence[str],
        settings: Mapping[str, Any],
        *,
        split_instances: bool = False,
        overwrite: bool = False,
    ) -> None:
        if unknown := [name for name in formats if name not in FORMATS] or ([] if formats else ["nothing"]):
            raise ValueError(f"output format {unknown[0]!r} is unknown; use one or more of {', '.join(FORMATS)}.")
        if len(names) > MAX_CLASSES:
            raise ValueError(f"{len(names)} classes at once; a label map holds {MAX_CLASSES}, so run them in parts.")
        self.folder, self.names, self.formats = Path(folder), list(names), list(formats)
        self.split_instances = split_instances
        self._record_path = self.folder / RECORD_FILE
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self._record_path.unlink(missing_ok=True)
        self.done = self._open_record(json.loads(json.dumps({**settings, "classes": self.names})))

    def _open_record(self, settings: dict[str, Any]) -> set[str]:
        """Check that an older record is of the same settings and drop a line that a killed run left unfinished."""
        lines = (
            self._record_path.read_text(encoding="utf-8").splitlines(keepends=True)
            if self._record_path.exists()
            else []
        )
        if lines and not lines[-1].endswith("\n"):
            lines = lines[:-1]
        older = self._settings_of(lines[0]) if lines else settings
        for key in sorted({*older, *settings}):
            if older.get(key) != settings.get(key):
                raise ValueError(
                    f"'{self.folder}' holds results of another {key} ({older.get(key)}, now {settings.get(key)}); "
                    "choose another --out, or start over with --overwrite true."
                )
        lines = lines or [json.dumps({"settings": settings}) + "\n"]
        partial = self._record_path.with_suffix(".part")
        partial.write_text("".join(lines), encoding="utf-8")
        partial.replace(self._record_path)
        return {json.loads(line)["picture"] for line in lines[1:]}

    def _settings_of(self, line: str) -> dict[str, Any]:
        """The settings on a record's first line."""
        try:
            return dict(json.loads(line)["settings"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"'{self._record_path}' is no record of an earlier run; choose another --out, or start over with "
                "--overwrite true."
            ) from error

    def write(self, name: str, stem: str, picture: np.ndarray, labels: np.ndarray, scores: Sequence[float]) -> None:
        """Write all files of one picture, then record it as done.

        Args:
            name: The picture's name.
            stem: What its files are called, without suffix; '/' makes folders.
            picture: (H, W, 3) uint8.
            labels: (H, W), 0 background.
            scores: One per class, 0 where it is absent.
        """
        height, width = labels.shape
        record: dict[str, Any] = {"picture": name, "height": height, "width": width}
        pixels = np.bincount(labels.reshape(-1), minlength=len(self.names) + 1)[1:]
        record["classes"] = [[round(score, 4), int(count)] for score, count in zip(scores, pixels)]
        if "labels" in self.formats:
            self._save(label_png(labels), "labels", f"{stem}.png", format="PNG")
        if "overlays" in self.formats:
            captions = {int(k): f"{self.names[k - 1]} {scores[k - 1]:.2f}" for k in np.flatnonzero(pixels) + 1}
            factor = max(1, OVERLAY_SIDE // max(labels.shape))
            large = (array.repeat(factor, 0).repeat(factor, 1) for array in (picture, labels))
            drawn = Image.fromarray(overlay(*large, captions=captions))
            self._save(drawn, "overlays", f"{stem}.jpg", format="JPEG", quality=92, subsampling=0)  # keeps lines crisp
        if "yolo" in self.formats:
            self._place("yolo", f"{stem}.txt").write_text(yolo_lines(labels, self.names), encoding="utf-8")
        if "coco" in self.formats:
            record["annotations"] = [
                annotation(part, int(label), scores[label - 1])
                for label in np.flatnonzero(pixels) + 1
                for part in (instances(labels == label) if self.split_instances else [labels == label])
            ]
        with self._lock, self._record_path.open("a", encoding="utf-8") as record_file:
            record_file.write(json.dumps(record) + "\n")

    def _save(self, image: Image.Image, kind: str, name: str, **options: Any) -> None:
        """Write a picture whole or not at all, so that a run killed here leaves nothing half done."""
        target = self._place(kind, name)
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        image.save(partial, **options)
        partial.replace(target)

    def _place(self, kind: str, name: str) -> Path:
        target = self.folder / kind / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def finish(self) -> None:
        """Write what covers all pictures: classes.json, scores.csv, for coco predictions.json, for yolo classes.txt."""
        with self._record_path.open(encoding="utf-8") as record_file:
            next(record_file)
            records = sorted((json.loads(line) for line in record_file), key=lambda record: str(record["picture"]))
        classes = {str(i): name for i, name in enumerate(self.names, start=1)}
        (self.folder / "classes.json").write_text(json.dumps(classes, indent=2) + "\n", encoding="utf-8")
        with (self.folder / "scores.csv").open("w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            writer.writerow(("picture", "class", "score", "pixels"))
            for record in records:
                writer.writerows((record["picture"], name, *row) for name, row in zip(self.names, record["classes"]))
        if "yolo" in self.formats:
            self._place("yolo", "classes.txt").write_text("".join(f"{name}\n" for name in self.names), encoding="utf-8")
        if "coco" in self.formats:
            (self.folder / "predictions.json").write_text(json.dumps(self._coco(records)) + "\n", encoding="utf-8")

    def _coco(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, record in enumerate(records, start=1):
            size = {"height": record["height"], "width": record["width"]}
            images.append({"id": image_id, "file_name": record["picture"], **size})
            for entry in record["annotations"]:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
        categories = [{"id": i, "name": name} for i, name in enumerate(self.names, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}
