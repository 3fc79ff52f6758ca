"""Devices of torch, by name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def device_here(device: Any) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: if it is not there.
    """
    text = str(device)[:80]
    try:
        found = torch.device(text)
        torch.empty(1, device=found)
    # An unknown name or number; a torch built without CUDA; a device without memory of its own, as meta.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = torch.cuda.device_count()
        raise ValueError(
            f"device {text!r} is not available here, where torch finds {gpus} GPU(s); use cpu, cuda or cuda:1."
        ) from error
    return found


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Arithmetic in the precision of the tensors, also inside a context that lowers it.

    The meta device, on which benchmarks count, lowers nothing: some torch releases refuse to be asked.
    """
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()
