"""What visitors of the page keep in memory, bounded by bytes. No gradio, no torch."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Protocol

VISITOR_BYTES, ALL_BYTES = 800_000_000, 2_000_000_000


class Keeper(Protocol):
    """A visitor's things."""

    @property
    def held(self) -> int:
        """Bytes of them."""

    def put_away(self) -> None:
        """Let go of them."""


class Shelf:
    """Knows who was here last; where all together hold too much, whoever was away longest loses what is kept.

    Args:
        most: bytes of all visitors together; the one who is here keeps what they have in any case.
    """

    def __init__(self, most: int = ALL_BYTES) -> None:
        self._most, self._lock = most, threading.Lock()
        # Weak: the server forgets visitors who are gone.
        self._visitors: OrderedDict[int, weakref.ref[Keeper]] = OrderedDict()

    def used(self, visitor: Keeper) -> None:
        """Note that a visitor is here, and make room."""
        with self._lock:
            self._visitors[id(visitor)] = weakref.ref(visitor)
            self._visitors.move_to_end(id(visitor))
            here = {key: one for key, known in self._visitors.items() if (one := known()) is not None}
            self._visitors = OrderedDict((key, self._visitors[key]) for key in here)
            total = sum(one.held for one in here.values())
            for one in [one for one in here.values() if one is not visitor]:
                if total <= self._most:
                    break
                total -= one.held
                one.put_away()
