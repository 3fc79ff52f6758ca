"""Segmenting many images: several at a time, on one device or more, with decoding and writing beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np
from tqdm import tqdm

from fsdino.base.result import LabelMap, resolve
from fsdino.predict.engines import Engine
from fsdino.predict.finish import finished
from fsdino.predict.images import EndOfVideo, Item, read_ahead
from fsdino.predict.outputs import Outputs
from fsdino.predict.tiles import segment_tiled

# Results that may wait for the disk, and pixels of all of them (each is 8 bytes): bounds the memory when the disk is
# slower than the model.
WRITES_WAITING, PIXELS_WAITING = 8, 24_000_000
Finder = Callable[[Sequence[np.ndarray]], Iterable[LabelMap]]
_Read = tuple[Item, "np.ndarray | Exception"]


def finder(
    engine: Engine,
    joined: Sequence[Any],
    names: Sequence[str],
    *,
    threshold: float,
    min_score: float,
    tile: int,
    least: Sequence[float] = (),
    refine_edges: bool = False,
    cuts: Sequence[float | None] = (),
) -> Finder:
    """What finds the classes of `joined`, by name, in a list of images with one engine; options as `segment_tiled`."""
    last: dict[str, Any] = {"least": least, "refine_edges": refine_edges, "cuts": cuts}
    options: dict[str, Any] = {"threshold": threshold, "min_score": min_score, **last}

    def find(images: Sequence[np.ndarray]) -> Iterator[LabelMap]:
        is_large = [tile > 0 and max(image.shape[:2]) > tile for image in images]
        whole = [image for image, large in zip(images, is_large) if not large]
        # Alone through `find`, which every engine computes the same way, whatever the others do.
        found = iter(engine.find_batch(joined, whole) if len(whole) > 1 else [engine.find(joined, i) for i in whole])
        for image, large in zip(images, is_large):
            if large:
                yield segment_tiled(engine, joined, names, image, tile, **options)
            else:
                each = finished(next(found), image, threshold, **last)
                yield resolve(zip(names, each), (image.shape[0], image.shape[1]), threshold, min_score)

    return find


def run_all(items: Sequence[Item], outputs: Outputs, finders: Sequence[Finder], batch: int = 1) -> dict[str, str]:
    """Segment the images that are not done yet; gives the reasons of those that could not be read, by name.

    Args:
        finders: one for each device; they take images from one queue and write into one record.
        batch: images that a finder is given at a time.
    """
    todo = [item for item in items if item.name not in outputs.done]
    with (
        ThreadPoolExecutor(2, thread_name_prefix="write") as writers,
        tqdm(total=len(items), initial=len(items) - len(todo), unit="image", desc="predict") as bar,
    ):
        queue = _Queue(read_ahead(todo, ahead=max(4, batch * len(finders))), batch, bar)
        # One model runs in this thread; decoding and writing, which release the GIL, fill the time beside it.
        if len(finders) == 1:
            queue.work(finders[0], outputs, writers)
            return queue.failed
        with ThreadPoolExecutor(len(finders), thread_name_prefix="device") as devices:
            working = [devices.submit(queue.work, find, outputs, writers) for find in finders]
            try:
                for future in working:
                    future.result()
            finally:
                # After an error on one device, or Ctrl-C here, the others stop at their next images.
                queue.stopped = True
    return queue.failed


class _Queue:
    """Images for several devices, and what went wrong with some of them."""

    def __init__(self, images: Iterator[_Read], batch: int, bar: tqdm) -> None:
        self._images, self._batch, self._bar, self._lock = images, batch, bar, Lock()
        self.failed: dict[str, str] = {}
        self.stopped = False

    def _take(self) -> list[_Read]:
        with self._lock:
            return [] if self.stopped else list(islice(self._images, self._batch))

    def work(self, find: Finder, outputs: Outputs, writers: ThreadPoolExecutor) -> None:
        """Take images until there are none."""
        writes: list[Future[None]] = []
        waiting: list[int] = []  # pixels of each
        try:
            while taken := self._take():
                read = [(item, image) for item, image in taken if isinstance(image, np.ndarray)]
                for (item, image), found in zip(read, find([image for _, image in read])):
                    writes.append(writers.submit(outputs.write, item.name, image, found))
                    waiting.append(image.shape[0] * image.shape[1])
                    # `result` raises here what went wrong in the writing thread, where it would be lost.
                    while len(writes) > WRITES_WAITING or sum(waiting) > PIXELS_WAITING:
                        writes.pop(0).result()
                        waiting.pop(0)
                with self._lock:
                    self._note({item.name: image for item, image in taken if isinstance(image, Exception)})
                    self._bar.update(len(taken))
            for write in writes:
                write.result()
        except BaseException:
            self.stopped = True
            raise

    def _note(self, unread: dict[str, Exception]) -> None:
        for name, error in unread.items():
            # Headers of videos often promise more frames than there are: that is not a failure.
            if not isinstance(error, EndOfVideo):
                self.failed[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
