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
from fsdino.predict.engines.providers import Hardware, parse

Runtime = Literal["torch", "onnx", "openvino"]


@dataclass(frozen=True)
class EngineChoice:
    """A model and its runtime, before they are opened.

    Args:
        model: a name of `fsdino models`, timm's name of a Vision Transformer, a model folder, checkpoint or Hub id; for
            onnx and openvino the folder with remember.onnx and segment.onnx; auto takes the best that is on this disk.
        runtime: torch, or onnx or openvino for exported graphs without torch.
        device: cpu, cuda, cuda:1 (the second GPU), or auto, which takes a GPU where there is one; openvino runs on the
            CPU alone.
        providers: what onnxruntime computes on, the preferred first, comma-separated: cuda, tensorrt, openvino,
            directml, coreml, cpu; auto follows the device. Where one is not to be had, a sentence says what is used.
        sam: a SAM that redraws the masks, for models without a mask decoder: a file in segment-anything's format, or
            vit_b, vit_l or vit_h for the official ones; torch alone.
        encoder_weights: file with the weights of an encoder that is named as the model, in place of a download.
    """

    model: str = AUTO
    runtime: Runtime = "torch"
    device: str = "auto"
    providers: str = AUTO
    sam: str | None = None
    encoder_weights: str | None = None

    def open(self) -> Engine:
        """Make what runs the model.

        Raises:
            ValueError: if the runtime is unknown or cannot run on that device, or the model cannot be used.
            OSError: if nothing is there under the model's name.
        """
        if self.runtime != "onnx" and self.providers != AUTO:
            raise ValueError(f"--providers are onnxruntime's, the runtime is {self.runtime}; add --runtime onnx.")
        if self.sam is not None and self.runtime != "torch":
            raise ValueError(f"masks are redrawn by SAM in torch alone, not in {self.runtime}; leave --sam out.")
        if self.model == AUTO:
            return self.settled().open()
        if self.encoder_weights is not None and self.runtime != "torch":
            raise ValueError("exported graphs bring their weights along; leave --encoder-weights out.")
        if self.runtime == "onnx":
            hardware = Hardware(parse(self.providers, self.device), int(self.device.partition(":")[2] or 0))
            return OnnxEngine(self.model, hardware=hardware)
        if self.runtime == "openvino":
            if self.device not in ("auto", "cpu"):
                raise ValueError(
                    f"the openvino runtime runs on the CPU, not on {self.device!r}; leave --device out, or use torch."
                )
            return OpenvinoEngine(self.model)
        if self.runtime != "torch":
            raise ValueError(f"runtime {self.runtime!r} is unknown; use 'torch', 'onnx' or 'openvino'.")
        # Here and not above: graphs also run on machines without torch, and `fsdino --help` need not wait for it.
        from fsdino.base.storage import load

        found = load(self.model, device=torch_device(self.device), encoder_weights=self.encoder_weights)
        method: Engine = found if self.sam is None else registry.method_class("refined").over(found, self.sam)
        return method

    def each(self, devices: int) -> list[EngineChoice]:
        """The same model on several devices: the first GPUs, or so many times the CPU where no GPU is asked for.

        Raises:
            ValueError: if the number is too small, or one device is named.
        """
        if devices < 1:
            raise ValueError(f"devices {devices} is too few; 1 is the least.")
        if devices == 1:
            return [self]
        if ":" in self.device:
            raise ValueError(f"--device {self.device} names one device, --devices {devices} asks for more; give one.")
        if self.runtime == "onnx" and self.device == "auto":
            # Unlike torch, onnxruntime cannot be asked how many GPUs there are.
            raise ValueError(f"--devices {devices} of the onnx runtime are of one kind; add --device cuda or cpu.")
        kind = torch_device("auto") if self.device == "auto" and self.runtime == "torch" else self.device
        return [replace(self, device=f"cuda:{i}" if kind == "cuda" else kind) for i in range(devices)]

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


def torch_device(device: str) -> str:
    """The name of a device of torch; `auto` takes a GPU where there is one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
