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
