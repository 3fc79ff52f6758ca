"""One thread a model: calls are run in turn, and only so many may wait."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
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
        self._calls: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue(depth)
        self._seconds = 0.0  # that a call takes, lately
        # Not a ThreadPoolExecutor: its queue has no bound, and the interpreter waits for its threads before it ends.
        self._thread = threading.Thread(target=self._work, name=f"model {name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        return self._calls.qsize()

    @property
    def alive(self) -> bool:
        """Whether the thread still takes calls."""
        return self._thread.is_alive()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call; the future's `cancel` takes it out again unless it has begun.

        Raises:
            Busy: if as many calls wait as may.
        """
        future: Future[Any] = Future()
        try:
            self._calls.put_nowait((future, call))
        except queue.Full as error:
            raise Busy(max(1, math.ceil(self._seconds * self.waiting / 2))) from error
        return future

    def close(self, seconds: float) -> bool:
        """Take no more calls; whether the one that runs came to its end within a time."""
        while not self._calls.empty():
            if (entry := self._calls.get_nowait()) is not None:
                entry[0].cancel()
        self._calls.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (entry := self._calls.get()) is not None:
            future, call = entry
            if future.set_running_or_notify_cancel():
                started = time.perf_counter()
                try:
                    future.set_result(call())
                # Whatever it is belongs to who asked; the thread goes on with the next call.
                except BaseException as error:
                    future.set_exception(error)
                self._seconds = 0.8 * self._seconds + 0.2 * (time.perf_counter() - started)
            # The images of a request must not stay in memory until the next one comes.
            del entry, future, call
