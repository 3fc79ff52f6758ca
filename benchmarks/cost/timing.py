"""What time and memory are measured with: actions in turn, a process of its own, rows with ratios and bars."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import Row


@dataclass(frozen=True)
class Timings:
    """Seconds of every action in every round; the rounds are in the same order for all."""

    seconds: dict[str, list[float]]

    def ms(self, *names: str) -> float:
        """Median over the rounds of the actions' time, in milliseconds; several actions are added up."""
        return 1000 * median(self._sums(names))

    def ratio(self, names: tuple[str, ...], base: str) -> float:
        """Median over the rounds of the actions' time over the base's in the same round.

        A machine that slows down for a while slows both, so this holds still where a ratio of medians does not.
        """
        return median(a / b for a, b in zip(self._sums(names), self.seconds[base]))

    def row(self, names: str | tuple[str, ...], base: str, bar: str = "") -> Row:
        """The columns of one timed step (or several added up), named after the last part of the first name."""
        names = (names,) if isinstance(names, str) else names
        ms, ratio = self.ms(*names), self.ratio(names, base)
        step, beside = names[0].split("|")[-1], base.split("|")[-1]
        row = {"step": step, "ms": round(ms, 1), "per_s": round(1000 / ms, 3), "base": beside, "ratio": round(ratio, 3)}
        return row | (verdict(ratio, bar) if bar else {})

    def _sums(self, names: tuple[str, ...]) -> list[float]:
        return [sum(parts) for parts in zip(*(self.seconds[name] for name in names))]


def interleaved(actions: Mapping[str, Callable[[], Any]], repetitions: int, warmup: int = 1) -> Timings:
    """Time actions in turn, `warmup` rounds that do not count and `repetitions` that do."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(warmup + repetitions):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return Timings(seconds)


def verdict(value: float, bar: str) -> Row:
    """A bar as text ("<= 1.10", ">= 8 x"), and whether it was met."""
    sign, limit = bar.split()[:2]
    return {"bar": bar, "met": "yes" if (value <= float(limit) if sign == "<=" else value >= float(limit)) else "no"}


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns when a fresh process calls it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def resident_mb(field: str = "VmRSS", process: int | str = "self") -> float | None:
    """A process's resident memory now ("VmRSS") or at its peak ("VmHWM"), where the kernel tells.

    The resource module's peak is not used: on Linux it starts at the peak of the process that started this one.
    """
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        return None
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(field))
