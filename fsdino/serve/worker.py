"""One thread a model: calls are run in turn, and only so many may wait."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Busy(Exception):
    """The queue is full.

    Args:
        seconds: after which it has probably moved on.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Worker:
    """Runs calls one after the other in a thread of its own.

    Args:
        name: of the thread.
        depth: calls that may wait beside the one that runs.
    """

    def __init__(self, name: str, depth: int) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"model {name}")
        # The pool's own queue has no bound.
        self._open, self._depth, self._lock = 0, depth, threading.Lock()
        self._seconds = 0.0  # that a call takes, lately

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        return max(0, self._open - 1)

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call; the future's `cancel` takes it out again unless it has begun.

        Raises:
            Busy: if as many calls wait as may.
        """
        with self._lock:
            if self._open > self._depth:
                # Half of the queue: whoever comes again then finds room, and the model is not idle before.
                raise Busy(max(1, math.ceil(self._seconds * self._open / 2)))
            self._open += 1
        future = self._pool.submit(self._timed, call)
        future.add_done_callback(self._ended)
        return future

    def close(self) -> None:
        """Begin no other call; the one that runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return call()
        finally:
            self._seconds = 0.8 * self._seconds + 0.2 * (time.perf_counter() - started)

    def _ended(self, _: Future[Any]) -> None:
        with self._lock:
            self._open -= 1
