"""Training-free chain on one frozen encoder: centred features of several blocks, smoothed scores, a relative cut.

None of its five steps learns: (1) the features of several blocks, each less its mean over pictures without labels and
of unit length, side by side; (2) similarity to the references' object prototype less part of that to their background;
(3) the map smoothed over the query's own similarities; (4) the query's own prototype, of its best positions, mixed into
the references', and 2 and 3 again; (5) a cut between the mean and the maximum of the query's own scores.

Sources: masked-average prototypes, PANet (Wang et al. 2019); the query's own prototype, SSP (Fan et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fsdino.base.memory import SegmenterOutput, Shape
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import ImageLike, image_array
from fsdino.base.resize import Resize, ResizeMode
from fsdino.base.result import MAX_CLASSES_AT_ONCE
from fsdino.models.debias import positional_directions, wanted_directions, without_directions
from fsdino.models.encoder import FeatureEncoder
from fsdino.models.memory import SupportMemory, grid_weights, prototypes, stack_memories, support_tokens
from fsdino.models.smoothing import ChainRule, affinity, chain_scores, relative_margin, side_by_side

Encoded = tuple[Tensor, Tensor]  # tokens (B, Q, L*C) and affinities (B, Q, Q) of images


def default_taps(depth: int) -> tuple[int, ...]:
    """The blocks from 5/12 of the depth on, 5 to 11 of 12: where features begin to tell classes apart."""
    return tuple(range(round(depth * 5 / 12), depth))


def with_mirrored(references: Tensor) -> Tensor:
    """Images (B, K, 3, S, S) or masks (B, K, S, S) of references, and after them the same mirrored: 2 K of each."""
    return torch.cat([references, references.flip(-1)], dim=1)


def read_means(path: str | Path, encoder: FeatureEncoder) -> Tensor:
    """Means (depth, C) of a safetensors file, a row for each block of the encoder.

    Raises:
        ValueError: they are those of another encoder.
    """
    found = load_file(path).get("means")
    wanted = (encoder.depth, encoder.dim)
    if found is None or found.shape != wanted:
        has = "no means" if found is None else f"means of shape {tuple(found.shape)}"
        raise ValueError(f"'{path}' holds {has}, this encoder needs {wanted}; give the file that was made with it.")
    return found.float()


class ChainMethod(FewShotMethod):
    """The chain; a memory is one object and one background prototype a block (`SupportMemory.prototypes`).

    Args:
        encoder: frozen features; all of its maps are read.
        background_weight: how much of the similarity to the background is taken off.
        smoothing_steps: how often the scores are smoothed, each time they are made.
        smoothing_scale: of the cosines before their softmax; the larger, the fewer positions are averaged.
        own_share: share of the query's positions that its own prototype is made of, in (0, 1].
        own_weight: weight of that prototype beside the references' object prototype, in [0, 1].
        own_rounds: how often it is made anew; 0 leaves it out.
        cut: part of the way from the mean score to the highest one above which a position is object, in (0, 1).
        mirror: whether each reference is also remembered mirrored, which costs nothing afterwards.
        presence_cut: mean cosine of the mask's positions to the object's prototype above which the object counts as
            present. 0, the default, hardly ever says "absent": choose it on your own pictures with and without.
        sharpness: mask logits are `sharpness * (score - cut score)`.
        debias: directions in which features tell their place, left out of every tap; None: half of the channels for
            rotary encoders (DINOv3), none for others. See `fsdino.models.debias`.
        resize_mode: "squash" or "pad", see `Resize`.

    Attributes:
        means: (L, C), the mean of each map over pictures without labels; zeros until `fit_means` or weights set it.
        directions: (L, C, debias), what is left out; zeros, so nothing, until `fit_directions` or weights set it.

    Raises:
        ValueError: an option is out of its range.
    """

    name = "chain"
    title = "chain"
    memory_type = SupportMemory
    exportable = True
    # They change what is made of a memory, not the memory.
    silent_args = frozenset(
        {"background_weight", "smoothing_steps", "smoothing_scale", "own_share", "own_weight", "own_rounds", "cut",
         "presence_cut", "sharpness"}
    )  # fmt: skip
    means: Tensor
    directions: Tensor

    def __init__(
        self,
        encoder: FeatureEncoder,
        background_weight: float = ChainRule.background_weight,
        smoothing_steps: int = ChainRule.smoothing_steps,
        smoothing_scale: float = ChainRule.smoothing_scale,
        own_share: float = ChainRule.own_share,
        own_weight: float = ChainRule.own_weight,
        own_rounds: int = ChainRule.own_rounds,
        cut: float = ChainRule.cut,
        mirror: bool = True,
        presence_cut: float = 0.0,
        sharpness: float = ChainRule.sharpness,
        debias: int | None = None,
        resize_mode: ResizeMode = "squash",
    ) -> None:
        super().__init__(Resize(encoder.img_size, resize_mode))
        shares = {"own_share": own_share, "own_weight": own_weight, "cut": cut}
        if wrong := {name: value for name, value in shares.items() if not 0.0 <= value <= 1.0}:
            raise ValueError(f"{wrong} are not between 0 and 1; they are shares.")
        if min(smoothing_steps, own_rounds) < 0:
            raise ValueError(f"smoothing_steps {smoothing_steps} and own_rounds {own_rounds} must be 0 or more.")
        self.encoder = encoder
        self.background_weight = background_weight
        self.smoothing_steps = smoothing_steps
        self.smoothing_scale = smoothing_scale
        self.own_share = own_share
        self.own_weight = own_weight
        self.own_rounds = own_rounds
        self.cut = cut
        self.mirror = mirror
        self.presence_cut = presence_cut
        self.sharpness = sharpness
        self.register_buffer("means", torch.zeros(encoder.num_maps, encoder.dim))
        count = wanted_directions(encoder, debias)
        self.register_buffer("directions", torch.zeros(encoder.num_maps, encoder.dim, count))

    @classmethod
    def build(
        cls,
        encoder: str = "vit_base_patch14_dinov2",
        img_size: int = 518,
        taps: Sequence[int] | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
        encoder_weights: str | None = None,
        encoder_stride: int | None = None,
        means: str | None = None,
        attention: Sequence[int] = (),
        **kwargs: Any,
    ) -> ChainMethod:
        """The method with an encoder of its own.

        Args:
            encoder: timm's name of the Vision Transformer; the `encoder_...` options are those of `FeatureEncoder`.
            img_size: side of the square input in pixels.
            taps: blocks (counted from 0) whose features are compared; None: `default_taps`.
            encoder_kwargs: `model_kwargs` there.
            encoder_weights: "timm", a path, or None for random.
            encoder_stride: pixels between patches where they overlap; None: the patch size.
            means: safetensors file with `means` (depth, C), one row for each block of this encoder; None: zeros.
            attention: blocks whose attention outputs are compared as well. Their mean over images is most of them, so
                take them with `fit_means`; a file of `means` has none.
            kwargs: as in the constructor.

        Raises:
            ValueError: the means are those of another encoder, or for attention outputs.
        """
        if means is not None and attention:
            raise ValueError("means: a file has none of attention outputs; leave attention empty, or use fit_means.")
        reader = FeatureEncoder(
            encoder, img_size, taps or (0,), model_kwargs=encoder_kwargs, weights=encoder_weights, stride=encoder_stride
        )
        if taps is None:
            taps = default_taps(reader.depth)
        reader = reader.reading(taps, attention)
        method = cls(reader, **kwargs)
        if encoder_weights is not None:
            method.fit_directions()
        if means is not None:
            method.means.copy_(read_means(means, reader)[list(reader.taps)])
        return method

    @torch.no_grad()
    def fit_means(self, images: Iterable[ImageLike]) -> ChainMethod:
        """Set `means` to those of pictures without labels; a few dozen like the ones to be segmented are enough.

        Memories of other means do not fit afterwards, and the fingerprint is another.

        Raises:
            ValueError: there is no image.
        """
        squares = (self._square(image_array(image, f"image {i}")) for i, image in enumerate(images))
        self.means.copy_(self.encoder.mean_features(squares))
        return self

    def fit_directions(self) -> ChainMethod:
        """Set `directions` to those of the encoder's present weights."""
        if self.directions.shape[-1]:
            self.directions.copy_(positional_directions(self.encoder, self.directions.shape[-1]))
        return self

    def shared_encoder(self) -> FeatureEncoder:
        """See `FewShotMethod.shared_encoder`."""
        return self.encoder

    def remark(self) -> str:
        """See `FewShotMethod.remark`: blocks ("5a": its attention output), cut, and what is not the default."""
        defaults = signature(type(self).__init__).parameters
        others = {name: getattr(self, name) for name in sorted({"mirror", *self.silent_args} - {"cut"})}
        changed = [f" {name} {value}" for name, value in others.items() if value != defaults[name].default]
        read = [*self.encoder.taps, *(f"{block}a" for block in self.encoder.attention)]
        return f"blocks {'+'.join(map(str, read))} cut {self.cut:.2f}{''.join(changed)}"

    # ---- features

    def centre(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps (N, C, h, w) of the taps without what all pictures share, and without what tells the place."""
        shared = zip(maps, self.means.to(maps[0].dtype), self.directions.to(maps[0].dtype))
        return [without_directions(m - mean[:, None, None], directions) for m, mean, directions in shared]

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> SupportMemory:
        """Object and background prototype of each tap, over all references; shapes as in `FewShotMethod`."""
        if self.mirror:
            support_images, support_masks = with_mirrored(support_images), with_mirrored(support_masks)
        return self.encode_support_maps(self.encoder(support_images.flatten(0, 1)), support_masks)

    def encode_support_maps(self, maps: Sequence[Tensor], support_masks: Tensor) -> SupportMemory:
        """The same from the references' feature maps, one (B*K, C, h, w) a tap."""
        maps = self.centre(maps)
        weights = grid_weights(support_masks, (maps[0].shape[-2], maps[0].shape[-1]))
        layers = [prototypes(support_tokens(m, len(support_masks)), *weights) for m in maps]
        return SupportMemory(torch.stack(layers, dim=1))

    def encode_query(self, query_image: Tensor) -> Encoded:
        """Tokens (B, Q, L*C) and their affinities (B, Q, Q), once for any number of classes."""
        return self.encode_query_maps(self.encoder(query_image))

    def encode_query_maps(self, maps: Sequence[Tensor]) -> Encoded:
        """The same from the images' feature maps, one (B, C, h, w) a tap."""
        tokens = side_by_side(self.centre(maps))
        return tokens, affinity(tokens, self.smoothing_scale)

    # ---- scores

    def scores(self, memory: SupportMemory, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Smoothed scores before the cut, and plain cosines to the references' object prototype, (B, G, Q) both.

        B images and one class each (G = 1), or one image and G classes.
        """
        pair, images = self._pair(memory), len(encoded[0])
        # Several classes of one image are maps of one image, so its affinities are never repeated.
        return self._scores(pair[None] if images == 1 else pair[:, None].expand(images, -1, -1, -1), encoded)

    @property
    def rule(self) -> ChainRule:
        """The options as numbers of the chain."""
        return ChainRule(**{field.name: getattr(self, field.name) for field in fields(ChainRule)})

    def _pair(self, memory: SupportMemory) -> Tensor:
        """Object and background prototype of a memory of batch N, all taps side by side, (N, 2, L*C)."""
        return memory.prototypes.to(self.means.dtype).transpose(1, 2).flatten(2) / len(self.means) ** 0.5

    def _scores(self, pair: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """As `scores`, of B images for prototypes (B, G, 2, L*C)."""
        tokens, similar = encoded
        to_object, to_background = ((p @ tokens.transpose(-1, -2)).float() for p in pair.to(tokens.dtype).unbind(2))
        return chain_scores(to_object, to_background, tokens[:, None], similar, self.rule)[0], to_object

    def relative_scores(self, memory: SupportMemory, encoded: Encoded) -> Tensor:
        """Scores (B or G, 1, h, w) as part of the way from each map's mean, 0, to its maximum, 1; to choose the cut."""
        return self.relative(self.scores(memory, encoded)[0])

    def relative(self, score: Tensor) -> Tensor:
        """As `relative_scores`, of the first that `scores` gives."""
        score = score.flatten(0, 1)
        mean, peak = score.mean(-1, keepdim=True), score.amax(-1, keepdim=True)
        side = int(score.shape[-1] ** 0.5)
        return ((score - mean) / (peak - mean).clamp_min(1e-6)).unflatten(-1, (side, side))[:, None]

    def decode_query(self, memory: SupportMemory, query_image: Tensor) -> SegmenterOutput:
        """See `FewShotMethod.decode_query`."""
        return self.decode_encoded(memory, self.encode_query(query_image))

    def decode_encoded(self, memory: SupportMemory, encoded: Encoded) -> SegmenterOutput:
        """Scores above the relative cut as logits; predicted IoU is the mean probability inside the mask.

        The margin over the cut is in cosines and not in shares of the way to the maximum: where several classes are
        asked for, one that is not there has a flat map, and its small margins lose against those of one that is.
        """
        return self.decode_scores(*self.scores(memory, encoded))

    def decode_all(self, memory: SupportMemory, encoded: Encoded) -> SegmenterOutput:
        """See `FewShotMethod.decode_all`."""
        return self.decode_scores(
            *self._scores(self._pair(memory)[None].expand(encoded[0].shape[0], -1, -1, -1), encoded)
        )

    def decode_scores(self, *maps: Tensor) -> SegmenterOutput:
        """What `scores` gives as an output, a row for each pair of an image and a class."""
        score, cosine = (one.flatten(0, 1) for one in maps)  # (B * G, Q)
        logits = self.sharpness * relative_margin(score, self.cut)
        # Soft, since on a flat map rounding alone would decide which positions are inside, or whether any is.
        inside = (8.0 * logits).sigmoid()
        found = inside.sum(-1, keepdim=True)  # never 0: the maximum is above the cut
        confidence = (logits.sigmoid() * inside).sum(-1, keepdim=True) / found
        # A relative cut finds something in every image, so presence needs a score that knows no maximum.
        likeness = (cosine * inside).sum(-1, keepdim=True) / found
        side = int(score.shape[-1] ** 0.5)
        presence = self.sharpness * (likeness - self.presence_cut)
        return SegmenterOutput(logits.unflatten(-1, (side, side))[:, None], confidence, presence)

    def memory_shapes(self) -> dict[str, Shape]:
        """See `FewShotMethod.memory_shapes`."""
        return {"prototypes": (1, len(self.means), 2, self.encoder.dim)}

    def join(self, memories: Sequence[SupportMemory]) -> list[SupportMemory]:
        """See `FewShotMethod.join`: classes are decoded as one batch."""
        starts = range(0, len(memories), MAX_CLASSES_AT_ONCE)
        return [stack_memories(memories[start : start + MAX_CLASSES_AT_ONCE]) for start in starts]
