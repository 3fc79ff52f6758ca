"""The folder that predict writes: files per image, and the record by which a second run continues the first."""

from __future__ import annotations

import csv
import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.base.result import LabelMap
from fsdino.predict.formats import MAX_CLASSES
from fsdino.predict.images import Source
from fsdino.predict.record import Entry, check_settings, read_record, write_record
from fsdino.predict.writers import TEXT, WRITERS

RECORD_FILE = "progress.jsonl"
SUMMARIES = ("classes.json", "scores.csv", *(file for writer in WRITERS.values() for file in writer.summaries))


class Outputs:
    """Writes the results of a run; `write` is safe to call from several threads.

    Args:
        folder: made when missing.
        names: class names in the order of their labels 1, 2, ...
        formats: names of `WRITERS`.
        settings: what the results depend on; a folder with results of other settings is refused.
        images: the images of this run by name, each with the file that it comes from.
        split_instances: whether the COCO file has an annotation per connected part.
        overwrite: start over instead of continuing: what an earlier run wrote here is removed.

    Attributes:
        done: names of the images that are finished: made of the same file, and all that was written is there.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        formats: Sequence[str],
        settings: Mapping[str, Any],
        images: Mapping[str, Source],
        *,
        split_instances: bool = False,
        overwrite: bool = False,
    ) -> None:
        if unknown := [name for name in formats if name not in WRITERS] or ([] if formats else ["nothing"]):
            raise ValueError(f"output format {unknown[0]!r} is unknown; use one or more of {', '.join(WRITERS)}.")
        if len(names) > MAX_CLASSES:
            raise ValueError(f"{len(names)} classes at once; a label map holds {MAX_CLASSES}, so run them in parts.")
        self.folder, self.names = Path(folder), list(names)
        chosen = {kind: writer for kind, writer in WRITERS.items() if kind in formats}
        self._writers = {kind: writer(self.folder, names, split_instances) for kind, writer in chosen.items()}
        self._images, self._stems = dict(images), file_stems(images)
        self._record_path = self.folder / RECORD_FILE
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self._clear()
        # Through JSON, since they are compared with settings read from a file, where tuples have become lists.
        self.done = self._open_record(json.loads(json.dumps({**settings, "classes": self.names})))

    def _clear(self) -> None:
        """Remove what an earlier run wrote, as far as its record tells."""
        # A damaged record tells nothing, and starting over is what its message asks for.
        with suppress(ValueError):
            settings, older = read_record(self._record_path)
            self._remove({*(SUMMARIES if settings else ()), *_files_of(older)})
        self._record_path.unlink(missing_ok=True)

    def _open_record(self, settings: dict[str, Any]) -> set[str]:
        """Keep what holds of an older record and remove the files of the rest; gives the images that are done."""
        before, older = read_record(self._record_path)
        check_settings(self._record_path, before, settings)
        ours = {file for name in self._images for file in self._files(name)}
        kept = [entry for entry in older if self._holds(entry, ours)]
        # Removed before the record forgets them: a run killed in between removes the rest the next time.
        self._remove(_files_of(older) - _files_of(kept))
        write_record(self._record_path, settings, kept)
        return {entry["image"] for entry in kept} & self._images.keys()

    def _holds(self, entry: Entry, ours: set[str]) -> bool:
        """Whether an image of this run is finished, or one of another run has no file that this run writes."""
        name = entry["image"]
        if name not in self._images:
            return ours.isdisjoint(_files_of([entry]))
        files = self._files(name)
        same = entry.get("source") == list(self._images[name]) and entry.get("files") == files
        return same and all((self.folder / file).is_file() for file in files)

    def _files(self, name: str) -> list[str]:
        """What is written for one image, relative to the folder."""
        return [f"{kind}/{self._stems[name]}{w.suffix}" for kind, w in self._writers.items() if w.suffix]

    def _remove(self, files: Iterable[str]) -> None:
        for file in files:
            # The record may have been edited: nothing outside of the folder is removed.
            if ".." not in Path(file).parts and not Path(file).is_absolute():
                (self.folder / file).unlink(missing_ok=True)

    def write(self, name: str, image: np.ndarray, found: LabelMap) -> None:
        """Write all files of one image (H, W, 3) uint8 of the run, then record it as done."""
        pixels = np.bincount(found.labels.reshape(-1), minlength=len(self.names) + 1)[1:]
        rows = zip(found.scores.values(), pixels, found.presences.values())
        entry: Entry = {
            "image": name,
            "source": self._images[name],
            "files": self._files(name),
            "height": found.labels.shape[0],
            "width": found.labels.shape[1],
            "classes": [[round(s, 4), int(n), None if p is None else round(p, 4)] for s, n, p in rows],
            "notes": {},
        }
        for kind, writer in self._writers.items():
            target = self.folder / kind / f"{self._stems[name]}{writer.suffix}"
            if writer.suffix:
                target.parent.mkdir(parents=True, exist_ok=True)
            if (note := writer.write(target, image, found)) is not None:
                entry["notes"][kind] = note
        # Last, so that an image counts as done only when all of its files are whole.
        with self._lock, self._record_path.open("a", encoding="utf-8") as record_file:
            record_file.write(json.dumps(entry) + "\n")

    def finish(self) -> int:
        """Write what covers all images; gives the number of the run's images that are finished."""
        # Sorted: threads finish in any order, and the files should not depend on it.
        entries = [entry for entry in read_record(self._record_path)[1] if entry["image"] in self._images]
        entries.sort(key=lambda entry: str(entry["image"]))
        classes = {str(i): name for i, name in enumerate(self.names, start=1)}
        (self.folder / "classes.json").write_text(json.dumps(classes, indent=2) + "\n", encoding="utf-8")
        with (self.folder / "scores.csv").open("w", newline="", **TEXT) as table:
            rows = csv.writer(table)
            rows.writerow(("image", "class", "score", "pixels", "presence"))
            for entry in entries:
                rows.writerows((entry["image"], name, *row) for name, row in zip(self.names, entry["classes"]))
        for writer in self._writers.values():
            writer.finish(entries)
        return len(entries)


def file_stems(names: Iterable[str]) -> dict[str, str]:
    """Image name to what its files are called: the name without suffix, or with it where two would be the same."""
    # Compared in lower case, as Windows and macOS do; `classes` is taken, by a file of that name in YOLO's folder.
    stems = {name: Path(name).with_suffix("").as_posix() for name in names}
    while True:
        counts = Counter(stem.lower() for stem in ("classes", *stems.values()))
        met = {name for name, stem in stems.items() if counts[stem.lower()] > 1 and stem != name}
        if not met:
            return stems
        stems |= {name: name for name in met}


def _files_of(entries: Iterable[Entry]) -> set[str]:
    return {str(file) for entry in entries for file in entry.get("files", ())}
