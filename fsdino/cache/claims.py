"""Which process makes which file of a shared folder: claims that one process alone can create, with signs of life.

A claim is taken over once its process is gone: at once where it ran on this machine, else when its file has shown no
sign of life for `STALE` seconds. Claims only save work: what keeps a file whole is `publish`, which never replaces one.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fsdino.base.texts import plain_json

# Seconds between two signs of life; and without one until a claim is taken over, which leaves room for a network file
# system that shows times up to a minute late.
BEAT, STALE = 10.0, 180.0
GONE = (errno.ENOENT, errno.ESTALE)  # the latter where a network file system still knew a file that is deleted


def claim(folder: Path, stem: str, names: Iterable[str]) -> Path | None:
    """The claim `{stem}.claim-N` if it is now this process's, None where another one holds it.

    Args:
        names: what lies in the folder, as it was listed a moment ago.
    """
    start = f"{stem}.claim-"
    held = sorted(int(name.removeprefix(start)) for name in names if name.startswith(start))
    if held and not _is_dead(folder / f"{start}{held[-1]}"):
        return None
    # Taken over by the next number, not by deleting: of several that find a claim dead, one creates its successor.
    path = folder / f"{start}{held[-1] + 1 if held else 0}"
    # Whole before it has its name, as everything here: a claim that does not say whose it is would be waited for.
    temporary = temporary_file(folder)
    temporary.write_text(json.dumps({"host": socket.gethostname(), **_process(os.getpid())}))
    if not publish(temporary, path):
        return None
    for number in held:
        (folder / f"{start}{number}").unlink(missing_ok=True)
    return path


def beat(path: Path) -> None:
    """A sign of life of a claim that this process holds."""
    try:
        os.utime(path)
    except OSError as error:
        # It was taken over, as after a long sleep of the machine; `publish` then finds the other's file.
        if error.errno not in GONE:
            raise


def temporary_file(folder: Path, start: str = "") -> Path:
    """A name that no other process uses; `clear` removes what killed processes left under such names."""
    return folder / f"{start}.{uuid.uuid4().hex}.tmp"


def clear(folder: Path) -> None:
    """Remove all claims and temporary files of a folder in which everything is made."""
    for left in (*folder.glob("*.claim-*"), *folder.glob("*.tmp")):
        left.unlink(missing_ok=True)


def publish(temporary: Path, path: Path, replace: bool = False) -> bool:
    """Give a whole file its name; False, and the file is gone, where another process has been first."""
    try:
        if replace:
            os.replace(temporary, path)
            return True
        # A link, since a rename would replace what another process has published in the meantime.
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        # The latter where one that took the claim over, or has found everything made, has cleared the file away.
        return False
    except OSError as error:
        # File systems without hard links.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        if path.exists():
            return False
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _process(number: int) -> dict[str, Any]:
    """What tells a process from all others; `machine` is None where the system does not say which one it runs on."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Containers of one machine number their processes each from 1.
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        state, *rest = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return {"machine": None, "pid": number, "start": None}
    # One that has ended and is not yet collected (Z, X) does nothing any more.
    return {"machine": machine, "pid": number, "start": None if state in "ZX" else rest[18]}


def _is_dead(path: Path) -> bool:
    try:
        last = path.stat().st_mtime
        told = plain_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        # Let go a moment ago: free at the next look.
        if error.errno not in GONE:
            raise
        return False
    except ValueError:
        # Its process is about to write it, or was killed before it could.
        told = {}
    mine = _process(os.getpid())
    here = mine["machine"] is not None and told.get("machine") == mine["machine"]
    gone = here and _process(told["pid"])["start"] != told["start"]
    return gone or _now(path.parent) - last > STALE


def _now(folder: Path) -> float:
    """The time as the folder's file system has it: clocks of machines differ."""
    probe = temporary_file(folder)
    with probe.open("xb") as file:
        now = os.fstat(file.fileno()).st_mtime
    probe.unlink(missing_ok=True)
    return now
