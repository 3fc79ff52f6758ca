"""Models elsewhere. Import `export` from `fsdino.export.command`: running exported graphs must not import torch."""
