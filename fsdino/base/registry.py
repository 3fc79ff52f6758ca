"""Every method by name: built from plain arguments, written to a folder, opened again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsdino.base.method import FewShotMethod
from fsdino.base.processes import write_once
from fsdino.base.storage import METHOD_KEY, fingerprint
from fsdino.methods.sam2.sizes import size_and_version

CHECKPOINT_KEY = METHOD_KEY  # where a Lightning checkpoint holds `describe_method(method)`
FORMAT_VERSION = 1
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
# Name -> module and class; imported when asked for, since transformers takes seconds.
METHODS: dict[str, tuple[str, str]] = {
    "all_foreground": ("fsdino.methods.prototype", "AllForeground"),
    "prototype": ("fsdino.methods.prototype", "PrototypeMethod"),
    "persam": ("fsdino.methods.persam", "PersamMethod"),
    "sansa": ("fsdino.methods.sansa.method", "Sansa"),
    "fssam": ("fsdino.methods.fssam.method", "Fssam"),
}


def build_method(name: str, **args: Any) -> FewShotMethod:
    """A method from its name and the arguments of its `build`.

    Args:
        name: A key of `METHODS`.
        args: For the class's `build` (sizes, weights, options).

    Returns:
        The method, in eval mode.

    Raises:
        ValueError: For an unknown name, or arguments that the method does not take.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; use one of {', '.join(METHODS)}.")
    module, cls = METHODS[name]
    build: Callable[..., FewShotMethod] = getattr(import_module(module), cls).build
    try:
        method = build(**args)
    except TypeError as error:
        raise ValueError(f"method {name!r} does not take these arguments: {error}.") from error
    method.description = {"method": name, "args": _plain(method, args)}  # type: ignore[assignment]
    return method.eval()


def _plain(method: FewShotMethod, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that rebuild a method without its weights' files, of which the sizes are kept."""
    plain = {
        key: value for key, value in args.items() if key not in ("weights", "sha256", "encoder_weights", "checkpoint")
    }
    made: Any = method
    if "weights" in args and hasattr(made, "sam2"):
        plain["size"], plain["version"] = size_and_version(made.sam2.net.config)
    if "checkpoint" in args and hasattr(made, "sam_config"):
        plain["config"] = asdict(made.sam_config)
    return plain


def describe_method(method: FewShotMethod) -> dict[str, Any]:
    """What rebuilds a method apart from its weights, in plain values.

    Raises:
        ValueError: When the method was not made by `build_method`.
    """
    description: Any = getattr(method, "description", None)
    if description is None:
        raise ValueError(f"this {type(method).__name__} does not know how it was built; make it with build_method().")
    return {"format_version": FORMAT_VERSION, **description, "threshold": method.threshold}


def save_method(method: FewShotMethod, folder: str | Path, *, half: bool = False) -> Path:
    """Write a method with all of its weights.

    Args:
        method: Made by `build_method`.
        folder: Where to; made when missing.
        half: Store in half precision; `load_method` gives float32 again.

    Returns:
        The folder.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    info = {**describe_method(method), "fingerprint": fingerprint(method)}
    tensors = {name: _stored(tensor, half) for name, tensor in method.state_dict().items()}

    def write() -> None:
        save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
        (target / CONFIG_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")

    write_once(write)
    return target


def load_method(source: str | Path) -> FewShotMethod:
    """Open what `save_method` or a training checkpoint holds.

    Args:
        source: A folder, or a `.ckpt` of `MethodModule`.

    Returns:
        The method in float32, in eval mode.

    Raises:
        FileNotFoundError: When nothing is there.
        ValueError: When it is no method, or weights are missing or unknown.
    """
    path = Path(source)
    if path.suffix == ".ckpt" and path.is_file():
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        info, state = checkpoint.get(CHECKPOINT_KEY), checkpoint.get("state_dict", {})
        tensors = {k.removeprefix("method."): v for k, v in state.items() if k.startswith("method.")}
    elif (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
        info = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(path / WEIGHTS_FILE)
    else:
        raise FileNotFoundError(
            f"no method at '{path}'; give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or a .ckpt."
        )
    if not isinstance(info, dict) or "method" not in info:
        raise ValueError(f"'{path}' holds no method of this package; FS-DINO models are opened with fsdino.load().")
    return _rebuild(info, tensors, str(path))


def _rebuild(info: Mapping[str, Any], tensors: dict[str, Tensor], where: str) -> FewShotMethod:
    method = build_method(info["method"], **info["args"])
    wanted = method.state_dict()
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        lacks, has = ", ".join(missing[:5]) or "nothing", ", ".join(unknown[:5]) or "none"
        raise ValueError(f"'{where}' lacks {lacks} and has unknown {has}; its description belongs to other weights.")
    method.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})
    method.threshold = float(info["threshold"])
    return method


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()
    return tensor.half() if half and tensor.dtype == torch.float32 else tensor
