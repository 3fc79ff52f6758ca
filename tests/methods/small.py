"""Small SAM2s and encoders of the real classes, whose random weights hide nothing: none is left at zero."""

from __future__ import annotations

from dataclasses import replace

import torch

from fsdino.methods.sam2.net import Sam2
from fsdino.methods.sam2.sizes import SIZES, HieraSize, Sam2Version, sam2_config
from fsdino.models.encoder import FeatureEncoder

SIDE = 64  # pixels: a 4 x 4 map


def twin(size: str) -> HieraSize:
    """The blocks, windows and global blocks of a size at a fraction of its width."""
    narrow = {"embed_dim": 8, "num_heads": 1, "prompt_dim": 128, "decoder_mlp_dim": 32, "decoder_heads": 2}
    return replace(SIZES[size], **narrow, memory_layers=2, memory_mlp_dim=32)


def small_sam2(size: str = "mini", version: Sam2Version = "2.1", side: int = SIDE, seed: int = 0) -> Sam2:
    """A SAM2 whose codes, embeddings and layer scales are random in place of zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam2 = Sam2(sam2_config("mini" if size == "mini" else twin(size), side, version))
        for parameter in sam2.parameters():
            if not bool(parameter.detach().any()):
                torch.nn.init.normal_(parameter, std=0.3)
        for name, parameter in sam2.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:  # large, so that a wrong input shows in the output
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return sam2.eval()


def small_encoder(side: int = 70) -> FeatureEncoder:
    """A DINOv2 of 70 thousand parameters on a 5 x 5 grid."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        kwargs = {"embed_dim": 32, "depth": 4, "num_heads": 2}
        return FeatureEncoder("vit_small_patch14_dinov2", side, (3,), model_kwargs=kwargs)
