"""The weights that come with the package, in `fsdino/assets`."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path

BUNDLED = {"tiny": "fsdino_tiny"}  # preset -> folder


def bundled_file(name: str) -> Path:
    """A file of the bundled weights, named without its suffix."""
    path = _assets() / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"the package has no bundled weights {name!r} ({path.name}); make them with `make assets`."
        )
    return path


def bundled_folder(preset: str) -> Path:
    """The folder of a trained segmenter, by a name of `BUNDLED`."""
    folder = _assets() / BUNDLED[preset]
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"the bundled weights of {preset!r} are missing from {folder}; make them with `make assets`."
        )
    return folder


@cache
def bundled_fingerprint(preset: str) -> str:
    """The fingerprint of a trained segmenter, by a name of `BUNDLED`, as it was written beside the weights."""
    told = json.loads((bundled_folder(preset) / "config.json").read_text(encoding="utf-8"))
    return str(told["fingerprint"])


def _assets() -> Path:
    return Path(str(resources.files("fsdino"))) / "assets"
