"""Saved memories in a folder, known by number: whole or not there, whatever ends the process."""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from fsdino.predict.memory_file import MEMORY_SUFFIX, SavedMemory, load_memory, save_memory

ID_PATTERN = "^[0-9a-f]{16}$"
LOGGER = logging.getLogger("fsdino.serve")


class Full(Exception):
    """The folder holds as many memories as it may."""


@dataclass(frozen=True)
class Record:
    """What is known of a memory without opening it."""

    id: str
    class_name: str
    fingerprint: str
    bytes: int
    created: datetime


class MemoryStore:
    """The memories of a folder; safe to use from several threads.

    Args:
        folder: made when missing. Files that are damaged are left where they are and not listed.
        limit: most memories.

    Raises:
        ValueError: if another service uses the folder.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self.folder.mkdir(parents=True, exist_ok=True)
        # The list is held in memory, so two services in one folder would not see each other's files. The system lets
        # go of the lock when the process ends, however it does.
        self._held = FileLock(self.folder / ".lock")
        try:
            self._held.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another service keeps its memories in '{folder}'; choose another --folder.") from error
        self._lock = threading.Lock()
        for left in self.folder.glob(f".*{MEMORY_SUFFIX}.part"):
            left.unlink()
        self._records = {record.id: record for path in self._files() if (record := _read(path))}

    def _files(self) -> list[Path]:
        return [path for path in sorted(self.folder.glob(f"*{MEMORY_SUFFIX}")) if re.match(ID_PATTERN, path.stem)]

    def path(self, memory_id: str) -> Path:
        """The file of a memory."""
        return self.folder / f"{memory_id}{MEMORY_SUFFIX}"

    def records(self) -> list[Record]:
        """All memories, the oldest first."""
        with self._lock:
            return sorted(self._records.values(), key=lambda record: (record.created, record.id))

    def get(self, memory_id: str) -> Record | None:
        """One memory; None where there is none of that number."""
        with self._lock:
            return self._records.get(memory_id)

    def load(self, record: Record) -> SavedMemory:
        """The memory itself, its digest checked."""
        return load_memory(self.path(record.id), record.fingerprint)

    def add(self, memories: Sequence[SavedMemory], data: bytes | None = None) -> list[Record]:
        """Keep memories, all or none; gives their records.

        Args:
            memories: of one or more classes.
            data: the file of the only one, which is kept byte by byte; None writes new ones.

        Raises:
            Full: if there is no room for all.
        """
        with self._lock:
            if len(self._records) + len(memories) > self.limit:
                raise Full
            # The numbers say nothing of the class, whose name may be anything.
            paths = [self.path(secrets.token_hex(8)) for _ in memories]
            try:
                records = [_record(_write(one, path, data), one) for one, path in zip(memories, paths)]
            except OSError:
                for path in paths:
                    path.unlink(missing_ok=True)
                raise
            self._records |= {record.id: record for record in records}
        return records

    def remove(self, memory_id: str) -> None:
        """Delete a memory and its file."""
        with self._lock:
            self.path(memory_id).unlink(missing_ok=True)
            self._records.pop(memory_id, None)

    def close(self) -> None:
        """Let another service have the folder."""
        self._held.release()


def _read(path: Path) -> Record | None:
    try:
        return _record(path, load_memory(path))
    except ValueError as error:
        LOGGER.warning("not served: %s", error)
        return None


def _write(memory: SavedMemory, path: Path, data: bytes | None) -> Path:
    if data is None:
        return save_memory(memory, path)
    # Rounding what was rounded before would change it once more.
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(data)
    return partial.replace(path)


def _record(path: Path, memory: SavedMemory) -> Record:
    stat = path.stat()
    created = datetime.fromtimestamp(stat.st_mtime, timezone.utc)
    return Record(path.stem, memory.class_name, memory.fingerprint, stat.st_size, created)
