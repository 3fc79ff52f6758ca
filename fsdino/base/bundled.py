"""What comes with the package: weights in `fsdino/assets`, test lists in `fsdino/data/lists`, recipes."""

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


def bundled_list(name: str) -> Path:
    """A fixed list of test episodes, named with its suffix."""
    folder = _package() / "data" / "lists"
    if not (folder / name).is_file():
        known = ", ".join(sorted(path.name for path in folder.glob("*.json")))
        raise FileNotFoundError(f"the package has no bundled list '{name}'; it has {known}.")
    return folder / name


def bundled_recipes() -> dict[str, Path]:
    """The recipes, by `SYSTEM/NAME`."""
    # A wheel holds them inside the package; in a checkout they lie beside it, where people look for them.
    inside, beside = _package() / "recipes", _package().parent / "recipes"
    folder = inside if inside.is_dir() else beside
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(folder.glob("*/*.yaml"))}


def _assets() -> Path:
    return _package() / "assets"


def _package() -> Path:
    return Path(str(resources.files("fsdino")))
