"""Models for use elsewhere. Import `export` from `fsdino.export.run`: running exported graphs must not import torch."""
