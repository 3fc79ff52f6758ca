"""Unpacking archives from the internet: nothing outside of the folder, no links, no more than was expected."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from fsdino.data.files import DataSetError

MAX_FILES = 2_000_000
# Photographs unpack to their own size and JSON to ten times that; what grows more is no data set.
MAX_GROWTH = 40
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError)


def unpack(archive: Path, folder: Path, max_bytes: int | None = None, max_files: int = MAX_FILES) -> int:
    """Unpack a zip or tar file into a folder, all of it or nothing; gives the number of files.

    Args:
        max_bytes: most that the files may hold together; by default `MAX_GROWTH` times the archive.

    Raises:
        DataSetError: if it is no archive, damaged, or holds what is not taken: paths out of the folder, links,
            devices, encrypted files, too many files or bytes.
        OSError: if the disk is too small.
    """
    limit = archive.stat().st_size * MAX_GROWTH if max_bytes is None else max_bytes
    # Aside at first: what is refused half-way must not lie among the data. On the same disk, so that moving is free.
    aside = folder / f".unpacking-{archive.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        files = zip_files if zipfile.is_zipfile(archive) else tar_files
        count = sum(1 for _ in files(archive, aside, limit, max_files))
        _merge(aside, folder)
    except DAMAGED as error:
        said = f"{str(error).rstrip('.') or type(error).__name__}"
        raise DataSetError(f"'{archive}' is no whole zip or tar file ({said}): download it again.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return count


def zip_files(archive: Path, target: Path, limit: int, max_files: int) -> Iterator[Path]:
    """Unpack a zip file into an empty folder, file by file."""
    with zipfile.ZipFile(archive) as opened:
        entries = opened.infolist()
        # All sizes are known beforehand, and zipfile reads no more than they say.
        _check_total(archive, sum(entry.file_size for entry in entries), len(entries), limit, max_files)
        _check_room(archive, target, sum(entry.file_size for entry in entries))
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, entry.filename, "is a link or a device")
            if entry.flag_bits & 0x1:
                raise _refused(archive, entry.filename, "is encrypted")
            path = target / _inside(archive, entry.filename)
            if not entry.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                yield path


def tar_files(archive: Path, target: Path, limit: int, max_files: int) -> Iterator[Path]:
    """Unpack a tar file, compressed or not, into an empty folder, file by file."""
    if not hasattr(tarfile, "data_filter"):
        raise DataSetError("this Python cannot unpack tar files safely: use 3.10.12, 3.11.4, 3.12 or later.")
    count = total = 0
    # As a stream: a list of all members would decompress the whole of a bomb before anything is looked at.
    with tarfile.open(archive, "r|*") as opened:
        for member in opened:
            count, total = count + 1, total + member.size
            _check_total(archive, total, count, limit, max_files)
            if not (member.isreg() or member.isdir()):
                raise _refused(archive, member.name, "is a link or a device")
            path = target / _inside(archive, member.name)
            if member.isreg():
                _check_room(archive, target, member.size)
                opened.extract(member, target, filter="data")
                yield path


def _inside(archive: Path, name: str) -> Path:
    """The relative path of an entry, which must stay below the folder on every system."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in (*path.parts, *windows.parts) or "\0" in name:
        raise _refused(archive, name, "leads out of the folder")
    return Path(path)


def _check_total(archive: Path, size: int, count: int, limit: int, max_files: int) -> None:
    if size > limit or count > max_files:
        raise DataSetError(
            f"'{archive}' unpacks to more than {limit:,} bytes or {max_files:,} files, which no data set of its size "
            "does: it was not unpacked; look where it came from."
        )


def _check_room(archive: Path, folder: Path, size: int) -> None:
    if size > (free := shutil.disk_usage(folder).free):
        raise OSError(f"'{archive}' needs {size / 1e9:.1f} GB more to unpack, {free / 1e9:.1f} GB are free: make room.")


def _refused(archive: Path, name: str, why: str) -> DataSetError:
    return DataSetError(f"'{archive}' holds {name!r}, which {why}: it was not unpacked; look where it came from.")


def _merge(source: Path, target: Path) -> None:
    """Move all files of a folder into another, which may have some of its folders already."""
    for top, _, names in os.walk(source):
        place = target / Path(top).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(Path(top) / name, place / name)
