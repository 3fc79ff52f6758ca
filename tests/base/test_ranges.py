"""Ranges: checked where something is made or called, and there for every count that can be set."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from fsdino.base.ranges import Batch, Share, within_ranges
from fsdino.cli import COMMANDS, resolve
from fsdino.pipeline.recipe import Recipe
from tests.small import refuses

# No amounts: addresses, numbers that a server gave, and a block, which the encoder has or has not.
NAMES = {"port", "task", "project", "tap"}


@within_ranges
def halved(batch: Batch, name: str = "", share: Share | None = None, free: int = 0) -> tuple[int, float | None, int]:
    """Any function."""
    return batch // 2, share, free


def test_a_call_within_its_ranges_is_as_it_was() -> None:
    assert halved(7, share=0.5, free=-3) == (3, 0.5, -3)
    assert halved.__doc__ == "Any function."


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch": 0}, "batch: expected greater than or equal to 1, got 0; correct it."),
        ({"batch": 10**30}, "batch: expected less than or equal to 16384, got 1000000"),
        ({"batch": True}, "batch: expected a valid integer, got True"),
        ({"batch": "3"}, "batch: expected a valid integer, got '3'"),
        ({"batch": 1, "share": float("nan")}, "share: expected less than or equal to 1, got nan"),
    ],
)
def test_a_call_out_of_a_range_is_refused(given: dict[str, Any], words: str) -> None:
    refuses(words, halved, **given)


def counts(kind: Any, at: str) -> Iterator[tuple[str, str]]:
    """Whole numbers that can be given to a function, or to a dataclass and those in it, with their annotations."""
    names = [one.name for one in fields(kind)] if is_dataclass(kind) else None
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if is_dataclass(hint):
            yield from counts(hint, f"{at}.{name}")
        elif name != "return" and (names is None or name in names) and re.search(r"\bint\b", str(hint)):
            yield f"{at}.{name}", str(hint)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_count_has_an_upper_bound(command: str) -> None:
    if command in ("cvat", "label-studio", "pre-annotate", "serve"):
        pytest.importorskip({"cvat": "cvat_sdk", "serve": "prometheus_client"}.get(command, "fastapi"))
    made_of = Recipe if command in ("run", "plan") else resolve(COMMANDS[command][0])
    found = dict(counts(made_of, command))
    unbounded = [at for at, hint in found.items() if "le=" not in hint and not hint.startswith("dict[")]
    assert [at for at in unbounded if at.rpartition(".")[2] not in NAMES] == []
