"""The writing side of a cache: claims shards, writes and digests them in a thread, and marks the cache as finished."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fsdino.base.digest import file_sha256
from fsdino.base.texts import plain_json
from fsdino.cache.claims import BEAT, beat, claim, clear, publish, temporary_file
from fsdino.cache.shards import (
    MANIFEST,
    CacheRecipe,
    read_manifest,
    shard_header,
    shard_path,
    write_manifest,
    write_mark,
)

WAITING = 4  # batches that may wait for the disk


class ShardStore:
    """One writer of a cache; any number of them, in processes, jobs and machines, may work on one folder at once.

    A shard is made by whoever claims it, and is whole or not there, so a killed writer loses the shard it was at. A
    thread converts, digests and writes while the network works on the next batch.

        while images := store.claim():
            store.put(list(images), rows)
        store.close()

    Attributes:
        recipe: that of the folder, whose shard size rules.
        written: shards that this writer has published, with their digests.

    Raises:
        ValueError: if the folder holds a cache with another recipe.
    """

    def __init__(self, folder: str | Path, recipe: CacheRecipe) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MANIFEST).is_file():
            write_manifest(self.folder, recipe, {})
        self.recipe, _ = read_manifest(self.folder)
        self.recipe.check_same(recipe, self.folder)
        self.written: dict[str, str] = {}
        self._claims: dict[int, Path] = {}
        self._open: dict[int, _OpenShard] = {}
        # Both with the first claim: until then a store can be sent to another process.
        self._queue: queue.Queue[Any] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def pending(self) -> list[int]:
        """Shards that are not whole yet, whoever is at them."""
        names = set(os.listdir(self.folder))
        return [shard for shard in range(self.recipe.num_shards) if not self._is_done(shard, names)]

    def claim(self) -> range | None:
        """The images of a shard that is this writer's from now on; None where all are whole or held by others."""
        names = set(os.listdir(self.folder))
        for shard in range(self.recipe.num_shards):
            if self._is_done(shard, names) or shard in self._claims:
                continue
            path = claim(self.folder, shard_path(self.folder, shard).stem, names)
            if path is None:
                continue
            self._claims[shard] = path
            if self._must_be_made(shard):
                if self._queue is None:
                    self._queue = queue.Queue(WAITING)
                    self._thread = threading.Thread(target=self._write, args=[self._queue], daemon=True)
                    self._thread.start()
                return self.recipe.shard_images(shard)
            self._release(shard)
        return None

    def put(self, places: list[int], rows: Any) -> None:
        """Hand over images of one claimed shard, in their order.

        Args:
            places: in the image list.
            rows: (N, *entry_shape), an array or a tensor of any device.

        Raises:
            ValueError: if a number does not fit float16, or a row has another shape than the recipe's; raised by the
                next call or by `close`, as all that goes wrong in the thread.
            OSError: if the disk is full.
        """
        self._check()
        shards = {place // self.recipe.shard_size for place in places}
        if self._queue is None or len(shards) != 1 or not shards <= self._claims.keys():
            raise ValueError(f"expected images of one claimed shard, got {places}; claim it first.")
        self._queue.put((places, rows))

    def settle(self) -> None:
        """Wait until all that was put is on the disk."""
        if self._queue is not None:
            self._queue.join()
        self._check()

    def finish(self) -> bool:
        """Whether all shards are whole; the first to find them so writes their digests into the manifest."""
        if self.pending():
            return False
        clear(self.folder)
        if self.written or not read_manifest(self.folder)[1]:
            marks = {shard: shard_path(self.folder, shard, ".json") for shard in range(self.recipe.num_shards)}
            shards = {shard_path(self.folder, shard).name: _digest(mark) for shard, mark in marks.items()}
            write_manifest(self.folder, self.recipe, shards)
        return True

    def close(self) -> None:
        """Write what was put, end the thread, and finish the cache if nothing is missing."""
        try:
            self.settle()
            self.finish()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of what is claimed and not published."""
        if self._queue is not None and self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._queue = self._thread = None
        for shard in list(self._claims):
            self._release(shard)

    # ---- one shard

    def _is_done(self, shard: int, names: set[str]) -> bool:
        return all(shard_path(self.folder, shard, suffix).name in names for suffix in (".json", ".npy"))

    def _must_be_made(self, shard: int) -> bool:
        """Look again, now that nobody else is at it, and clear away what a killed writer has left."""
        data, mark, old = (shard_path(self.folder, shard, suffix) for suffix in (".npy", ".json", ".part"))
        for left in self.folder.glob(f"{data.name}.*.tmp"):
            left.unlink(missing_ok=True)
        # Earlier versions wrote a shard in place and noted its rows beside it.
        if old.is_file():
            data.unlink(missing_ok=True)
            old.unlink()
        if not data.is_file():
            mark.unlink(missing_ok=True)
            return True
        # Its writer was killed between the shard and its mark.
        if not mark.is_file():
            write_mark(self.folder, shard, file_sha256(data), len(self.recipe.shard_images(shard)))
        return False

    def _release(self, shard: int) -> None:
        opened = self._open.pop(shard, None)
        if opened is not None:
            opened.file.close()
            opened.path.unlink(missing_ok=True)
        self._claims.pop(shard).unlink(missing_ok=True)

    # ---- the thread

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self, tasks: queue.Queue[Any]) -> None:
        last = time.monotonic()
        while True:
            try:
                task = tasks.get(timeout=BEAT)
            except queue.Empty:
                task = ()
            try:
                if time.monotonic() - last >= BEAT:
                    last = time.monotonic()
                    for path in list(self._claims.values()):
                        beat(path)
                # After an error the rest is taken from the queue, so that nobody waits for it, and thrown away.
                if task and self._error is None:
                    self._put(*task)
            except OSError as error:
                self._error = self._told(error)
            except BaseException as error:
                self._error = error
            if task != ():
                tasks.task_done()
            if task is None:
                return

    def _told(self, error: OSError) -> OSError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        whole = self.recipe.num_shards - len(self.pending())
        return OSError(
            f"the disk of '{self.folder}' is full; {whole} of {self.recipe.num_shards} shards are whole and stay: make "
            "room and run the same command again, it goes on",
        )

    def _put(self, places: list[int], rows: Any) -> None:
        rows = np.asarray(rows.cpu() if hasattr(rows, "cpu") else rows)
        if rows.shape[1:] != self.recipe.entry_shape:
            raise ValueError(
                f"expected rows of shape {self.recipe.entry_shape}, got {rows.shape[1:]}; "
                "the network does not give what the recipe says."
            )
        # A number above 65,504 becomes infinite in float16, which the check below reports with the image it is of.
        with np.errstate(over="ignore"):
            rows = rows.astype(self.recipe.dtype)
        if not np.isfinite(rows).all():
            bad = places[int(np.argmin([np.isfinite(row).all() for row in rows]))]
            raise ValueError(
                f"embedding of image {bad} is not finite in {self.recipe.dtype}; "
                "check the image and the network's weights."
            )
        shard = places[0] // self.recipe.shard_size
        images = self.recipe.shard_images(shard)
        if shard not in self._open:
            self._open[shard] = _OpenShard.begin(shard_path(self.folder, shard), shard_header(self.recipe, shard))
        opened = self._open[shard]
        expected = list(images)[opened.rows : opened.rows + len(places)]
        if places != expected:
            raise ValueError(f"expected the images {expected}, got {places}; put a shard's images in their order.")
        opened.add(rows.tobytes(), len(places))
        if opened.rows == len(images):
            opened.close()
            # Not where one that took the claim over has been first; its shard is as good.
            if publish(opened.path, shard_path(self.folder, shard)):
                digest = opened.digest.hexdigest()
                write_mark(self.folder, shard, digest, len(images))
                self.written[shard_path(self.folder, shard).name] = digest
            self._release(shard)


@dataclass
class _OpenShard:
    """A shard that is being written, under a name of its own."""

    path: Path
    file: BinaryIO
    digest: Any = field(default_factory=hashlib.sha256)
    rows: int = 0

    @classmethod
    def begin(cls, path: Path, header: bytes) -> _OpenShard:
        temporary = temporary_file(path.parent, path.name)
        opened = cls(temporary, temporary.open("xb"))
        opened.add(header, 0)
        return opened

    def add(self, data: bytes, rows: int) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.rows += rows

    def close(self) -> None:
        # On the disk before it gets its name: a machine that loses its power leaves no empty shard, and a network file
        # system says only now that it is full.
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def _digest(mark: Path) -> str:
    try:
        return str(plain_json(mark.read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{mark} is damaged ({error}); delete it and run `fsdino run` again.") from error
