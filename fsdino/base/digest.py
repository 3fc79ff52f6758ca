"""What is asked of files everywhere; imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def file_sha256(path: str | Path) -> str:
    """A file's sha256 in lower-case hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        # Block by block: cache shards and weights are larger than what should be held at once.
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def steady(path: Path) -> None:
    """Bring the header of a safetensors file into an order of its own, see `steady_header`."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        file.seek(8)
        file.write(steady_header(header))


def told_sha256(values: Mapping[str, Any]) -> str:
    """Sha256 of plain values as they stand in a JSON file, without an entry "sha256", which is where it is kept."""
    kept = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def weights_sha256(told: str, state_dict: Mapping[str, Any]) -> str:
    """Sha256 over what else decides a network's answers, as text, and all of its weights."""
    digest = hashlib.sha256(told.encode())
    for key, value in sorted(state_dict.items()):
        digest.update(key.encode())
        # In float32 whatever the network runs in: the precision is told apart by the cache's own recipe.
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def steady_header(header: bytes) -> bytes:
    """The JSON header of a safetensors file with its metadata sorted, of the same length.

    The library writes them in another order in every process, so that equal contents were different files.
    """
    told = json.loads(header)
    told["__metadata__"] = dict(sorted(told["__metadata__"].items()))
    steady = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode().ljust(len(header))
    # Where a text is escaped in another way than there, the order stays as it was.
    return steady if len(steady) == len(header) else header
