"""Which model runs, and what runs it: the part of the options that every command which opens a model takes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal

from fsdino.base import registry
from fsdino.base.auto import AUTO, chosen_model
from fsdino.predict.engines import Engine
from fsdino.predict.engines.onnx import OnnxEngine
from fsdino.predict.engines.openvino import OpenvinoEngine

Runtime = Literal["torch", "onnx", "openvino"]


@dataclass(frozen=True)
class EngineChoice:
    """A model and its runtime, before they are opened.

    Args:
        model: a name of `fsdino models`, timm's name of a Vision Transformer, a model folder, checkpoint or Hub id; for
            onnx and openvino the folder with remember.onnx and segment.onnx; auto takes the best that is on this disk.
        runtime: torch, or onnx or openvino for exported graphs without torch.
        device: cpu, cuda, or auto, which takes a GPU where there is one; graphs run on the CPU alone.
        sam: a SAM that redraws the masks, for models without a mask decoder: a file in segment-anything's format, or
            vit_b, vit_l or vit_h for the official ones; torch alone.
        encoder_weights: file with the weights of an encoder that is named as the model, in place of a download.
    """

    model: str = AUTO
    runtime: Runtime = "torch"
    device: str = "auto"
    sam: str | None = None
    encoder_weights: str | None = None

    def open(self) -> Engine:
        """Make what runs the model.

        Raises:
            ValueError: if the runtime is unknown or cannot run on that device, or the model cannot be used.
            OSError: if nothing is there under the model's name.
        """
        if self.sam is not None and self.runtime != "torch":
            raise ValueError(f"masks are redrawn by SAM in torch alone, not in {self.runtime}; leave --sam out.")
        if self.model == AUTO:
            return self.settled().open()
        if self.encoder_weights is not None and self.runtime != "torch":
            raise ValueError("exported graphs bring their weights along; leave --encoder-weights out.")
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
        found = load(self.model, device=chosen, encoder_weights=self.encoder_weights)
        method: Engine = found if self.sam is None else registry.method_class("refined").over(found, self.sam)
        return method

    def settled(self) -> EngineChoice:
        """The same with a model that has a name; where one had to be chosen, it is said on standard error.

        Raises:
            ValueError: for graphs, which are always somebody's own, or weights that do not tell their encoder.
        """
        if self.model != AUTO:
            return self
        if self.runtime in ("onnx", "openvino"):
            raise ValueError(f"the {self.runtime} runtime has no model of its own; give --model with exported graphs.")
        name, reason = chosen_model(self.encoder_weights)
        print(f"model {name} ({reason})", file=sys.stderr)
        return replace(self, model=name)
