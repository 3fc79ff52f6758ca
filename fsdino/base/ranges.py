"""Ranges of what can be set, declared where it is annotated and checked where it is made or called, whoever does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, wraps
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=1, le=10_000_000)]
Number = Annotated[int, Field(ge=0, le=10_000_000)]
Width = Annotated[int, Field(ge=1, le=16_384)]  # channels, heads
Depth = Annotated[int, Field(ge=1, le=256)]
Side = Annotated[int, Field(ge=1, le=8_192)]  # pixels of a network's square
Block = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Probability = Annotated[float, Field(gt=0, lt=1)]  # that a pixel is cut at
Workers = Annotated[int, Field(ge=0, le=1_024)]  # processes
Devices = Annotated[int, Field(ge=1, le=256)]  # processes, threads or models, side by side in one machine
# What is held in memory as a whole: a slip of the keys must not fill it.
Batch = Annotated[int, Field(ge=1, le=16_384)]
Images = Annotated[int, Field(ge=0, le=1_024)]  # of their own size, together
Shots = Annotated[int, Field(ge=1, le=1_000)]
Episodes = Annotated[int, Field(ge=1, le=1_000_000)]
Ahead = Annotated[int, Field(ge=1, le=256)]
Strips = Annotated[int, Field(ge=0, le=1_000)]
Seconds = Annotated[int, Field(ge=1, le=86_400)]
Megabytes = Annotated[int, Field(ge=1, le=65_536)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


P = ParamSpec("P")
R = TypeVar("R")


@cache
def _adapters(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    # Texts are checked by what they name; a path may stand for one.
    return {name: TypeAdapter(hint) for name, hint in hints.items() if hint not in (str, str | None, Any)}


@cache
def _ranges(function: Any) -> dict[str, Any]:
    hints = get_type_hints(function, include_extras=True)
    # Whether a range is declared: without one, what a function takes is its own matter.
    return {name: TypeAdapter(hint) for name, hint in hints.items() if "Annotated[" in str(hint)}


def _check(name: str, value: Any, adapter: Any, where: str) -> None:
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]["msg"].removeprefix("Input should be ").rstrip(".")
        raise ValueError(f"{name}: expected {first}, got {value!r:.80}; correct it{where}.") from error


def check_fields(part: Any) -> None:
    """Check a dataclass's values against its annotations, for its `__post_init__`; numbers are not read from texts.

    Raises:
        ValueError: for the first that is of another kind or out of its range.
    """
    kind: type = type(part)
    for name, adapter in _adapters(kind).items():
        _check(name, getattr(part, name), adapter, f" in {kind.__name__}")


def within_ranges(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its arguments checked first, where their annotations have a range; for what a command calls.

    Calling it raises a ValueError for the first that is of another kind or out of its range.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given, ranges = signature.bind(*args, **kwargs).arguments, _ranges(function)
        for name, adapter in ranges.items():
            if name in given:
                _check(name, given[name], adapter, "")
        return function(*args, **kwargs)

    return checked
