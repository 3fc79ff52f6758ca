"""The record of a run: a line of settings, then a line per finished image, which a killed run leaves readable."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fsdino.base.texts import plain_json

Entry = dict[str, Any]


def read_record(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """Read a record: settings and one entry per image, the latest; both empty without a file."""
    if not path.exists():
        return {}, []
    try:
        # A run that is killed while it writes leaves a last line without its end, which [:-1] takes away.
        lines = [dict(plain_json(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        latest = {str(entry["image"]): entry for entry in lines[1:]}
        return (dict(lines[0]["settings"]) if lines else {}), list(latest.values())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"'{path}' is not a record of an earlier run; choose another --out, or start over with --overwrite true."
        ) from error


def write_record(path: Path, settings: Mapping[str, Any], entries: Iterable[Entry]) -> None:
    """Write a record whole or not at all."""
    # Written aside and moved: a run killed here leaves the older record.
    partial = path.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in ({"settings": settings}, *entries))
    partial.replace(path)


def check_settings(path: Path, older: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first setting in which a record differs from now."""
    for key in sorted({*older, *settings}) if older else ():
        if older.get(key) != settings.get(key):
            raise ValueError(
                f"'{path.parent}' holds results of another {key} ({older.get(key)}, now {settings.get(key)}); "
                "choose another --out, or start over with --overwrite true."
            )
