"""Which files this machine has compared with their digests already: not every process reads a whole cache for that.

A note in the folder for temporary files names a file by its place on the disk, size, time and digest: one that was
changed or replaced is read again, on any machine once. What rots on a disk without a change of these is found only
where the file is new to the machine.
"""

from __future__ import annotations

import getpass
import hashlib
import tempfile
import time
from pathlib import Path

# Nanoseconds: within them a file may be changed a second time without another time.
TOO_FRESH = 2_000_000_000


def was_seen(path: Path, digest: str) -> bool:
    """Whether the file as it lies there was found to have this digest before."""
    return _note(path, digest).is_file()


def note_seen(path: Path, digest: str) -> None:
    """Note that the file as it lies there has this digest; not where it has been written a moment ago."""
    if time.time_ns() - path.stat().st_mtime_ns < TOO_FRESH:
        return
    note = _note(path, digest)
    try:
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.touch()
    except OSError as error:
        # It only saves reading: the next process reads again.
        print(f"no note that {path.name} was checked ({error}); it will be read again")


def _note(path: Path, digest: str) -> Path:
    found = path.stat()
    told = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {digest}"
    name = hashlib.sha256(told.encode()).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"fsdino-checked-{getpass.getuser()}" / name
