"""Every method by name, FS-DINO included, built from plain arguments."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

# Imported when asked for: transformers, which the SAM2 systems stand on, takes seconds.
METHODS: dict[str, str] = {
    "fsdino": "fsdino.models.segmenter:FewShotSegmenter",
    "sansa": "fsdino.methods.sansa.method:Sansa",
    "fssam": "fsdino.methods.fssam.method:Fssam",
    "persam": "fsdino.methods.persam:PersamMethod",
    "refined": "fsdino.methods.refined:RefinedMethod",
    "prototype": "fsdino.methods.prototype:PrototypeMethod",
    "chain": "fsdino.methods.chain:ChainMethod",
    "all_foreground": "fsdino.methods.prototype:AllForeground",
}
# Arguments of every `build` that name files: what a saved method does not need, since it brings its weights along.
FILE_ARGUMENTS = frozenset({"weights", "sha256", "encoder_weights", "checkpoint", "published", "means"})


def method_class(name: str) -> Any:
    """The class of a method, by its key in `METHODS`."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; use one of {', '.join(METHODS)}.")
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)


def build(name: str, **args: Any) -> Any:
    """A method in eval mode from its name (a key of `METHODS`) and the arguments of its `build`.

    Raises:
        ValueError: for an unknown name, or arguments that the method does not take.
    """
    make: Callable[..., Any] = method_class(name).build
    try:
        method = make(**args)
    except TypeError as error:
        raise ValueError(f"method {name!r} does not take these arguments: {error}.") from error
    method.built_with = {key: value for key, value in args.items() if key not in FILE_ARGUMENTS}
    return method.eval()
