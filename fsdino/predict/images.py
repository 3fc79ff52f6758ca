"""Which images to segment: folders, globs, single files and the frames of videos, decoded ahead in threads."""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

import cv2
import numpy as np

from fsdino.data.images import IMAGE_SUFFIXES, read_image

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
MAX_FRAMES = 10_000_000  # four days; headers that say more are wrong
Source = tuple[str, int, int]  # a file's path, size in bytes and time of the last change in ns


class EndOfVideo(Exception):
    """A video has fewer frames than its header says."""


@dataclass(frozen=True)
class Item:
    """One image to segment.

    Args:
        name: its place relative to what was asked for, with '/' between folders; unique.
        read: gives (H, W, 3) uint8 RGB; raises ValueError or OSError when it cannot, EndOfVideo past the last frame.
        source: differs for another file, and for the same one after it was edited.
    """

    name: str
    read: Callable[[], np.ndarray]
    source: Source


def find_images(images: str, *, exclude: str | Path | None = None, frame_step: int = 1) -> list[Item]:
    """List the images behind a path.

    Args:
        images: a folder (searched through all levels), a glob ("photos/*.jpg", "**" for all levels), an image or a
            video. Hidden files and folders are left out.
        exclude: folder whose files are left out: the outputs, when they lie among the images.

    Returns:
        At least one, sorted by name. Names are relative to the folder, or to a glob's part before its first wildcard.
    """
    if frame_step < 1:
        raise ValueError(f"frame_step {frame_step} is not positive; 1 takes every frame.")
    # Names start below the base and not below what the files have in common: a record must find them again when more
    # images have come.
    base, found = _listed(images)
    files = [file for file in sorted(set(found)) if _is_image(file.relative_to(base))]
    if not files:
        kinds = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        raise ValueError(f"no images at '{images}'; expected a folder, a glob or a file of {kinds}.")
    barred = Path(exclude).resolve() if exclude else None
    wanted = [file for file in files if barred not in file.resolve().parents]
    if not wanted:
        raise ValueError(
            f"all images at '{images}' lie in the folder of the results, '{exclude}', whose images are left out; "
            "choose an --out that does not hold them."
        )
    items: list[Item] = []
    for file in wanted:
        name = file.relative_to(base).as_posix()
        if file.suffix.lower() in VIDEO_SUFFIXES:
            items += _frames(file, name, frame_step)
        else:
            items.append(Item(name, partial(read_image, file), _source(file)))
    return items


def _listed(images: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and all files."""
    path = Path(images)
    if path.is_dir():
        # A link to nowhere is listed as well, so that the run says that it could not be read.
        return path, [file for file in path.rglob("*") if file.is_file() or file.is_symlink()]
    if path.is_file():
        return path.parent, [path]
    base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
    return base, [Path(found) for found in glob.glob(images, recursive=True) if Path(found).is_file()]


def _is_image(path: Path) -> bool:
    """Whether a relative path says image or video, and nothing of it is hidden."""
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES


def _source(file: Path) -> Source:
    resolved = file.resolve()
    if not resolved.exists():  # a link to nowhere, which reading reports
        return str(resolved), 0, 0
    stat = resolved.stat()
    return str(resolved), stat.st_size, stat.st_mtime_ns


class _Video:
    """Frames of a video by number; asked for in order it never seeks, and is closed after the last."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        # As far as is known before they are read: a header may name more frames than there are.
        self.numbers = range(0, self._count(), step)
        self._capture: cv2.VideoCapture | None = None
        self._next = 0
        self._end = MAX_FRAMES

    def _count(self) -> int:
        """Frames that the header names, or that are there when it names none."""
        if not self._has_plain_name():
            return 1
        capture = cv2.VideoCapture(str(self.path))
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        # Depending on the codec, an unknown number of frames is 0, below 0, huge or NaN.
        if not 0 < count <= MAX_FRAMES:
            count = sum(1 for _ in iter(capture.grab, False))
        capture.release()
        # A damaged video counts as one frame, which cannot be read and so is listed.
        return max(int(count), 1)

    def _has_plain_name(self) -> bool:
        """Whether OpenCV can be given the file's name; it crashes on bytes that are not UTF-8."""
        return str(self.path).encode("utf-8", "ignore").decode() == str(self.path)

    def read(self, number: int) -> np.ndarray:
        """One frame (H, W, 3) uint8 RGB; a ValueError if there is none at all, EndOfVideo past the last."""
        if not self._has_plain_name():
            raise ValueError("the name of the video is not UTF-8; rename the file.")
        frame = self._decode(number) if number < self._end else None
        if frame is None or number == self.numbers[-1]:
            self._close()
        if frame is not None:
            return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        self._end = min(self._end, number)
        if number == 0:
            raise ValueError(f"frame 0 of video '{self.path}' cannot be read; the file is cut or damaged.")
        raise EndOfVideo(f"video '{self.path}' ends before frame {number}.")

    def _decode(self, number: int) -> np.ndarray | None:
        if self._capture is None or number < self._next:
            self._close()
            self._capture = cv2.VideoCapture(str(self.path))
        # Frames are passed over one by one: seeking by number is not exact in many formats.
        while self._next < number and self._capture.grab():
            self._next += 1
        found, frame = self._capture.read()
        self._next += 1
        return frame if found else None

    def _close(self) -> None:
        if self._capture is not None:
            self._capture.release()
        self._capture, self._next = None, 0


def _frames(file: Path, name: str, step: int) -> list[Item]:
    video, source = _Video(file, step), _source(file)
    return [Item(f"{name}/{i:06d}", partial(video.read, i), source) for i in video.numbers]


def read_ahead(items: Sequence[Item], ahead: int = 4) -> Iterator[tuple[Item, np.ndarray | Exception]]:
    """Decode images in threads, in order, at most `ahead` in advance: (H, W, 3) uint8, or what reading raised."""
    # A video is one open file with one position, so its frames are read by one thread.
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
    # Whatever a decoder raises, the run goes on and lists the image at its end.
    except Exception as error:
        return item, error
