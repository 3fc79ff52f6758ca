"""A process that fills a cache with numbers in place of a network's maps; it starts in a moment, without torch.

python -m tests.cache.filling FOLDER SECONDS_A_BATCH LOG
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fsdino.cache.shards import CacheRecipe
from fsdino.cache.store import ShardStore

ROOT = Path(__file__).parents[2]
TOLD = {"source": "numbers", "fingerprint": "0", "images": "numbers", "images_sha256": "0", "resize_mode": "squash"}


def numbers(count: int = 83, shard_size: int = 4) -> CacheRecipe:
    """What is cached."""
    sizes = {"num_images": count, "shard_size": shard_size, "img_size": 8, "entry_shape": (1, 16, 16)}
    return CacheRecipe(**TOLD, **sizes, views=("plain",))  # type: ignore[arg-type]


def row(place: int, shape: tuple[int, ...]) -> np.ndarray:
    """A row that says whose it is."""
    found = np.random.default_rng(place).normal(size=shape)
    found.flat[0] = place
    return found


def fill(folder: Path, seconds: float = 0.0, log: Path | None = None) -> ShardStore:
    """Work on a cache until it is finished; every row that was computed gets a line in `log`."""
    store = ShardStore(folder, numbers())
    while not store.finish():
        images = store.claim()
        if images is None:
            store.settle()
            time.sleep(0.02)
            continue
        for start in range(0, len(images), 2):
            places = list(images[start : start + 2])
            time.sleep(seconds)
            store.put(places, np.stack([row(place, store.recipe.entry_shape) for place in places]))
            if log is not None:
                with log.open("a") as file:
                    file.write("".join(f"{place}\n" for place in places))
    store.close()
    return store


def start(folder: Path, seconds: float, log: Path) -> "subprocess.Popen[bytes]":
    """`fill` in a process of its own."""
    command = [sys.executable, "-m", "tests.cache.filling", str(folder), str(seconds), str(log)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def killed_at_random(folder: Path, processes: int, kills: int, seconds: float, rng: np.random.Generator) -> list[int]:
    """So many processes on one cache, of which one after the other is killed (-9) and replaced; all computed rows."""
    log = folder.with_suffix(".log")
    log.touch()
    running = [start(folder, seconds, log) for _ in range(processes)]
    whole = numbers().num_images
    for _ in range(kills):
        # At a random place of the work, not of the time, which on a busy machine may be over before anything begins.
        until = rng.integers(0, whole // kills) + len(log.read_text().split())
        while len(log.read_text().split()) < until and any(one.poll() is None for one in running):
            time.sleep(0.002)
        victim = int(rng.integers(processes))
        running[victim].kill()
        running[victim].wait()
        running[victim] = start(folder, seconds, log)
    for one in running:
        if one.wait(120) != 0:
            raise RuntimeError(f"a process ended with {one.returncode}")
    return [int(line) for line in log.read_text().split()]


def files(folder: Path) -> dict[str, bytes]:
    """All that lies in a cache."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    fill(Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
