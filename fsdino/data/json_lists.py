"""JSON files of data sets: whole, or their lists one entry at a time and an entry again by its place in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fsdino.base.texts import plain_json
from fsdino.data.files import DataSetError

CHUNK = 1 << 20  # bytes read at a time; an entry that is longer is read whole
_DECODER, _SPACE = json.JSONDecoder(), re.compile(r"[ \t\n\r]*")


def json_lists(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, Any, int, int]]:
    """The entries of some lists of a JSON object, in the order of the file.

    A few megabytes are held at a time, however long the lists are.

    Yields:
        The list's key, an entry, and where the entry begins and ends in the file, in bytes.

    Raises:
        DataSetError: where the file is no JSON object, lacks one of the keys, or one of them is no list.
    """
    seen = set()
    with path.open("rb") as file:
        window = _Window(file)
        try:
            window.take("{")
            while window.peek() != "}":
                key = window.value()[0]
                window.take(":")
                if key in seen:
                    raise ValueError(f"it has {key!r} twice")
                seen.add(key)
                if key not in keys:
                    window.value()
                else:
                    window.take("[")
                    while window.peek() != "]":
                        yield key, *window.value()
                        if window.peek() != "]":
                            window.take(",")
                    window.take("]")
                if window.peek() != "}":
                    window.take(",")
            window.take("}")
            if window.peek():
                raise ValueError("something stands behind its end")
        except ValueError as error:
            raise DataSetError(f"'{path}' is no JSON file ({error}): copy or download it again.") from error
    if missing := [repr(key) for key in keys if key not in seen]:
        raise DataSetError(f"'{path}' has no {', '.join(missing)}: it is no COCO-format file with masks.")


def read_json(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Read a JSON object that must have certain keys."""
    try:
        raw = plain_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataSetError(f"'{path}' is no JSON file ({error}): copy or download it again.") from error
    missing = [key for key in keys if not isinstance(raw, dict) or key not in raw]
    if missing:
        lacking = ", ".join(repr(key) for key in missing)
        raise DataSetError(f"'{path}' has no {lacking}: it is no COCO-format file with masks.")
    return raw


def json_at(file: BinaryIO, start: int, end: int) -> Any:
    """One entry of a list again, by its place; a ValueError where the file has changed since."""
    file.seek(start)
    return plain_json(file.read(end - start).decode())


class _Window:
    """What is looked at of a file, as one character a byte (Latin-1), so that places in the text are places on disk."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.text, self.at, self.before = file, "", 0, 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def take(self, wanted: str) -> None:
        """Step over a character."""
        if (found := self.peek()) != wanted:
            raise ValueError(f"expected {wanted!r} at byte {self.before + self.at}, found {found!r}")
        self.at += 1

    def value(self) -> tuple[Any, int, int]:
        """Step over a value; itself, and where it begins and ends in the file."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except RecursionError as error:
                raise ValueError("it is nested too deeply") from error
            except ValueError:
                # The value may go on behind the window.
                if self._more():
                    continue
                raise
            if end == len(self.text) and self._more():  # so may a number
                continue
            own = self.text[self.at : end]
            if not own.isascii():
                value = plain_json(own.encode("latin-1").decode())
            place = self.before + self.at, self.before + end
            self.at = end
            return value, *place

    def _more(self) -> bool:
        rest = self.text[self.at :]
        # Twice as much each time, so that a value of any length is tried few times.
        found = self.file.read(max(CHUNK, len(rest)))
        self.before += self.at
        self.text, self.at = rest + found.decode("latin-1"), 0
        return bool(found)
