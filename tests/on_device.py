"""Tests on another device, as `pytest tests/models --device cuda`: what a test makes is made there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors


class OnDevice(TorchFunctionMode):
    """Tensors that are made without naming a device lie on this one, drawn on the CPU, so that numbers are the same."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)
        # With TensorFloat-32 no tolerance of a test in float32 would hold.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.empty(1, device=self.device)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.numpy:
            return func(args[0].cpu(), *args[1:], **kwargs)
        found = func(*args, **kwargs)
        # A context of another device, such as meta, has put its name in already.
        if func in _device_constructors() and kwargs.get("device") is None and "out" not in kwargs:
            found = found.to(self.device)
        return found


def here() -> str:
    """The device that tensors are made on, for what has to be told."""
    return torch.empty(0).device.type
