"""`fsdino data NAME --download`: the archives of a data set from its official home, checked, unpacked, remembered."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock, Timeout

from fsdino.data.archives import unpack
from fsdino.data.catalog import DataSet, Source
from fsdino.data.files import DataSetError
from fsdino.data.transfer import Transfer, file_digest

LOCK_FILE = "downloads.json"  # what was fetched: url -> sha256, bytes, day
ALLOWED = 2  # sizes are rounded: an archive up to so many times as large is believed
_SLACK = 50_000_000  # bytes, for the rounding of small ones


def download(entry: DataSet, root: Path, accepted: bool = False) -> list[str]:
    """Fetch what of a data set is missing; the same call goes on after an interruption.

    Args:
        accepted: whether its licence is; otherwise it is asked for, where somebody can answer.

    Returns:
        What was fetched, as lines.

    Raises:
        ValueError: if it cannot be fetched without a login, the licence is not accepted, or an archive is not what it
            should be.
        OSError: without network, or with too small a disk.
    """
    if not entry.sources:
        raise DataSetError(by_hand(entry, root))
    todo = [source for source in entry.sources if not is_there(source, root)]
    if not todo:
        return [f"{entry.title} is there already"]
    print(f"{entry.title}, licence: {entry.licence}.")
    insist_on_licence(entry, accepted)
    root.mkdir(parents=True, exist_ok=True)
    check_room(todo, root)
    try:
        # Two downloads into one folder would write one file.
        with FileLock(root / ".downloads.lock", timeout=0):
            return [fetch(source, root) for source in todo]
    except Timeout as error:
        raise DataSetError(f"another process downloads into '{root}': wait for it, or give another --root.") from error


def by_hand(entry: DataSet, root: Path) -> str:
    """What to fetch from where, and where to put it, for a data set that has no archive for everybody."""
    if not entry.requirements:
        return f"data set '{entry.name}' ({entry.title}) is not one to download: it is your own, or comes with fsdino."
    places: dict[str, list[str]] = {}
    for one in entry.requirements:
        if not one.optional:
            places.setdefault(one.fetch, []).append(f"'{root / one.folders[0] / one.path}'")
    ways = "; ".join(f"fetch {fetch}, so that {' and '.join(paths)} are there" for fetch, paths in places.items())
    return f"{entry.title} cannot be fetched without a login or a browser: {ways}."


def is_there(source: Source, root: Path) -> bool:
    """Whether what an archive gives lies under the root."""
    return root.is_dir() and any(root.glob(source.gives))


def insist_on_licence(entry: DataSet, accepted: bool) -> None:
    """Go on only where the licence is accepted, by the switch or by an answer."""
    if accepted:
        return
    if not sys.stdin.isatty():
        raise DataSetError(f"the licence of '{entry.name}' is not accepted: read it, then add --accept-licence.")
    if input("Do you accept it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise DataSetError(f"the licence of '{entry.name}' was not accepted: nothing was fetched.")


def check_room(todo: list[Source], root: Path) -> None:
    """Refuse to begin what the disk cannot hold: all that is unpacked, and the largest archive, kept until then."""
    # One archive at a time lies beside the data.
    sizes = [1e6 * source.megabytes for source in todo]
    needed = sum(size * source.grows for size, source in zip(sizes, todo)) + max(sizes)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OSError(
            f"about {needed / 1e9:.1f} GB are needed in '{root}', {free / 1e9:.1f} GB are free: make room, or give "
            "another --root."
        )


def fetch(source: Source, root: Path) -> str:
    """One archive: fetched, compared, unpacked and removed."""
    archive = root / PurePosixPath(urlparse(source.url).path).name
    most = int(1e6 * source.megabytes * ALLOWED) + _SLACK
    # A whole archive lies here where an earlier call was stopped while it unpacked, or somebody put it here.
    if not archive.is_file():
        transfer = Transfer(source.url, archive.with_name(f"{archive.name}.part"), most)
        transfer.run()
        os.replace(transfer.part, archive)
        transfer.restart()
    record = read_lock(root / LOCK_FILE)
    try:
        noted, entry = compare(source, archive, record.get(source.url, {}))
        files = unpack(archive, root, max_bytes=int(most * max(source.grows, 1.0)))
    except DataSetError:
        # Kept it would be refused again by every further call.
        archive.unlink()
        raise
    if not is_there(source, root):
        raise DataSetError(
            f"{source.url} gave no '{source.gives}' in '{root}': its home has changed; fetch it by hand."
        )
    # Only now: the digest of what could not be unpacked must not be held against a good file later.
    write_lock(root / LOCK_FILE, {**record, source.url: entry})
    archive.unlink()
    return f"{archive.name}: {files:,} files, {noted}"


def compare(source: Source, archive: Path, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Hold an archive to its published digest or, where there is none, to that of the first download.

    Returns:
        What it was held to, in words, and its entry for the record.

    Raises:
        DataSetError: if it is another file.
    """
    kind, _, expected = source.checksum.partition(":")
    if not source.checksum:
        kind, expected = "sha256", str(known.get("sha256", ""))
    got = file_digest(archive, kind)
    if expected and got != expected:
        whose = "as published" if source.checksum else f"as on {known.get('day', 'the first day')}, see {LOCK_FILE}"
        raise DataSetError(
            f"{source.url} came with {kind} {got}, expected {expected} {whose}: it was removed; try again, and if it "
            "comes again, look at its home."
        )
    sha256 = got if kind == "sha256" else file_digest(archive, "sha256")
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    entry = {"sha256": sha256, "bytes": archive.stat().st_size, "day": known.get("day", day)}
    if source.checksum:
        return f"{kind} as published", entry
    words = "sha256 as in the first download" if expected else f"no digest is published: its sha256 {sha256} is noted"
    return words, entry


def read_lock(path: Path) -> dict[str, Any]:
    """What was fetched before, by address."""
    if not path.is_file():
        return {}
    try:
        return {str(url): dict(entry) for url, entry in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataSetError(f"'{path}' is no record of downloads ({error}): restore or remove it.") from error


def write_lock(path: Path, record: dict[str, Any]) -> None:
    """Write the record whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(aside, path)
