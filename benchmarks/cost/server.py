"""Whether the service loses requests or grows under many clients: `python -m benchmarks.cost.server`.

`fsdino serve` runs in a process of its own; clients ask it over the loopback as fast as it answers, one request in ten
being over a limit. Every answer must have its code, and be the same as the first for its image. Then the process is
killed (-9) and started anew, and has to give the same answer from the saved memory.
"""

from __future__ import annotations

import asyncio
import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.common import RESULTS, ROOT, Row, provenance, run_script, update_rows
from benchmarks.cost.subjects import reference
from benchmarks.cost.timing import resident_mb

BAR = 20.0  # megabytes that may come from fragmentation
KEY = "benchmarks-own-key"
PATIENCE = 300  # seconds
OVER = {"image too large": 413, "too many images": 422, "unknown memory": 404}


@dataclass
class Seen:
    """What the clients got."""

    seconds: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    other_answers: int = 0
    mb: list[float] = field(default_factory=list)


class Server:
    """`fsdino serve` in a process of its own."""

    def __init__(self, model: str, folder: str) -> None:
        options = ["--model", model, "--folder", folder, "--port", "0", "--max-megapixels", "1", "--max-images", "2"]
        # How long a queue of fifty takes depends on what else the machine does, and is not what is asked here.
        options += ["--max-seconds", str(PATIENCE)]
        command = [sys.executable, "-m", "fsdino.cli", "serve", *options, "--quiet"]
        about = os.environ | {"FSDINO_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=about, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1].removesuffix("/docs")
        self.headers = {"Authorization": f"Bearer {KEY}"}
        with self.client() as client:
            for _ in range(600):
                try:
                    client.get("/readyz").raise_for_status()
                    return
                except httpx.TransportError:
                    time.sleep(0.1)
        raise RuntimeError("the service did not start; run the command by hand to see why.")

    def client(self) -> httpx.Client:
        """A client with the key."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=PATIENCE)

    def mb(self) -> float:
        """Resident megabytes now."""
        return resident_mb(process=self.process.pid) or float("nan")

    def stop(self, number: int) -> float:
        """Send a signal; the seconds until the process is gone."""
        started = time.perf_counter()
        self.process.send_signal(number)
        self.process.wait(60)
        return time.perf_counter() - started


def as_file(array: np.ndarray) -> bytes:
    """An image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def taught(client: httpx.Client) -> str:
    """The id of a memory of one reference."""
    one = reference(0)
    sent = {"images": as_file(np.asarray(one.image)), "masks": as_file(np.asarray(one.mask) * np.uint8(255))}
    answer = client.post("/v1/memories", files=sent, data={"class_name": "box"}).raise_for_status()
    return str(answer.json()["memories"][0]["id"])


def photos() -> list[bytes]:
    """Images of noise of sixteen sizes, as files."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(60, 240, (16, 2))
    return [as_file(rng.integers(0, 256, (int(h), int(w), 3), dtype=np.uint8)) for h, w in sizes]


async def load(server: Server, memory: str, images: list[bytes], clients: int, number: int) -> Seen:
    """Ask `number` times from `clients` at once."""
    seen, todo, done = Seen(), iter(range(number)), 0
    first: dict[int, Any] = {}
    large = as_file(np.zeros((1100, 1000, 3), np.uint8))
    bounds = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def ask(client: httpx.AsyncClient, i: int) -> None:
        over = list(OVER)[i // 10 % len(OVER)] if i % 10 == 9 else ""
        which = i % len(images)
        sent = [large] if over == "image too large" else [images[which]] * (3 if over == "too many images" else 1)
        wanted = "0" * 16 if over == "unknown memory" else memory
        started = time.perf_counter()
        files = [("images", (f"{which}.png", data)) for data in sent]
        answer = await client.post("/v1/segment", files=files, data={"memories": wanted})
        if answer.status_code != OVER.get(over, 200):
            seen.lost[str(answer.status_code)] += 1
        elif over:
            seen.refused[over] += 1
        else:
            seen.seconds.append(time.perf_counter() - started)
            seen.other_answers += answer.json() != first.setdefault(which, answer.json())

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal done
        for i in todo:
            try:
                await ask(client, i)
            except httpx.TransportError as error:
                seen.lost[type(error).__name__] += 1
            done += 1
            # Once every client has had its first answers the server has all that it needs.
            if done in (number // 10, number // 2, number):
                seen.mb.append(server.mb())

    async with httpx.AsyncClient(
        base_url=server.url, headers=server.headers, timeout=PATIENCE, limits=bounds
    ) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return seen


def answered(client: httpx.Client, memory: str, image: bytes) -> Any:
    """What the service finds in one image."""
    return (
        client.post("/v1/segment", files={"images": ("a.png", image)}, data={"memories": memory})
        .raise_for_status()
        .json()
    )


def measure(model: str, clients: int, number: int) -> Row:
    """One row."""
    images = photos()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, folder)
        try:
            with server.client() as client:
                memory = taught(client)
                before = answered(client, memory, images[0])
            started = time.perf_counter()
            seen = asyncio.run(load(server, memory, images, clients, number))
            seconds = time.perf_counter() - started
            server.stop(signal.SIGKILL)
            server = Server(model, folder)
            with server.client() as client:
                kept = answered(client, memory, images[0]) == before
            stopped = server.stop(signal.SIGTERM)
        finally:
            server.process.kill()
    cuts = statistics.quantiles(seen.seconds, n=20)
    grown = seen.mb[-1] - seen.mb[0]
    return {
        "model": model,
        "clients": clients,
        "requests": number,
        "answered": len(seen.seconds),
        "refused as they should be": sum(seen.refused.values()),
        "lost": sum(seen.lost.values()),
        "lost as": " ".join(f"{name}:{count}" for name, count in seen.lost.items()),
        "other answers": seen.other_answers,
        "requests a second": f"{number / seconds:.1f}",
        "p50, ms": f"{1000 * cuts[9]:.0f}",
        "p95, ms": f"{1000 * cuts[18]:.0f}",
        "MB after a tenth": f"{seen.mb[0]:.1f}",
        "after a half": f"{seen.mb[1]:.1f}",
        "at the end": f"{seen.mb[2]:.1f}",
        "growth, MB": f"{grown:+.1f}",
        "same answer after kill -9": "yes" if kept else "no",
        "stops in, s": f"{stopped:.1f}",
        "bar": f"<= {BAR:.0f}",
        "met": "yes" if grown <= BAR and not seen.lost and not seen.other_answers and kept else "no",
    }


def main(
    model: str = "tiny",
    clients: int = 50,
    requests: tuple[int, ...] = (2_000, 4_000),
    csv: Path = RESULTS / "server.csv",
) -> None:
    """Measure runs of at least twenty requests and write the CSV."""
    for number in requests:
        row = measure(model, clients, number)
        print("  ".join(f"{name}: {value}" for name, value in row.items()))
        about = provenance(seed=0, protocol="images of 16 sizes, one thread for the model, clients on the same machine")
        update_rows(csv, [row | about], ("model", "clients", "requests"))


if __name__ == "__main__":
    run_script(main)
