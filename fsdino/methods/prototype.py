"""Training-free baselines: prototypes compared by cosine, and the answer "everything is the object".

The masked-average prototype is that of PANet (Wang et al. 2019); the correlation variant takes a query pixel's softmax
over all support pixels and adds up what falls on the object. Neither has a weight of its own; the one number they need,
the threshold on the score, is chosen on base classes by `fsdino.metrics.threshold.choose_threshold`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.base.memory import Memory, SegmenterOutput, Shape
from fsdino.base.method import FewShotMethod
from fsdino.base.resize import Resize, ResizeMode
from fsdino.models.encoder import FeatureEncoder

Kind = Literal["fg_bg", "softmax"]
# Logit of an answer that is certain: sigmoid(10) = 0.99995.
CERTAIN = 10.0


def masked_average(tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean (..., C) of tokens (..., M, C) by weights (..., M) in [0, 1]; zeros where all weights are 0."""
    # An object smaller than a cell may have no weight at all. The clamp keeps NaN out of the branch that `where` drops,
    # since its gradient would not stay there.
    total = weights.sum(-1, keepdim=True)
    mean = (tokens * weights[..., None]).sum(-2) / total.clamp_min(torch.finfo(tokens.dtype).tiny)
    return torch.where(total > 0, mean, torch.zeros_like(mean))


def prototype_score(query: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Cosine of tokens (..., N, C) to the object's prototype (..., C) minus that to the background's, in [-2, 2].

    A prototype of zeros, where there is no background, has a cosine of 0.
    """
    # The difference of two cosines is one product with the difference of the unit vectors.
    query = F.normalize(query, dim=-1)
    contrast = F.normalize(foreground, dim=-1) - F.normalize(background, dim=-1)
    return (query @ contrast[..., None])[..., 0]


def correlation_score(query: Tensor, support: Tensor, weights: Tensor, temperature: float = 0.1) -> Tensor:
    """Share of a query token's softmax over all support tokens that falls on the object, (..., N) in [0, 1].

    Args:
        query: (..., N, C).
        support: (..., M, C).
        weights: (..., M) in [0, 1], how much of a support token is object.
        temperature: divides the cosine.
    """
    cosine = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).transpose(-1, -2)  # (..., N, M)
    return ((cosine / temperature).softmax(-1) @ weights[..., None])[..., 0]


@dataclass
class PrototypeMemory(Memory):
    """Support tokens of B episodes that a query is compared with.

    Args:
        features: (B, L, M, C), L taps; M = 2 (object, background) for "fg_bg", all support tokens for "softmax".
        weights: (B, M) in [0, 1], how much of a token is object.
    """

    features: Tensor
    weights: Tensor


class PrototypeMethod(FewShotMethod):
    """Compare query tokens with the references' by cosine, and hold the score against a threshold.

    Args:
        encoder: frozen features.
        tap: block or blocks (counted from 0, among `encoder.taps`) that are compared; their scores are averaged.
        score_threshold: score above which a position is object; choose it (and the tap) on base classes only.
        kind: "fg_bg" for `prototype_score`, "softmax" for `correlation_score`.
        temperature: of the softmax.
        sharpness: mask logits are `sharpness * (score - score_threshold)`.
        resize_mode: "squash" or "pad", see `Resize`.

    Raises:
        ValueError: for an unknown kind, or a tap that the encoder does not return.
    """

    name = "prototype"
    title = "prototype"
    memory_type = PrototypeMemory

    def __init__(
        self,
        encoder: FeatureEncoder,
        tap: int | Sequence[int],
        score_threshold: float,
        kind: Kind = "fg_bg",
        temperature: float = 0.1,
        sharpness: float = 10.0,
        resize_mode: ResizeMode = "squash",
    ) -> None:
        super().__init__(Resize(encoder.img_size, resize_mode))
        if kind not in ("fg_bg", "softmax"):
            raise ValueError(f"unknown kind {kind!r}; use 'fg_bg' or 'softmax'.")
        self.taps = (tap,) if isinstance(tap, int) else tuple(tap)
        if missing := [t for t in self.taps if t not in tuple(encoder.taps)]:
            raise ValueError(
                f"the encoder returns taps {tuple(encoder.taps)}, not {missing}; build it with these taps."
            )
        self.encoder = encoder
        self.score_threshold = score_threshold
        self.kind: Kind = kind
        self.temperature = temperature
        self.sharpness = sharpness
        # A softmax over tokens of several classes' memories, filled up to one length, would count the filling.
        self.exportable = kind == "fg_bg"

    @classmethod
    def build(
        cls,
        encoder: str = "vit_base_patch14_dinov2",
        img_size: int = 518,
        tap: int | Sequence[int] = 11,
        score_threshold: float = 0.0,
        encoder_kwargs: dict[str, Any] | None = None,
        encoder_weights: str | None = None,
        encoder_stride: int | None = None,
        **kwargs: Any,
    ) -> PrototypeMethod:
        """The method with an encoder of its own.

        Args:
            encoder: timm's name of the Vision Transformer; the `encoder_...` options are those of `FeatureEncoder`.
            img_size: side of the square input in pixels.
            tap: as in the constructor, like `score_threshold` and `kwargs`.
            encoder_kwargs: `model_kwargs` there.
            encoder_weights: "timm", a path, or None for random.
            encoder_stride: pixels between patches where they overlap; None: the patch size.
        """
        taps = (tap,) if isinstance(tap, int) else tuple(tap)
        reader = FeatureEncoder(
            encoder, img_size, taps, model_kwargs=encoder_kwargs, weights=encoder_weights, stride=encoder_stride
        )
        return cls(reader, taps, score_threshold, **kwargs)

    def remark(self) -> str:
        """See `FewShotMethod.remark`."""
        return f"{self.kind} block {'+'.join(str(tap) for tap in self.taps)} threshold {self.score_threshold:.3f}"

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> PrototypeMemory:
        """Prototypes (or all tokens) of the references, pooled over all shots; shapes as in `FewShotMethod`."""
        batch, shots = support_images.shape[:2]
        tokens = self._tokens(support_images.flatten(0, 1))  # (B*K, L, h*w, C)
        grid = int(tokens.shape[2] ** 0.5)
        # A token counts by the share of its cell that is object: a thin object keeps its weight on a coarse grid.
        area = F.adaptive_avg_pool2d(support_masks.flatten(0, 1)[:, None], grid).flatten(1)  # (B*K, h*w)
        weights = area.reshape(batch, -1).to(tokens.dtype)  # (B, M)
        # All shots form one pool, so each pixel of the class counts alike, not each reference.
        tokens = tokens.unflatten(0, (batch, shots)).transpose(1, 2).flatten(2, 3)  # (B, L, M, C)
        if self.kind == "softmax":
            return PrototypeMemory(tokens, weights)
        pair = [masked_average(tokens, w[:, None].expand(tokens.shape[:3])) for w in (weights, 1 - weights)]
        return PrototypeMemory(torch.stack(pair, dim=2), weights.new_tensor([1.0, 0.0]).repeat(batch, 1))

    def scores(self, memory: PrototypeMemory, query_image: Tensor) -> Tensor:
        """Score maps (B, h, w) before the threshold, for choosing it; arguments as of `decode_query`."""
        return self._scores(memory, self.encode_query(query_image))

    def _scores(self, memory: PrototypeMemory, query: Tensor) -> Tensor:
        tokens = memory.features.to(query.dtype)
        if self.kind == "softmax":
            weights = memory.weights[:, None].to(query.dtype)
            score = correlation_score(query, tokens, weights, self.temperature)
        else:
            score = prototype_score(query, tokens[:, :, 0], tokens[:, :, 1])
        grid = int(query.shape[2] ** 0.5)
        # Scores of taps are averaged, not features: each tap has its own scale of cosines.
        return score.mean(1).unflatten(1, (grid, grid))

    def encode_query(self, query_image: Tensor) -> Tensor:
        """Tokens (B, L, h*w, C) of the taps."""
        return self._tokens(query_image)

    def decode_query(self, memory: PrototypeMemory, query_image: Tensor) -> SegmenterOutput:
        """See `FewShotMethod.decode_query`."""
        return self.decode_encoded(memory, self.encode_query(query_image))

    def decode_encoded(self, memory: PrototypeMemory, encoded: Tensor) -> SegmenterOutput:
        """Scores above the threshold as logits; predicted IoU is the mean probability inside the mask."""
        logits = self.sharpness * (self._scores(memory, encoded) - self.score_threshold)[:, None]  # (B, 1, h, w)
        inside = (logits > 0).to(logits.dtype)
        confidence = (logits.sigmoid() * inside).sum((2, 3)) / inside.sum((2, 3)).clamp_min(1)
        return SegmenterOutput(logits, confidence, logits.amax((2, 3)))

    def memory_shapes(self) -> dict[str, Shape]:
        """See `FewShotMethod.memory_shapes`."""
        return {"features": (1, len(self.taps), "M", self.encoder.dim), "weights": (1, "M")}

    def _tokens(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, L, h*w, C)."""
        # Taps may be asked for in any order and number: the encoder returns each once, in its own order.
        maps = dict(zip(self.encoder.taps, self.encoder(images, last_tap=max(self.taps))))
        return torch.stack([maps[tap].flatten(2).transpose(1, 2) for tap in self.taps], dim=1)


@dataclass
class EmptyMemory(Memory):
    """What `AllForeground` keeps of B episodes: a tensor (B, 0), which still has the batch size."""

    nothing: Tensor


class AllForeground(FewShotMethod):
    """The floor of every table: each pixel is the object."""

    name = "all_foreground"
    title = "all foreground"
    memory_type = EmptyMemory

    def __init__(self, img_size: int) -> None:
        super().__init__(Resize(img_size))

    @classmethod
    def build(cls, img_size: int = 518) -> AllForeground:
        """The method for a square input of `img_size` pixels a side, which changes no answer."""
        return cls(img_size)

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> EmptyMemory:
        """Keep the batch size."""
        return EmptyMemory(support_images.new_zeros(len(support_images), 0))

    def decode_query(self, memory: EmptyMemory, query_image: Tensor) -> SegmenterOutput:
        """All foreground, certainly."""
        ones = query_image.new_ones(len(query_image), 1)
        return SegmenterOutput(CERTAIN * ones[..., None, None], ones, CERTAIN * ones)
