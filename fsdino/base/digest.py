"""What is asked of files everywhere; imports nothing heavy."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(path: str | Path) -> str:
    """A file's sha256 in lower-case hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        # Block by block: cache shards and weights are larger than what should be held at once.
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
