"""FSSAM's formulas as pure functions: the two priors, the refined query memory, the calibrated attention.

After "FSSAM", arXiv 2505.14100, sections 3.2 to 3.4. None of them has a parameter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.base.devices import without_autocast
from fsdino.methods.prototype import masked_average


def minmax(x: Tensor, dims: int = 1) -> Tensor:
    """Stretch the last `dims` dimensions together to [0, 1]; a constant becomes 0."""
    over = tuple(range(-dims, 0))
    low, high = x.amin(over, keepdim=True), x.amax(over, keepdim=True)
    return (x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)


def cosine_map(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine (..., K, N), float32 at least, of tokens (..., N, C) to prototypes (..., K, C)."""
    # Tokens of an encoder are nearly parallel, and `minmax` stretches differences of a few thousandths: bfloat16 would
    # leave a handful of steps between 0 and 1.
    with without_autocast(tokens.device):
        precise = torch.promote_types(tokens.dtype, torch.float32)
        found, wanted = (F.normalize(x.to(precise), dim=-1) for x in (tokens, prototypes))
        return wanted @ found.transpose(-2, -1)


def query_priors(tokens: Tensor, foreground: Tensor, background: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pseudo prompts: where the query may hold the object.

    Args:
        tokens: (B, N, C) query features on a square grid.
        foreground: (B, K, C), the object's prototype in each reference.
        background: (B, K, C), the rest's.
        size: side of the priors in pixels.

    Returns:
        Prior A, which finds all of the object and more: the foreground map. Prior B, which finds parts of it and little
        else: by how much the foreground map exceeds the background map. Both (B, 1, size, size) in [0, 1].
    """
    grid = int(tokens.shape[1] ** 0.5)
    maps = []
    for prototypes in (foreground, background):
        cosine = minmax(cosine_map(tokens, prototypes)).unflatten(2, (grid, grid))  # (B, K, g, g)
        maps.append(F.interpolate(cosine, size=(size, size), mode="bilinear", align_corners=True))
    object_map, rest_map = maps
    # Stretched for each reference before the mean over them, so that a poor reference does not decide the scale.
    precise = minmax((object_map - rest_map).relu(), dims=2)
    return object_map.mean(1, keepdim=True), precise.mean(1, keepdim=True)


def refine_memory(
    memory_a: Tensor, memory_b: Tensor, prior_a: Tensor, prior_b: Tensor, support: Tensor, *, rounds: int
) -> tuple[Tensor, Tensor]:
    """Iterative Memory Refinement: take from memory A what the support and the query's own object confirm.

    Args:
        memory_a: (B, N, M), the query's memory under prior A.
        memory_b: (B, N, M), under prior B.
        prior_a: (B, N) in [0, 1], prior A on the memory's grid.
        prior_b: (B, N) in [0, 1].
        support: (B, K, M), the masked average of each reference's memory.
        rounds: how often.

    Returns:
        The refined memory B (B, N, M) and prior B (B, N).
    """
    seen_in_support = minmax(cosine_map(memory_a, support)).mean(1)  # (B, N)
    for _ in range(rounds):
        own = masked_average(memory_b, prior_b)[:, None]  # (B, 1, M)
        seen_in_query = minmax(cosine_map(memory_a, own))[:, 0]
        # Above 0 only where the two similarities add up to more than 1: one of them alone is not enough.
        take = (seen_in_support + seen_in_query - 1).relu().to(memory_b.dtype)  # (B, N)
        memory_b = take[..., None] * memory_a + (1 - take[..., None]) * memory_b
        prior_b = minmax(take * prior_a + (1 - take) * prior_b)
    return memory_b, prior_b


@torch.no_grad()
def calibration_bias(
    logits: Tensor, query_keys: Tensor, support_keys: Tensor, support_weights: Tensor, strength: float
) -> Tensor:
    """Support calibration: damp query-memory columns that match the query pixel, not the support's object.

    Args:
        logits: (B, H, N, T), attention logits of N query pixels to the T query-memory columns, per head.
        query_keys: (B, H, T, d), the keys of these columns, rotated by their place.
        support_keys: (B, H, T, d), those of the support memory, averaged over the references.
        support_weights: (B, T) in [0, 1], how much of a support position is object.
        strength: factor of the bias.

    Returns:
        (B, H, N, T) in [-strength, 0], without gradient: strength * min(0, a + c - 1) with a the logits stretched to
        [0, 1] in each row, and c the keys' cosine to the object's mean key stretched over the columns.
    """
    weights = support_weights[:, None].expand(support_keys.shape[:3])
    prototype = masked_average(support_keys, weights)  # (B, H, d)
    confirmed = minmax(cosine_map(query_keys, prototype[..., None, :]))  # (B, H, 1, T)
    return strength * (minmax(logits) + confirmed - 1).clamp_max(0)
