"""What to look for: references from folders or COCO files, and saved memories. Nothing here imports torch."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fsdino.base.reference import Reference
from fsdino.data.class_index import ClassIndex
from fsdino.data.files import DataSetError
from fsdino.data.readers.coco import CocoIndex
from fsdino.data.readers.folder import LAYOUTS, folder
from fsdino.data.readers.yolo import is_yolo, yolo_folder
from fsdino.predict.hints import HINTS, check_mask, hinted_folder
from fsdino.predict.memory_file import MEMORY_SUFFIX, load_memory

YOLO = "images/, labels/*.txt and data.yaml of YOLO's segmentation format"


@dataclass
class Support:
    """Everything to look for, by class name: images of what is still to be remembered, files of what already is."""

    references: dict[str, list[Reference]] = field(default_factory=dict)
    memory_files: dict[str, Path] = field(default_factory=dict)

    def class_names(self) -> list[str]:
        """All class names, sorted; label k of every output is the k-th of them, counted from 1."""
        return sorted({*self.references, *self.memory_files})

    def digest(self) -> str:
        """Name the content, so that a later run can tell whether it looks for the same things."""
        digest = hashlib.sha256()
        for name in self.class_names():
            # A folder's name may be any bytes, also such as are not UTF-8.
            digest.update(name.encode("utf-8", "surrogateescape"))
            for reference in self.references.get(name, []):
                digest.update(content(reference))
            if name in self.memory_files:
                digest.update(self.memory_files[name].read_bytes())
        return digest.hexdigest()[:16]


def content(reference: Reference) -> bytes:
    """Everything of a reference that counts, to tell references apart; its image and mask are arrays."""
    # What is not given adds no bytes, so runs made with masks alone keep the digest that they were recorded with.
    image, mask = np.asarray(reference.image), reference.mask
    hints = {name: value for name in HINTS if (value := getattr(reference, name)) is not None}
    said = json.dumps([hints, reference.negative]) if hints or reference.negative else ""
    return f"{image.shape}".encode() + image.tobytes() + (b"" if mask is None else mask.tobytes()) + said.encode()


def read_support(support: str | Path, *, images: str | Path | None = None, max_references: int = 10) -> Support:
    """Read what to look for, in any of the forms below.

    - a folder per class, image and mask of one name side by side: `refs/cat/a.jpg` + `refs/cat/a.png`
      (or `a_mask.png`); also the folder of a single class itself
    - the same with points, a box or a scribble in place of masks: `refs/cat/a.jpg` + `refs/cat/a.json`, see
      `hinted_folder`
    - trees `refs/images/<class>/` and `refs/masks/<class>/`, or `images/`, `labels/` and `classes.json`
    - a COCO-format JSON with masks
    - a folder of YOLO's segmentation format, or its `data.yaml`
    - a saved memory (`cat.fsmem`), a folder of them, or a glob (`mems/*.fsmem`); the class's name is inside

    Args:
        images: folder of the images of a COCO JSON; None takes `images/` beside it, or else the JSON's own folder.
        max_references: images used per class, the first in the order of their names; 0 takes all.

    Raises:
        ValueError: if nothing usable is there, a mask is missing, empty or of another size, or two names are one.
    """
    if max_references < 0:
        raise ValueError(f"max_references {max_references} is not a number of images; 0 takes all.")
    path = Path(support)
    if not path.exists() and glob.has_magic(str(support)):
        files = [Path(found) for found in sorted(glob.glob(str(support), recursive=True))]
        if not files or any(file.suffix != MEMORY_SUFFIX or not file.is_file() for file in files):
            raise ValueError(
                f"support '{support}' matches other files than saved memories, or none; give '*{MEMORY_SUFFIX}'."
            )
        return _from_memories(files)
    if not path.exists():
        raise ValueError(f"support '{path}' does not exist; expected one of: {_layouts()}.")
    if path.is_file() and path.suffix == MEMORY_SUFFIX:
        return _from_memories([path])
    if path.is_file() and path.suffix.lower() == ".json":
        beside = path.parent / "images"
        image_dir = Path(images) if images else (beside if beside.is_dir() else path.parent)
        return _from_index(CocoIndex(path, image_dir, name=path.stem), max_references)
    # Before the plain layouts, which take a folder called labels for one of label maps.
    if is_yolo(path):
        return _from_index(yolo_folder(path, name=str(path)), max_references)
    if path.is_file():
        raise ValueError(f"support '{path}' is a single file; expected one of: {_layouts()}.")
    if memories := sorted(file for file in path.glob(f"*{MEMORY_SUFFIX}") if not file.name.startswith(".")):
        return _from_memories(memories)
    # Before the plain layouts, which would take an image with a JSON for one without a mask.
    if hinted := hinted_folder(path, max_references):
        return Support(references=hinted)
    return _from_index(folder(path, name=str(path)), max_references)


def _layouts() -> str:
    hints = "<class>/<name>.jpg with points, a box or a scribble in <name>.json"
    return "; ".join((*LAYOUTS, hints, "a COCO JSON with masks", YOLO, f"a saved memory (*{MEMORY_SUFFIX})"))


def _from_memories(files: Sequence[Path]) -> Support:
    found: dict[str, Path] = {}
    for file in files:
        name = load_memory(file).class_name
        if name in found:
            raise ValueError(f"'{found[name]}' and '{file}' both remember class '{name}'; take one of them away.")
        found[name] = file
    return Support(memory_files=found)


def _from_index(index: ClassIndex, max_references: int) -> Support:
    references: dict[str, list[Reference]] = {}
    for class_id, name in index.class_names.items():
        images = index.images(class_id)
        chosen = images[: max_references or None]
        if chosen and name in references:
            raise DataSetError(
                f"support '{index.name}' has two classes of the name '{name}'; rename one, or give both one number."
            )
        if chosen:
            references[name] = [_reference(index, image, class_id) for image in chosen]
    if not references:
        raise DataSetError(f"support '{index.name}' holds no image with a mask; expected one of: {_layouts()}.")
    return Support(references=references)


def _reference(index: ClassIndex, image_id: str, class_id: int) -> Reference:
    image, mask = index.load_image(image_id), (index.load_mask(image_id, class_id) == 1).astype(np.uint8)
    name = f"{image_id} ({index.class_names[class_id]})"
    check_mask(mask, image, name)
    return Reference(image, mask=mask, name=name)
