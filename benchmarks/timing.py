"""Interleaved timing and peak memory: what `speed.py` measures with."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

PEAK_LINE = "peak_mb"


@dataclass(frozen=True)
class Timings:
    """Seconds of every action in every round.

    Args:
        seconds: Action to its times; the rounds are in the same order for all.
    """

    seconds: dict[str, list[float]]

    def ms(self, *names: str) -> float:
        """Median over the rounds of the actions' time, in milliseconds; several actions are added up."""
        return 1000 * median(self._sums(names))

    def ratio(self, names: str | tuple[str, ...], base: str) -> float:
        """Median over the rounds of the actions' time over the base's in the same round.

        A machine that slows down for a while slows both, so this holds still where a ratio of medians does not.
        """
        sums = self._sums((names,) if isinstance(names, str) else names)
        return median(a / b for a, b in zip(sums, self.seconds[base]))

    def _sums(self, names: tuple[str, ...]) -> list[float]:
        return [sum(parts) for parts in zip(*(self.seconds[name] for name in names))]


def interleaved(actions: Mapping[str, Callable[[], Any]], repetitions: int, warmup: int = 1) -> Timings:
    """Time actions in turn, round after round.

    Args:
        actions: What to run.
        repetitions: Rounds that count.
        warmup: Rounds before those.

    Returns:
        The times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(warmup + repetitions):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return Timings(seconds)


def peak_mb_of(script: str | Path, *arguments: str) -> float | None:
    """Peak resident memory of a script that ends with `print_peak(...)`, in a process of its own.

    Args:
        script: A Python file.
        arguments: For its command line.

    Returns:
        Megabytes, or None on a system that does not tell.

    Raises:
        RuntimeError: If the script fails.
    """
    ran = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{Path(script).name} {' '.join(arguments)} failed: {ran.stderr.strip()[-500:]}")
    found = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith(PEAK_LINE)]
    return float(found[-1]) if found else None


def resident_mb(field: str = "VmRSS") -> float | None:
    """This process's resident memory now ("VmRSS") or at its peak ("VmHWM"), where the kernel tells.

    The resource module's peak is not used: on Linux it starts at the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(field))


def print_peak(floor: float | None) -> None:
    """Print the peak of this process above a floor, for `peak_mb_of`; nothing where the kernel does not tell."""
    peak = resident_mb("VmHWM")
    if peak is not None and floor is not None:
        print(PEAK_LINE, peak - floor)
