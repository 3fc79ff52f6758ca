"""Exported graphs as a method of the package, so that `fsdino evaluate` measures what 8 bits cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsdino.base.memory import Memory, SegmenterOutput
from fsdino.base.method import FewShotMethod
from fsdino.base.registry import method_class
from fsdino.base.resize import Resize
from fsdino.predict.engines.onnx import OnnxEngine


class OnnxMethod(FewShotMethod):
    """Runs `remember.onnx` and `segment.onnx` behind the contract of every method; see `OnnxEngine`."""

    name = "onnx"
    title = "exported graphs"

    def __init__(self, folder: str | Path, threads: int = 0, engine_type: type[OnnxEngine] = OnnxEngine) -> None:
        engine = engine_type(folder, threads)
        mode = engine.resize.mode
        super().__init__(Resize(engine.resize.size, "pad" if mode == "pad" else "squash"), engine.threshold)
        self.engine = engine
        # Graphs of earlier versions do not name their method: they were FS-DINO's.
        self.memory_type = method_class(engine.info.get("method", "fsdino")).memory_type  # type: ignore[misc]

    def fingerprint(self) -> str:
        """See `FewShotMethod.fingerprint`; the graphs note it."""
        return self.engine.fingerprint()

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> Memory:
        """See `FewShotMethod.encode_support`."""
        # Episode by episode: the remember graph takes the references of one class, any number of them.
        episodes = [
            self.engine.encode(images.cpu().numpy(), masks.cpu().numpy())
            for images, masks in zip(support_images, support_masks)
        ]
        found = {name: torch.cat([torch.from_numpy(e[name]) for e in episodes]) for name in episodes[0]}
        tensors: dict[str, Any] = found
        return self.memory_type(**tensors)

    def decode_query(self, memory: Memory, query_image: Tensor) -> SegmenterOutput:
        """See `FewShotMethod.decode_query`."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in memory.tensors().items()}
        found = []
        # Image by image: the segment graph looks for every memory in every image, and only the pairs are asked for.
        for i, image in enumerate(query_image):
            own = i if memory.batch_size > 1 else 0
            one = {name: array[own : own + 1] for name, array in arrays.items()}
            found.append([torch.from_numpy(array) for array in self.engine.decode(one, image[None].cpu().numpy())])
        logits, iou, presence = (torch.cat(parts) for parts in zip(*found))
        return SegmenterOutput(logits, iou, presence)
