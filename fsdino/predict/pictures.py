"""Which pictures to segment: folders, globs, single files and the frames of videos, decoded ahead in threads."""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fsdino.data.images import PICTURE_SUFFIXES, read_image

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


@dataclass(frozen=True)
class Item:
    """One picture to segment.

    Args:
        name: Its place relative to what was asked for, with '/' between folders; unique.
        read: Gives (H, W, 3) uint8 RGB; raises ValueError or OSError when it cannot.
    """

    name: str
    read: Callable[[], np.ndarray]


def find_pictures(images: str, *, exclude: str | Path | None = None, frame_step: int = 1) -> list[Item]:
    """List the pictures behind a path.

    Args:
        images: A folder (searched through all levels), a glob ("photos/*.jpg", "**" for all levels), a picture or a
            video.
        exclude: Folder whose files are left out: the outputs, when they lie among the pictures.
        frame_step: Every how many frames of a video count.

    Returns:
        The pictures, sorted by name.

    Raises:
        ValueError: If there is none, or `frame_step` is not positive.
    """
    if frame_step < 1:
        raise ValueError(f"frame_step {frame_step} is not positive; 1 takes every frame.")
    path = Path(images)
    if path.is_dir():
        base, files = path, [file for file in path.rglob("*") if file.is_file() or file.is_symlink()]  # also to nowhere
    elif path.is_file():
        base, files = path.parent, [path]
    else:
        files = [Path(found) for found in glob.glob(images, recursive=True) if Path(found).is_file()]
        base = _common_folder(files)
    barred = Path(exclude).resolve() if exclude else None
    files = [
        file
        for file in sorted(set(files))
        if file.suffix.lower() in PICTURE_SUFFIXES + VIDEO_SUFFIXES
        and not file.name.startswith(".")
        and (barred is None or barred not in file.resolve().parents)
    ]
    if not files:
        kinds = ", ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
        raise ValueError(f"no pictures at '{images}'; expected a folder, a glob or a file of {kinds}.")
    items: list[Item] = []
    for file in files:
        name = file.relative_to(base).as_posix()
        if file.suffix.lower() in VIDEO_SUFFIXES:
            items += _frames(file, name, frame_step)
        else:
            items.append(Item(name, lambda file=file: read_image(file)))  # type: ignore[misc]
    return items


def _common_folder(files: Sequence[Path]) -> Path:
    if not files:
        return Path()
    folders = [file.parent for file in files]
    return next(
        parent for parent in (folders[0], *folders[0].parents) if all(f.is_relative_to(parent) for f in folders)
    )


class _Video:
    """Frames of a video by number; asked for in order it never seeks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._capture: cv2.VideoCapture | None = None
        self._next = 0

    def count(self) -> int:
        capture = cv2.VideoCapture(str(self.path))
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        return max(count, 1)  # a damaged video has one frame, which cannot be read and so is listed

    def read(self, number: int) -> np.ndarray:
        if self._capture is None or number < self._next:
            self._capture, self._next = cv2.VideoCapture(str(self.path)), 0
        while self._next < number and self._capture.grab():
            self._next += 1
        found, frame = self._capture.read()
        self._next += 1
        if not found:
            raise ValueError(f"frame {number} of video '{self.path}' cannot be read; the file is cut or damaged.")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _frames(file: Path, name: str, step: int) -> list[Item]:
    video = _Video(file)
    numbers = range(0, video.count(), step)
    return [Item(f"{name}/{i:06d}", lambda i=i: video.read(i)) for i in numbers]  # type: ignore[misc]


def read_ahead(items: Sequence[Item], ahead: int = 4) -> Iterator[tuple[Item, np.ndarray | Exception]]:
    """Decode pictures in threads, a few in advance, in order.

    Args:
        items: The pictures.
        ahead: How many decoded pictures may wait.

    Yields:
        Each item with its picture (H, W, 3) uint8, or with the exception that reading it raised.
    """
    one_by_one = any("/" in item.name and Path(item.name).parent.suffix.lower() in VIDEO_SUFFIXES for item in items)
    waiting: deque[tuple[Item, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(1 if one_by_one else 2, thread_name_prefix="decode") as pool:
        queue = iter(items)
        for item in queue:
            waiting.append((item, pool.submit(item.read)))
            if len(waiting) > ahead:
                yield _settled(*waiting.popleft())
        while waiting:
            yield _settled(*waiting.popleft())


def _settled(item: Item, future: Future[np.ndarray]) -> tuple[Item, np.ndarray | Exception]:
    try:
        return item, future.result()
    except Exception as error:  # whatever a decoder raises, the run goes on and lists the picture at its end
        return item, error
