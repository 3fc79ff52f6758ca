"""Training checkpoints of this package, as they lie on disk."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

CHECKPOINT_KEY = "fsdino"  # where a Lightning checkpoint holds `fsdino.base.storage.describe(method)`
MODEL_PREFIX = "model."  # in front of the method's weights in a Lightning checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint of this package.

    Raises:
        ValueError: if it is damaged, or of something else.
    """
    try:
        # torch does not look at the checksums that the file carries, and would take a flipped bit for a weight.
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of its part {damaged} is another")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is cut or not its own
        raise ValueError(
            f"checkpoint '{path}' cannot be read ({str(error).splitlines()[0]}); copy it again."
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"'{path}' is not a Lightning checkpoint: it has no state_dict.")
    if CHECKPOINT_KEY not in checkpoint:
        raise ValueError(
            f"checkpoint '{path}' has no {CHECKPOINT_KEY!r} entry: it was not written by `fsdino run` of this version."
        )
    return checkpoint
