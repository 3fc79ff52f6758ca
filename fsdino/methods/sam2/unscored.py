"""A SAM2 without object scores: no head, no token in the mask decoder, no codes for "nothing here"."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdino.methods.sam2.net import Sam2


def without_object_score_(sam2: Sam2) -> Sam2:
    """Make a SAM2 what it is when built with `pred_obj_scores` off, as SANSA's is; returns it."""
    # What nothing reads any more must not be saved or counted as a part of the method.
    decoder = sam2.net.mask_decoder
    decoder.pred_obj_score_head = AlwaysThere()  # type: ignore[assignment]
    decoder.obj_score_token = NoToken(sam2.dim).to(sam2.mean.device, sam2.dtype)  # type: ignore[assignment]
    # The decoder puts that token first and finds the others by their places. So it is taken away at the door of the
    # transformer, where the others would look at it, and something is put back behind it.
    decoder.transformer.register_forward_pre_hook(_without_first, with_kwargs=True)
    decoder.transformer.register_forward_hook(_with_first)
    sam2.net.no_object_pointer = None  # type: ignore[assignment]
    sam2.net.occlusion_spatial_embedding_parameter = None
    return sam2


class AlwaysThere(nn.Module):
    """Stands in for the object-score head: a logit of 10 for every token."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., 1)."""
        return torch.full_like(tokens[..., :1], 10.0)


class NoToken(nn.Module):
    """Stands in for the object-score token where the decoder expects one."""

    weight: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(1, dim), persistent=False)


def _without_first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "point_embeddings": kwargs["point_embeddings"][:, :, 1:]}


def _with_first(module: nn.Module, args: Any, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return F.pad(found[0], (0, 0, 1, 0)), *found[1:]
