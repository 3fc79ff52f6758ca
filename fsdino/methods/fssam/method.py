"""FSSAM: the query becomes its own memory, and the reference cleans it.

SAM2 matches the *same* object between frames, but a reference shows another object of the class. So a coarse prior from
DINOv2 features gives the query a pseudo memory of itself, which is refined and then calibrated by the reference inside
SAM2's memory attention. After arXiv 2505.14100 (ICML 2025); the formulas are in `formulas`, and
`recipes/fssam/README.md` lists everything that differs from the published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdino.base.frozen import FrozenMaps
from fsdino.base.memory import Memory, SegmenterOutput
from fsdino.base.method import FewShotMethod
from fsdino.base.resize import Resize, ResizeMode
from fsdino.methods.fssam.attention import calibrated_attention
from fsdino.methods.fssam.formulas import query_priors, refine_memory
from fsdino.methods.prototype import masked_average
from fsdino.methods.sam2.net import Sam2
from fsdino.methods.sam2.published import read_published
from fsdino.methods.sam2.sizes import Sam2Version, size_and_version
from fsdino.methods.sam2.unscored import without_object_score_
from fsdino.methods.sam2.weights import build_sam2, from_published, update_from_published_
from fsdino.models.encoder import FeatureEncoder

Square = Literal["sam2", "larger"]
Calibration = Literal["first", "all"]
Presence = Literal["object_score", "always"]


@dataclass
class FssamMemory(Memory):
    """What FSSAM keeps of B episodes; T = h*w memory positions, K references.

    Args:
        foreground: (B, K, C), the object's mean DINOv2 feature in each reference.
        background: (B, K, C), the rest's.
        prototypes: (B, K, memory_dim), the object's mean memory in each reference.
        map: (B, T, memory_dim), the memory, mean over the references.
        pointer: (B, D), the object pointer, mean over the references.
        weights: (B, T), the mask on the memory's grid that calibrates: the first reference's, or the mean over all.
    """

    # Means over the references stand for all of them: FSSAM averages SAM2's keys and values over K, and both are linear
    # in the memory. So the size hardly grows with K.
    foreground: Tensor
    background: Tensor
    prototypes: Tensor
    map: Tensor
    pointer: Tensor
    weights: Tensor


class Fssam(FewShotMethod):
    """FSSAM on a SAM2 and a DINOv2; memory encoder, memory attention and mask decoder train, the rest is frozen.

    Args:
        sam2: with its weights loaded.
        encoder: its last tap is used.
        rounds: of the memory refinement; 0 leaves it out.
        strength: of the calibration bias; 0 leaves it out.
        resize_mode: "squash" as published, or "pad".
        calibration: whose masks calibrate. "first": the first reference's alone, which the published code does for any
            number of them, against its paper; published five-shot weights were trained so. "all": the mean mask.
        presence: "object_score": as published, SAM2's own score empties the answer where it sees no object. "always": a
            SAM2 without object scores.
        square: "sam2": images come at SAM2's size with hard masks, as published, and DINOv2 gets them enlarged.
            "larger": at the larger of the two sizes with soft masks, so that neither is.

    Raises:
        ValueError: for an unknown `calibration`, `presence` or `square`.
    """

    name = "fssam"
    title = "FSSAM"
    memory_type = FssamMemory
    arithmetic = 2

    def __init__(
        self,
        sam2: Sam2,
        encoder: FeatureEncoder,
        rounds: int = 3,
        strength: float = 10.0,
        resize_mode: ResizeMode = "squash",
        calibration: Calibration = "first",
        presence: Presence = "object_score",
        square: Square = "sam2",
    ) -> None:
        for what, value, known in (
            ("calibration", calibration, ("first", "all")),
            ("presence", presence, ("object_score", "always")),
            ("square", square, ("sam2", "larger")),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; use '{known[0]}' or '{known[1]}'.")
        size = sam2.img_size if square == "sam2" else max(sam2.img_size, encoder.img_size)
        super().__init__(Resize(size, resize_mode, hard_masks=square == "sam2"))
        self.sam2 = sam2.requires_grad_(False)
        if presence == "always":
            without_object_score_(sam2)
        self.encoder = encoder
        encoder.own_norm = True
        self.rounds = rounds
        self.strength = strength
        self.calibration: Calibration = calibration
        for part in self._trained():
            part.requires_grad_(True)
        # The score only switches, so no published loss teaches it.
        sam2.net.mask_decoder.pred_obj_score_head.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def build(
        cls,
        size: str = "small",
        img_size: int = 512,
        version: Sam2Version = "2.1",
        weights: str | None = None,
        sha256: str | None = None,
        encoder: str = "vit_base_patch14_dinov2",
        encoder_img_size: int = 560,
        tap: int = 11,
        encoder_kwargs: dict[str, Any] | None = None,
        encoder_weights: str | None = None,
        encoder_stride: int | None = None,
        published: str | None = None,
        **kwargs: Any,
    ) -> Fssam:
        """FSSAM from names, published sizes by default, with random or official weights.

        Args:
            size: SAM2's, as `img_size`, `version`, `weights` and `sha256` are; see `build_sam2`.
            encoder: timm's name of the Vision Transformer; the `encoder_...` options are those of `FeatureEncoder`.
            encoder_img_size: side of its square input in pixels.
            tap: block (from 0) that is read; the last one, as published.
            encoder_kwargs: `model_kwargs` there.
            encoder_weights: "timm", a path, or None for random.
            encoder_stride: pixels between patches where they overlap for a finer map; None: the patch size.
            published: the authors' checkpoint: SAM2's trained parts, and the rest of SAM2 in place of `weights` if it
                holds it. A DINOv2 inside is passed over, since it is the frozen official one: give `encoder_weights`.
            kwargs: for the constructor.
        """
        features = FeatureEncoder(
            encoder, encoder_img_size, (tap,), encoder_kwargs, weights=encoder_weights, stride=encoder_stride
        )
        if published is None:
            return cls(build_sam2(size, img_size, version, weights, sha256), features, **kwargs)
        state = read_published(published)
        if state.has_encoder:
            return cls(from_published(state, img_size, scored=True), features, **kwargs)
        sam2 = build_sam2(size, img_size, version, weights, sha256)
        update_from_published_(sam2, state, ("memory_encoder.", "memory_attention.", "mask_decoder."))
        return cls(sam2, features, **kwargs)

    def _trained(self) -> tuple[nn.Module, ...]:
        net = self.sam2.net
        return net.memory_encoder, net.memory_attention, net.mask_decoder

    def train(self, mode: bool = True) -> Fssam:
        """Only the three trained parts leave eval mode."""
        super().train(mode)
        self.sam2.eval()
        for part in self._trained():
            part.train(mode)
        return self

    def prepare_training_(self, iou_weight: float, presence_weight: float) -> None:
        """See `FewShotMethod.prepare_training_`; published are weights of 0."""
        decoder = self.sam2.net.mask_decoder
        decoder.iou_prediction_head.requires_grad_(iou_weight > 0)
        decoder.pred_obj_score_head.requires_grad_(presence_weight > 0)

    def sizes_of_weights(self, built_with: Mapping[str, Any]) -> dict[str, Any]:
        """SAM2's size and version, which its weights decide."""
        size, version = size_and_version(self.sam2.net.config)
        return {"size": size, "version": version}

    def predict_episodes(self, batch: Mapping[str, Any]) -> SegmenterOutput:
        """See `FewShotMethod.predict_episodes`; SAM2 always sees the pixels, the priors' features may be cached."""
        if "query_feats" not in batch:
            return super().predict_episodes(batch)
        found, wanted = batch["support_feats"].float(), batch["query_feats"].float()
        memory = self.encode_support(batch["support_images"], batch["support_masks"], found)
        return self.decode_query(memory, batch["query_image"], wanted)

    def frozen_maps(self) -> FrozenMaps:
        """What the priors compare, (N, C) an image."""
        encoder = self.encoder
        return FrozenMaps(
            "fssam",
            encoder,
            settings=(encoder.taps, encoder.img_size, self.img_size, "own norm"),
            img_size=self.img_size,
            entry_shape=(encoder.grid_size**2, encoder.dim),
            compute=self.features,
            in_place_of_images=False,
        )

    def encode_support(
        self, support_images: Tensor, support_masks: Tensor, support_features: Tensor | None = None
    ) -> FssamMemory:
        """Prototypes and memory of the references, as `FewShotMethod.encode_support`.

        Args:
            support_images: (B, K, 3, S, S) in [0, 1].
            support_masks: (B, K, S, S) in [0, 1].
            support_features: (B, K, N, C), what `features` gives for the images; None computes it.
        """
        batch = len(support_images)
        images, masks = support_images.flatten(0, 1), support_masks.flatten(0, 1)[:, None]
        features = self.features(images) if support_features is None else support_features.flatten(0, 1)  # (B*K, N, C)
        area = _on_grid(masks, int(features.shape[1] ** 0.5)).to(features.dtype)  # (B*K, N)
        frame, fitted = self.sam2.encode(self._fit(images)), self._fit(masks)
        tokens, pointers = self.sam2.given_memory(frame, fitted), self.sam2.given_pointer(frame, fitted)
        weights = _on_grid(masks, self.sam2.grid).to(tokens.dtype)  # (B*K, T)

        def split(x: Tensor) -> Tensor:
            return x.unflatten(0, (batch, -1))  # (B*K, ...) -> (B, K, ...)

        return FssamMemory(
            foreground=split(masked_average(features, area)),
            background=split(masked_average(features, 1 - area)),
            prototypes=split(masked_average(tokens, weights)),
            map=split(tokens).mean(1),
            pointer=split(pointers).mean(1),
            weights=split(weights)[:, 0] if self.calibration == "first" else split(weights).mean(1),
        )

    def decode_query(
        self, memory: FssamMemory, query_image: Tensor, query_features: Tensor | None = None
    ) -> SegmenterOutput:
        """Prior, pseudo memory, refinement, calibrated attention, SAM2's decoder; best mask by predicted IoU.

        Args:
            memory: of batch B, or of batch 1 for all images.
            query_image: (B, 3, S, S) in [0, 1].
            query_features: (B, N, C), what `features` gives for the images; None computes it.
        """
        batch, sam2 = len(query_image), self.sam2
        features = self.features(query_image) if query_features is None else query_features
        memory = memory.to(features.dtype)
        prior_a, prior_b = query_priors(features, memory.foreground, memory.background, sam2.img_size)
        frame = sam2.encode(self._fit(query_image))
        refined, _ = refine_memory(
            sam2.given_memory(frame, prior_a),
            sam2.given_memory(frame, prior_b),
            _on_grid(prior_a, sam2.grid).to(features.dtype),
            _on_grid(prior_b, sam2.grid).to(features.dtype),
            memory.prototypes.expand(batch, -1, -1),
            rounds=self.rounds,
        )
        # Prior B makes the query's own pointer: a pointer stands for one object, so it must not hold what is not one.
        pointers = torch.stack([memory.pointer.expand(batch, -1), sam2.given_pointer(frame, prior_b)], dim=1)
        tokens, positions, num_pointer_tokens = self._context(memory, refined, pointers)
        embedding = calibrated_attention(
            sam2,
            frame,
            tokens,
            positions,
            memory.weights.expand(batch, -1),
            num_pointer_tokens=num_pointer_tokens,
            strength=self.strength,
        )
        found = sam2.decode(frame, embedding).best()
        # Not while it learns: an emptied mask has no gradient, so nothing would bring the object back.
        if not self.training:
            found = sam2.where_present(found)
        return SegmenterOutput(found.mask_logits, found.iou_pred, found.object_logits)

    def _context(self, memory: FssamMemory, refined: Tensor, pointers: Tensor) -> tuple[Tensor, Tensor, int]:
        """Tokens (B, 2*T + P, memory_dim), their codes, and P."""
        sam2, device = self.sam2, refined.device
        # One temporal code for both memories: references and query are not ordered in time.
        where = sam2.memory_position(device) + sam2.temporal_code(0)  # (T, memory_dim)
        ages = torch.ones(pointers.shape[1], device=device)
        pointer_tokens, pointer_codes = sam2.split_pointers(pointers, sam2.pointer_code(ages))
        tokens = torch.cat([memory.map.expand(len(refined), -1, -1), refined, pointer_tokens], dim=1)
        return tokens, torch.cat([where, where, pointer_codes]), pointer_tokens.shape[1]

    def features(self, images: Tensor) -> Tensor:
        """What the priors compare, (N, tokens, C): the frozen encoder's last tap on images (N, 3, S, S) in [0, 1]."""
        return self.encoder(_resize(images, self.encoder.img_size))[-1].flatten(2).transpose(1, 2)

    def _fit(self, x: Tensor) -> Tensor:
        return _resize(x, self.sam2.img_size)


def _resize(x: Tensor, size: int) -> Tensor:
    """(N, C, S, S) -> (N, C, size, size) in [0, 1]."""
    if x.shape[-1] == size:
        return x
    if x.shape[-1] < size:
        return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=True)
    # Rounding takes a weighted mean slightly out of [0, 1], which the next step expects.
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _on_grid(masks: Tensor, grid: int) -> Tensor:
    """(N, 1, S, S) -> (N, grid*grid): masks in [0, 1] where the points of a grid lie that reaches to the corners."""
    found = F.interpolate(masks, size=(grid, grid), mode="bilinear", align_corners=True).flatten(1)
    # An object between the points would leave nothing to average: then the share of each cell that it covers.
    missed = ~(found > 0).any(1, keepdim=True)
    return torch.where(missed, F.adaptive_avg_pool2d(masks, grid).flatten(1), found)
