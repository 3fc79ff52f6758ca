"""What runs a model: any `FewShotMethod` in torch, or exported graphs. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from fsdino.base.reference import Reference
from fsdino.base.result import Segmentation


class Engine(Protocol):
    """Remembers classes and finds them; a memory is whatever the engine makes it. `FewShotMethod` is one."""

    threshold: float  # probability above which a pixel belongs to a class
    batch: int  # images of a pass that pay on its hardware
    missed_classes: tuple[str, ...] | None  # on which it learnt to say that they are absent; None: that is not told

    @property
    def name(self) -> str:
        """The method's, as the registry has it."""

    def fingerprint(self) -> str:
        """Names the model; memories of other models are refused."""

    def remember(self, references: Sequence[Reference]) -> Any:
        """Turn the references of one class into a memory."""

    def join(self, memories: Sequence[Any]) -> Sequence[Any]:
        """Several classes' memories in the form that `find` takes; made once for many images."""

    def find(self, joined: Sequence[Any], image: np.ndarray) -> Iterator[Segmentation]:
        """Find classes in an image (H, W, 3) uint8: one result per class, in order, made when it is asked for."""

    def find_batch(self, joined: Sequence[Any], images: Sequence[np.ndarray]) -> Sequence[Iterator[Segmentation]]:
        """As `find` in each of several images of any sizes, which go through the network together."""

    def pack(self, memory: Any) -> dict[str, np.ndarray]:
        """A memory as named arrays with a leading axis of 1, the same for every engine of a model."""

    def unpack(self, arrays: dict[str, np.ndarray]) -> Any:
        """The memory of packed arrays."""
