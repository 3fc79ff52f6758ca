"""Ranges of what can be set, declared where it is annotated and checked where it is made, whoever makes it."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=1, le=10_000_000)]
Number = Annotated[int, Field(ge=0, le=10_000_000)]
Width = Annotated[int, Field(ge=1, le=16_384)]  # channels, heads
Depth = Annotated[int, Field(ge=1, le=256)]
Side = Annotated[int, Field(ge=1, le=8_192)]  # pixels of a network's square
Block = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Workers = Annotated[int, Field(ge=0, le=1_024)]  # processes
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


@cache
def _adapters(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    # Texts are checked by what they name; a path may stand for one.
    return {name: TypeAdapter(hint) for name, hint in hints.items() if hint not in (str, str | None, Any)}


def check_fields(part: Any) -> None:
    """Check a dataclass's values against its annotations, for its `__post_init__`; numbers are not read from texts.

    Raises:
        ValueError: for the first that is of another kind or out of its range.
    """
    kind: type = type(part)
    for name, adapter in _adapters(kind).items():
        value = getattr(part, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            first = error.errors()[0]["msg"].removeprefix("Input should be ").rstrip(".")
            raise ValueError(
                f"{name}: expected {first}, got {value!r:.80}; correct it in {type(part).__name__}."
            ) from error
