"""The engine that runs a segmenter, or any other method of the package, in torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from fsdino.base.method import FewShotMethod, Memory, Reference, image_tensor
from fsdino.base.storage import fingerprint
from fsdino.models.memory import SupportMemory, stack_memories
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.predict.engine import CLASSES_AT_ONCE, Engine, Finding
from fsdino.predict.support import Annotated


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
        self.positional = getattr(config, "variant", "") == "full" and getattr(config, "reader", "") == "pivot"
        self._together: tuple[list[Any], Any] = ([], None)

    def remember(self, references: Sequence[Annotated]) -> Any:
        """See `Engine.remember`."""
        return self.method.remember([
            Reference(one.image, mask=one.mask, negative=one.negative, name=one.name, **one.hints) for one in references
        ])  # fmt: skip

    @torch.no_grad()
    def segment(self, memories: Sequence[Any], image: np.ndarray) -> Iterator[Finding]:
        """See `Engine.segment`."""
        method, size = self.method, (image.shape[0], image.shape[1])
        square = method.resize.image(image_tensor(image, "image").to(method.device))[None]
        encoded = method.encode_query_feats(method.encoder(square)) if isinstance(method, FewShotSegmenter) else ()
        step = CLASSES_AT_ONCE if encoded and not self.positional else 1
        for start in range(0, len(memories), step):
            chunk = memories[start : start + step]
            if isinstance(method, FewShotSegmenter):
                output = method.decode_encoded(self._stacked(chunk), *encoded)
            else:
                output = method.decode_query(chunk[0], square)
            for i in range(len(chunk)):
                probs = method.resize.invert(output.mask_logits[i, 0].float(), size).sigmoid()
                score = float(output.iou_pred[i, 0].float().clamp(0.0, 1.0))
                logit = output.presence_logit[i, 0].float()
                yield Finding(probs.cpu().numpy(), score, bool(logit > 0), float(logit.sigmoid()))

    def _stacked(self, memories: Sequence[SupportMemory]) -> SupportMemory:
        """The classes as one memory; image after image asks for the same ones, which are joined once."""
        known, joined = self._together
        if len(known) != len(memories) or any(a is not b for a, b in zip(known, memories)):
            joined = stack_memories(memories)
            self._together = (list(memories), joined)
        return joined

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
