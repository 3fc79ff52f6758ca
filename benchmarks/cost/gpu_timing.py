"""How `benchmarks.cost.gpu` measures: cases in turn with a synchronised clock, operations counted, peaks of memory."""

from __future__ import annotations

import gc
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Row
from benchmarks.cost.timing import interleaved

PRECISIONS = ("float32", "bf16-mixed", "bf16-true")
LEAST = 0.05  # seconds of a round: shorter calls are repeated, so that the clock's own time does not count


class OutOfTime(BaseException):
    """A section's time is up; no Exception, so that nothing that is measured takes it for its own."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after so many seconds."""

    def ring(*_: Any) -> None:
        raise OutOfTime(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Case:
    """One thing that is timed.

    Args:
        about: columns of its row: step, precision, variant, ...
        run: a call.
        images: that one call works on.
        flops: whether its operations can be counted, which takes a call in eager mode.
    """

    about: Row
    run: Callable[[], Any]
    images: int = 1
    flops: bool = True


@dataclass
class Bench:
    """A device, how often calls are repeated, and the arithmetic that it was seen to reach.

    Args:
        peak: 10^12 operations a second of a large matrix product, by precision.
    """

    device: torch.device
    small: bool = False
    rounds: int = 3
    peak: dict[str, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the device has a clock and a memory of its own."""
        return self.device.type == "cuda"

    def sync(self) -> None:
        """Wait until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def precisely(self, precision: str) -> AbstractContextManager[Any]:
        """The context of a precision: autocast for "bf16-mixed", nothing for the others."""
        if precision == "bf16-mixed":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def clear(self) -> None:
        """Forget what earlier cases left."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def rows(self, head: Row, cases: Sequence[Case], base: Case | None = None) -> Iterator[Row]:
        """A row for each case, all timed in turn; `base` is what their times are divided by, the first when left out.

        A case that fails has its error in its row, and the others go on.
        """
        base = base or cases[0]
        ready: dict[str, Callable[[], Any]] = {}
        facts: dict[str, Row] = {}
        for case in [base, *(one for one in cases if one is not base)]:
            try:
                facts[str(id(case))] = found = self._looked_at(case)
                ready[str(id(case))] = self._repeated(case, found["calls"])
            except Exception as error:  # a case that cannot run here is a finding
                yield head | case.about | {"error": told(error)}
            self.clear()
        if str(id(base)) not in ready:
            return
        timings = interleaved(ready, self.rounds, warmup=0)
        for case in cases:
            if (name := str(id(case))) not in ready:
                continue
            # Divided by its images: a step of 16 beside a bare encoder of 16, a step of two beside one of one.
            found = facts[name]
            ms = timings.ms(name) / found["calls"] / case.images
            base_images = facts[str(id(base))]["calls"] * base.images
            ratio = timings.ratio((name,), str(id(base))) * base_images / (found["calls"] * case.images)
            row = head | case.about | {
                "ms": round(ms, 3), "per_s": round(1000 / ms, 2), "base": base.about["step"], "ratio": round(ratio, 3),
                "peak_mb": found["peak_mb"],
            }  # fmt: skip
            yield row | self._use(found["flops"] / case.images, ms, str(case.about.get("precision", "float32")))

    def _looked_at(self, case: Case) -> Row:
        """Operations and peak memory of one call; calls of a round."""
        operations = 0.0
        if case.flops:
            with FlopCounterMode(display=False) as counter:
                case.run()
            operations = float(counter.get_total_flops())
        case.run()  # compiles, or tries algorithms
        self.sync()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        case.run()
        self.sync()
        seconds = time.perf_counter() - started
        peak = round(torch.cuda.max_memory_allocated(self.device) / 2**20) if self.on_gpu else ""
        calls = 1 if self.small else max(1, min(50, round(LEAST / seconds)))
        return {"flops": operations, "peak_mb": peak, "calls": calls}

    def _repeated(self, case: Case, calls: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                case.run()
            self.sync()

        return run

    def _use(self, flops: float, ms: float, precision: str) -> Row:
        """Operations a second, and their share of what a matrix product reached in this run."""
        if not flops:
            return {}
        reached = flops / ms / 1e9
        peak = self.peak.get("float32" if precision == "float32" else "bf16")
        share = {"mfu": round(reached / peak, 3)} if peak else {}
        return {"gflop": round(flops / 1e9, 1), "tflops": round(reached, 3), **share}

    def hidden_syncs(self, run: Callable[[], Any]) -> int | str:
        """How often a call makes the CPU wait for the GPU; empty where there is no GPU."""
        if not self.on_gpu:
            return ""
        run()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in seen)


def told(error: BaseException) -> str:
    """An error in one short line."""
    line = str(error).strip().splitlines()
    return f"{type(error).__name__}: {line[0][:200] if line else ''}"
