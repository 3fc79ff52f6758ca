"""Masks of the user's objects in the user's images. Nothing here imports torch until a torch engine is opened."""

from fsdino.predict.command import predict, remember
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.support import Support, read_support

__all__ = ["EngineChoice", "Support", "predict", "read_support", "remember"]
