"""Folders of references in which points, a box or a scribble stand for a mask. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.base.reference import Reference, prompt_points
from fsdino.base.texts import plain_json
from fsdino.data.files import DataSetError, shown
from fsdino.data.images import IMAGE_SUFFIXES, read_image, read_mask
from fsdino.data.readers.folder import MASK_SUFFIXES

HINTS = ("points", "labels", "box", "scribble")


def hinted_folder(path: Path, max_references: int = 0) -> dict[str, list[Reference]]:
    """Read a folder per class, or one class's folder, in which some images have a JSON of hints beside them.

    `dog.jpg` has `dog.json` (`{"points": [[x, y], ...], "labels": [1, 0], "box": [x0, y0, x1, y1], "scribble": [[x, y],
    ...], "negative": true}`, each optional), or a mask `dog.png` or `dog_mask.png`, or a mask and a JSON that says
    `negative` alone.

    Args:
        path: what is hidden in it (`.x`) is left out.
        max_references: images read per class, the first in the order of their names; 0 reads all.

    Returns:
        Class name to references, sorted; empty where no image has a JSON beside it.
    """
    folders = [path, *(child for child in shown(path) if child.is_dir())]
    if not any(_images(folder).get(file.stem) for folder in folders for file in _hints(folder)):
        return {}
    found = {folder.resolve().name: _read_class(folder, max_references) for folder in folders}
    return {name: references for name, references in found.items() if references}


def _hints(folder: Path) -> list[Path]:
    return [file for file in shown(folder) if file.suffix == ".json"]


def _images(folder: Path) -> dict[str, list[Path]]:
    """Image files by stem, `x_mask` under `x`; the image itself comes first, its mask after it."""
    files = [file for file in shown(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    # Of two files of one name, the mask is the one that says so, or else the one whose kind can be a mask: a.jpg is
    # the image and a.png its mask.
    grouped: dict[str, list[Path]] = {}
    for file in sorted(files, key=lambda file: (file.stem.endswith("_mask"), file.suffix.lower() in MASK_SUFFIXES)):
        grouped.setdefault(file.stem.removesuffix("_mask"), []).append(file)
    return dict(sorted(grouped.items()))


def _read_class(folder: Path, max_references: int) -> list[Reference]:
    images = _images(folder)
    for file in _hints(folder):
        if file.stem not in images:
            raise DataSetError(f"'{file}' has no image of the same name: add '{file.stem}.jpg' or remove the JSON.")
    chosen = list(images.items())[: max_references or None]
    return [_read(folder, stem, files) for stem, files in chosen]


def _read(folder: Path, stem: str, files: list[Path]) -> Reference:
    said, image = folder / f"{stem}.json", read_image(files[0])
    values = _values(said) if said.is_file() else {}
    negative = values.pop("negative", False)
    mask = (read_mask(files[1], 128) == 1).astype(np.uint8) if len(files) > 1 else None
    name = f"{folder.name}/{stem}"
    if mask is None and not values:
        raise DataSetError(f"image '{files[0]}' has neither a mask nor hints: add '{stem}.png' or '{stem}.json'.")
    if mask is not None:
        check_mask(mask, image, name)
    reference = Reference(image, mask=mask, negative=negative, name=name, **values)
    if mask is None:
        # What the model would say later, and without the file's name.
        prompt_points(replace(reference, name=f"'{said}'"), image.shape[:2], image.shape[:2])
    return reference


def check_mask(mask: np.ndarray, image: np.ndarray, name: str) -> None:
    """Raise a DataSetError unless a reference's mask is of its image's size and not empty."""
    # Here and not in the model, so that the message names the file and comes before a model is loaded.
    if mask.shape != image.shape[:2]:
        raise DataSetError(
            f"{name}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels and the image "
            f"{image.shape[1]}x{image.shape[0]} (width x height); export the mask at the image's size."
        )
    if not mask.any():
        raise DataSetError(f"mask of '{name}' has no foreground pixel; a reference needs at least one.")


def _values(file: Path) -> dict[str, Any]:
    try:
        values = plain_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataSetError(f"'{file}' is not JSON ({error}); repair it or give a mask.") from error
    known = (*HINTS, "negative")
    if not isinstance(values, dict) or set(values) - set(known):
        raise DataSetError(f"'{file}' holds something else than hints: expected an object with {', '.join(known)}.")
    # JSON's own true alone: "false" as text would count as true.
    if not isinstance(values.get("negative", False), bool):
        raise DataSetError(f"'{file}': negative is true or false without quotes, got {values['negative']!r}.")
    return values
