"""FS-DINO: DINOv2 and SAM compressed into one small model that segments anything from a few annotated images."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it. Resolved on first use, so that `import fsdino` stays instant (no torch).
_PUBLIC = {
    "load": "fsdino.base.storage",
    "save": "fsdino.base.storage",
    "build": "fsdino.base.registry",
    "Reference": "fsdino.base.reference",
    "Segmentation": "fsdino.base.result",
    "Instance": "fsdino.base.result",
    "LabelMap": "fsdino.base.result",
    "sharpened": "fsdino.base.sharpen",
    "FewShotMethod": "fsdino.base.method",
    "Memory": "fsdino.base.memory",
    "SegmenterOutput": "fsdino.base.memory",
    "FewShotSegmenter": "fsdino.models.segmenter",
    "SegmenterConfig": "fsdino.models.config",
    "SupportMemory": "fsdino.models.memory",
    "SavedMemory": "fsdino.predict.memory_file",
    "save_memory": "fsdino.predict.memory_file",
    "load_memory": "fsdino.predict.memory_file",
    "cut_of": "fsdino.predict.cut",
    "open_data_set": "fsdino.data.catalog",
    "EpisodeList": "fsdino.data.episodes.episode_list",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fsdino' has no attribute {name!r}; public names: {', '.join(__all__)}.")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
