"""Processes that fill one cache, killed at random moments (kill -9): is it the cache of one process, byte by byte?

python -m benchmarks.cost.cache_kills

They write numbers in place of a network's maps, so that many kills take seconds; claiming, writing and publishing are
those of a run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from fsdino.cache.cache import EmbeddingCache


def one_round(processes: int, kills: int, seconds: float, rng: np.random.Generator) -> Row:
    """What became of one cache."""
    from tests.cache.filling import files, fill, killed_at_random

    with tempfile.TemporaryDirectory() as place:
        wanted = files(fill(Path(place) / "alone").folder)
        computed = killed_at_random(Path(place) / "shared", processes, kills, seconds, rng)
        found, cache = files(Path(place) / "shared"), EmbeddingCache(Path(place) / "shared")
        # Each row says whose it is.
        rows = [int(cache[i].flatten()[0]) for i in range(len(cache))]
    return {
        "rows": len(rows),
        "missing": len({*range(len(rows))} - {*rows}),
        "twice": len(rows) - len({*rows}),
        "files": len(wanted),
        "files_that_differ": sum(wanted.get(name) != found.get(name) for name in {*wanted, *found}),
        "computed_again": len(computed) - len(rows),
    }


def main(
    rounds: int = 10,
    processes: int = 6,
    kills: int = 6,
    seconds: float = 0.05,
    seed: int = 0,
    out: str = str(RESULTS / "cache_kills.csv"),
) -> None:
    """Kill, replace, compare.

    Args:
        rounds: caches.
        processes: that work on one at the same time.
        kills: of each cache; a killed process is replaced by a new one.
        seconds: that a batch of two rows takes.
        seed: of the moments and the victims.
        out: file of the numbers.
    """
    rng, rows = np.random.default_rng(seed), []
    for number in range(1, rounds + 1):
        told = {"round": number, "processes": processes, "kills": kills}
        row = told | one_round(processes, kills, seconds, rng)
        rows.append(row | provenance(seed=seed))
        print(row, flush=True)
    update_rows(out, rows, ("round",))


if __name__ == "__main__":
    run_script(main)
