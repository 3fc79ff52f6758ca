"""Masks of the user's objects in the user's images. Nothing here imports torch until a torch engine is opened."""

from fsdino.predict.command import open_engine, predict, remember
from fsdino.predict.support import Support, read_support

__all__ = ["Support", "open_engine", "predict", "read_support", "remember"]
