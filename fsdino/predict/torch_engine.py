"""The engine that runs a segmenter, or any other method of the package, in torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fsdino.models.contract import FewShotMethod, Memory, Reference, image_tensor
from fsdino.models.memory import SupportMemory
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.predict.engine import Engine, Finding
from fsdino.predict.support import Annotated
from fsdino.weights import fingerprint

CLASSES_AT_ONCE = 16  # bounds the memory of a picture with many classes


class TorchEngine(Engine):
    """Runs a method in torch; several classes cost one pass of the encoder.

    Args:
        method: What segments, on the device that it is to run on.
    """

    def __init__(self, method: FewShotMethod) -> None:
        self.method = method.eval()
        self.fingerprint = fingerprint(method)
        self.threshold = method.threshold
        config = getattr(method, "config", None)
        self.positional = getattr(config, "reader", "pooled") == "pivot"

    def remember(self, references: Sequence[Annotated]) -> Any:
        """See `Engine.remember`."""
        return self.method.remember([Reference(one.image, mask=one.mask, name=one.name) for one in references])

    @torch.no_grad()
    def segment(self, memories: Sequence[Any], picture: np.ndarray) -> Iterator[Finding]:
        """See `Engine.segment`."""
        method, size = self.method, (picture.shape[0], picture.shape[1])
        square = method.resize.image(image_tensor(picture, "picture").to(method.device))[None]
        encoded = method.encode_query_feats(method.encoder(square)) if isinstance(method, FewShotSegmenter) else ()
        step = CLASSES_AT_ONCE if encoded and not self.positional else 1
        for start in range(0, len(memories), step):
            chunk = memories[start : start + step]
            if isinstance(method, FewShotSegmenter):
                output = method.decode_encoded(stack_memories(chunk), *encoded)
            else:
                output = method.decode_query(chunk[0], square)
            for i in range(len(chunk)):
                probs = method.resize.invert(output.mask_logits[i, 0].float(), size).sigmoid()
                score = float(output.iou_pred[i, 0].float().clamp(0.0, 1.0))
                yield Finding(probs.cpu().numpy(), score, bool(output.presence_logit[i, 0] > 0))

    def pack(self, memory: Memory) -> dict[str, np.ndarray]:
        """See `Engine.pack`."""
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in memory.tensors().items()}
        if isinstance(memory, SupportMemory) and memory.grid is not None:
            arrays["grid"] = np.asarray(memory.grid, np.int64)
        return arrays

    def unpack(self, arrays: dict[str, np.ndarray]) -> Memory:
        """See `Engine.unpack`."""
        kind: type[Memory] = getattr(self.method, "memory_type", SupportMemory)
        known = {field.name for field in fields(kind)} - {"grid"}
        tensors = {
            name: torch.from_numpy(array).to(self.method.device) for name, array in arrays.items() if name in known
        }
        if kind is not SupportMemory:
            return kind(**tensors)
        grid = tuple(int(n) for n in arrays["grid"]) if "grid" in arrays else None
        return SupportMemory(**tensors, grid=grid)  # type: ignore[arg-type]


def stack_memories(memories: Sequence[SupportMemory]) -> SupportMemory:
    """Make one memory of several classes', whatever their numbers of references.

    Shorter ones are filled up with positions of weight 0, which have no influence.

    Args:
        memories: Each of batch 1.

    Returns:
        A memory of batch N.
    """
    longest = max(memories, key=lambda memory: 0 if memory.fg is None else memory.fg.shape[-1])
    stacked = {}
    for name, like in longest.tensors().items():
        parts = [getattr(memory, name) for memory in memories]
        if name in ("tokens", "fg", "bg"):
            axis = -2 if name == "tokens" else -1
            parts = [_fill(part, like.shape[axis], name) for part in parts]
        stacked[name] = torch.cat(parts)
    return SupportMemory(**stacked, grid=longest.grid)


def _fill(tensor: torch.Tensor, length: int, name: str) -> torch.Tensor:
    missing = length - tensor.shape[-2 if name == "tokens" else -1]
    return F.pad(tensor, (0, 0, 0, missing) if name == "tokens" else (0, missing))
