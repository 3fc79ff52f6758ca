"""Which model runs, and what runs it: the part of the options that every command which opens a model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fsdino.predict.engines import Engine
from fsdino.predict.engines.onnx import OnnxEngine
from fsdino.predict.engines.openvino import OpenvinoEngine

Runtime = Literal["torch", "onnx", "openvino"]


@dataclass(frozen=True)
class EngineChoice:
    """A model and its runtime, before they are opened.

    Args:
        model: a preset, model folder, checkpoint or Hub id; for onnx and openvino the folder with remember.onnx and
            segment.onnx.
        runtime: torch, or onnx or openvino for exported graphs without torch.
        device: cpu, cuda, or auto, which takes a GPU where there is one; graphs run on the CPU alone.
    """

    model: str = "tiny"
    runtime: Runtime = "torch"
    device: str = "auto"

    def open(self) -> Engine:
        """Make what runs the model.

        Raises:
            ValueError: if the runtime is unknown or cannot run on that device, or the model cannot be used.
            OSError: if nothing is there under the model's name.
        """
        if self.runtime in ("onnx", "openvino"):
            if self.device not in ("auto", "cpu"):
                raise ValueError(
                    f"the {self.runtime} runtime runs on the CPU, not on {self.device!r}; leave --device out, or use "
                    "torch."
                )
            return OpenvinoEngine(self.model) if self.runtime == "openvino" else OnnxEngine(self.model)
        if self.runtime != "torch":
            raise ValueError(f"runtime {self.runtime!r} is unknown; use 'torch', 'onnx' or 'openvino'.")
        # Here and not above: graphs also run on machines without torch, and `fsdino --help` need not wait for it.
        import torch

        from fsdino.base.storage import load

        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            torch.empty(1, device=chosen)
        # A RuntimeError is an unknown name or number; a torch built without CUDA asserts instead.
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {self.device!r} is not available here; use --device cpu.") from error
        method: Engine = load(self.model, device=chosen)
        return method
