"""Clicks and boxes to masks: SAM's prompt encoder and mask decoder on the distilled embedding."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from fsdino.base.memory import SegmenterOutput
from fsdino.base.reference import BOX_START, OFF, ON
from fsdino.models.adapter import SamAdapter
from fsdino.models.config import SegmenterConfig
from fsdino.models.decoder import DecoderOutput, MaskDecoder
from fsdino.models.memory import SupportMemory
from fsdino.models.prompts import EncodedQuery

NO_POINT = -1
# Chosen on held-out base classes of the embedded world: how far a click is heard, in shares of the square's side; how
# alike to the clicked position a place must be; and how loud it is, in logits.
CLICK_REACH, CLICK_TEMPERATURE, CLICK_LOGIT = 0.125, 0.2, 6.0
CERTAIN = 10.0  # presence logit of an object that was clicked on


class SamPrompter(nn.Module):
    """The prompted half of SAM (arXiv 2304.02643); its keys are those of a SAM checkpoint.

    Episode training turns the segmenter's own decoder into a reader of prototypes, which no longer answers to clicks
    (`benchmarks/results/prompts.csv`), so a promptable segmenter keeps SAM's as well. It runs for references without a
    mask and for corrections, never in `segment`.

    A small student's embedding is not its teacher's, and its grid may be coarser than SAM's decoder knows. With
    `learnt_drawing` the decoder has learnt to draw from it (`fsdino.training.drawing`), and an adapter of its own,
    `sight`, adds to the embedding what the encoder's other blocks tell of objects.

    Args:
        config: SAM's sizes.
        grid_size: side of the embedding's grid.
        maps_dim: channels of all maps of the encoder together.
    """

    def __init__(self, config: SegmenterConfig, grid_size: int, maps_dim: int) -> None:
        super().__init__()
        c = config
        self.img_size = c.img_size
        square = (c.img_size, c.img_size)
        self.prompt_encoder = PromptEncoder(c.prompt_dim, (grid_size, grid_size), square, c.mask_in_chans)
        self.mask_decoder = MaskDecoder(
            c.prompt_dim, c.decoder_depth, c.decoder_mlp_dim, c.decoder_heads, c.decoder_iou_dim
        )
        self.sight: SamAdapter | None = None
        if c.learnt_drawing:
            self.sight = SamAdapter(maps_dim, c.prompt_dim, c.adapter_dim, c.adapter_hidden, c.adapter_heads)
            # Nothing to add at first, so that training starts at SAM's decoder on the distilled embedding.
            for weight in self.sight.head.parameters():
                nn.init.zeros_(weight)
        self.requires_grad_(False)

    def learn_(self) -> SamPrompter:
        """Let learn what draws; returns itself."""
        # What a click or a box means stays as SAM has it, and of the decoder's masks one is used.
        self.mask_decoder.requires_grad_(True)
        for unused in self.mask_decoder.output_hypernetworks_mlps[1:]:
            unused.requires_grad_(False)
        if self.sight is not None:
            self.sight.requires_grad_(True)
        return self

    def see(self, embedding: Tensor, feats: list[Tensor]) -> Tensor:
        """What is drawn on, (B, D, h, w): images in SAM's space, and what their maps (B, C, h, w) of all taps add."""
        if self.sight is None:
            return embedding
        return embedding + self.sight(torch.cat(feats, dim=1).to(embedding.dtype))

    def forward(
        self, embedding: Tensor, points: Tensor, labels: Tensor, mask_logits: Tensor | None = None
    ) -> DecoderOutput:
        """Draw what is pointed at.

        Args:
            embedding: (B, D, h, w) of `see`.
            points: (B, P, 2) as x, y in pixels of the square.
            labels: (B, P) long: 1 on the object, 0 off it, 2 and 3 the corners of a box, -1 no point.
            mask_logits: (B, 1, 4h, 4w) an earlier answer to correct, or None.
        """
        h, w = embedding.shape[-2:]
        encoder = self.prompt_encoder
        frequencies = encoder.pe_layer.positional_encoding_gaussian_matrix
        sparse = self.point_tokens(points, labels).to(embedding.dtype)
        if mask_logits is None:
            dense = encoder.no_mask_embed.weight[..., None, None].expand(len(embedding), -1, h, w)
        else:
            dense = encoder.mask_downscaling(mask_logits.to(embedding.dtype))
        image_pe = grid_code(frequencies, (h, w)).to(embedding.dtype)
        return self.mask_decoder(embedding, image_pe, sparse, dense)

    def point_tokens(self, points: Tensor, labels: Tensor) -> Tensor:
        """SAM's tokens of points, (B, P, D) float32; without a box one more."""
        # SAM was trained so: where no box comes, a "no point" stands in its place.
        if not bool((labels == BOX_START).any()):
            points = torch.cat([points, torch.zeros_like(points[:, :1])], dim=1)
            labels = torch.cat([labels, torch.full_like(labels[:, :1], NO_POINT)], dim=1)
        encoder = self.prompt_encoder
        # Kinds count from -1, "no point", so its embedding stands first and an index is the kind plus one.
        kinds = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)]).float()
        shares = (points.float() + 0.5) / self.img_size
        where = fourier_code(encoder.pe_layer.positional_encoding_gaussian_matrix, 2.0 * shares - 1.0)
        return torch.where((labels == NO_POINT)[..., None], 0.0, where) + kinds[labels + 1]


class PromptedModel(Protocol):
    """What drawing needs of a segmenter."""

    sam: SamPrompter | None
    threshold: float

    @property
    def img_size(self) -> int:
        """Side of the square, in pixels."""

    def encode_support_feats(self, feats: list[Tensor], support_masks: Tensor) -> SupportMemory:
        """Maps of references and their masks to a memory."""

    def encode_query_feats(self, feats: list[Tensor]) -> EncodedQuery:
        """Maps of an image to its embedding, tokens and their similarities."""

    def decode_encoded(self, memory: SupportMemory, encoded: EncodedQuery) -> SegmenterOutput:
        """Memory and encoded image to masks."""


def prompter(model: PromptedModel) -> SamPrompter:
    """SAM's prompted half of a model; a ValueError if it was built without."""
    if model.sam is None:
        raise ValueError(
            "this segmenter answers to masks alone; build it with promptable: true in the recipe's model, or give "
            "references with masks."
        )
    return model.sam


def draw(model: PromptedModel, feats: list[Tensor], points: Tensor, labels: Tensor) -> Tensor:
    """Masks of what is pointed at, logits (B, 1, 4h, 4w), above 0 on the object.

    Args:
        model: with SAM's prompted half.
        feats: one (B, C, h, w) map per tap of the encoder, in its order.
        points: as for `SamPrompter`.
        labels: as for `SamPrompter`.
    """
    # SAM's decoder answers first; the segmenter, which then knows the object, looks at the same image again. The two
    # logits are averaged, each above its own border: SAM's masks end at 0, the segmenter's at its threshold.
    sam = prompter(model)
    encoded = model.encode_query_feats(feats)
    drawn = sam(sam.see(encoded.embedding, feats), points, labels).mask_logits[:, :1].float()
    again = model.decode_encoded(model.encode_support_feats(feats, _at_full_size(model, drawn).sigmoid()), encoded)
    return 0.5 * (drawn + again.mask_logits.float() - threshold_logit(model))


def correct(
    model: PromptedModel, memory: SupportMemory, feats: list[Tensor], points: Tensor, labels: Tensor
) -> SegmenterOutput:
    """Segment with a memory and clicks; shapes as in `draw`.

    Three answers are averaged: what the memory finds, what SAM's decoder makes of that with the clicks, and what the
    segmenter finds when it takes the average of the two for a reference. A click on the object says that it is there.
    """
    sam, border = prompter(model), threshold_logit(model)
    embedding, tokens, _ = encoded = model.encode_query_feats(feats)
    found = model.decode_encoded(memory, encoded)
    first = found.mask_logits.float() - border
    drawn = sam(sam.see(embedding, feats), points, labels, first)
    second = drawn.mask_logits[:, :1].float()
    # None of the three need follow a click, so each also raises or lowers what is near it and looks like it.
    near = F.normalize(tokens.float().mean(1), dim=-1)
    said = click_logits(near, points, labels, (embedding.shape[-2], embedding.shape[-1]), model.img_size)
    said = F.interpolate(said, scale_factor=4, mode="bilinear", align_corners=False)
    guess = _at_full_size(model, 0.5 * (first + second) + said)
    third = model.decode_encoded(model.encode_support_feats(feats, guess.sigmoid()), encoded).mask_logits
    logits = (first + second + third.float() - border) / 3.0 + said + border
    clicked = (labels == ON).any(-1, keepdim=True)
    return SegmenterOutput(logits, drawn.iou_pred[:, :1], torch.where(clicked, CERTAIN, found.presence_logit))


def threshold_logit(model: PromptedModel) -> float:
    """The logit at which the segmenter's masks end; SAM's end at 0."""
    return math.log(model.threshold / (1.0 - model.threshold))


def _at_full_size(model: PromptedModel, logits: Tensor) -> Tensor:
    return F.interpolate(logits, (model.img_size,) * 2, mode="bilinear", align_corners=False)


def click_logits(tokens: Tensor, points: Tensor, labels: Tensor, size: tuple[int, int], img_size: int) -> Tensor:
    """What clicks say of the places near them that look like the clicked ones.

    Args:
        tokens: (B, h*w, C) unit-length tokens of the image.
        points: (B, P, 2) as x, y in pixels of the square.
        labels: (B, P) long: 1 on the object, 0 off it; others say nothing.
        size: (h, w).
        img_size: side of the square, in pixels.

    Returns:
        (B, 1, h, w), above 0 where the object is, below where it is not.
    """
    h, w = size
    shares = (points.float() + 0.5) / img_size  # (B, P, 2) in [0, 1]
    rows, cols = ((torch.arange(n, device=tokens.device) + 0.5) / n for n in size)
    away = (rows[:, None] - shares[..., 1, None, None]) ** 2 + (cols - shares[..., 0, None, None]) ** 2  # (B, P, h, w)
    row, col = ((shares[..., k] * n).long().clamp(0, n - 1) for k, n in ((1, h), (0, w)))
    clicked = tokens.gather(1, (row * w + col)[..., None].expand(-1, -1, tokens.shape[-1]))  # (B, P, C)
    alike = (clicked @ tokens.transpose(1, 2)).float().unflatten(-1, size)
    # Near and alike at once: distance alone would spill over the object's edge, likeness alone over the whole image.
    heard = torch.exp(-away / (2 * CLICK_REACH**2) + (alike - 1.0) / CLICK_TEMPERATURE)
    sign = (labels == ON).float() - (labels == OFF).float()
    return CLICK_LOGIT * (sign[..., None, None] * heard).sum(1, keepdim=True)


def fourier_code(frequencies: Tensor, positions: Tensor) -> Tensor:
    """SAM's random Fourier code of positions (..., 2), x and y in [-1, 1]: (..., D) float32, whatever comes in."""
    # By hand and not by a matrix product of width 2, which autocast would round to half precision: the angles reach
    # hundreds, where half precision has no digits left.
    rates = frequencies.float()
    angles = 2.0 * math.pi * (positions[..., :1] * rates[0] + positions[..., 1:] * rates[1])
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_code(frequencies: Tensor, size: tuple[int, int]) -> Tensor:
    """The position encoding of a grid (h, w) that covers the square, (1, D, h, w) float32."""
    # In float32 and by hand for the same reason as `fourier_code`.
    rates = frequencies.float()
    rows, cols = (2.0 * (torch.arange(n, device=rates.device) + 0.5) / n - 1.0 for n in size)
    angles = cols[None, :, None] * rates[0] + rows[:, None, None] * rates[1]  # (h, w, D / 2)
    angles = 2.0 * math.pi * angles
    return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)[None]
