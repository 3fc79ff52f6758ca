"""The method: references in, prompts for SAM's mask decoder out, all read from one frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from fsdino.base.batch import held_back, segmentation
from fsdino.base.frozen import FrozenMaps
from fsdino.base.memory import SegmenterOutput, Shape, check_memory
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import ImageLike, Reference, image_array, prompt_points, reference_arrays, to_numbers
from fsdino.base.resize import Resize
from fsdino.base.result import MAX_CLASSES_AT_ONCE, Segmentation
from fsdino.models import clicks
from fsdino.models.adapter import SamAdapter
from fsdino.models.clicks import SamPrompter, grid_code
from fsdino.models.compared import ComparedMaps
from fsdino.models.config import SegmenterConfig
from fsdino.models.config import preset as named
from fsdino.models.decoder import MaskDecoder, load_sam_parts_
from fsdino.models.encoder import FeatureEncoder
from fsdino.models.layers import unit_tokens
from fsdino.models.memory import SupportMemory, grid_weights, in_cells, prototypes, stack_memories, support_tokens
from fsdino.models.presence import PresenceHead
from fsdino.models.prompts import EncodedQuery, PromptGenerator, similarities

Stage = Literal["distill", "episodes"]
GAIN_SCALE = 10.0  # a single number moves by the learning rate a step: by this much it has its say within an epoch


class FewShotSegmenter(FewShotMethod):
    """FS-DINO (arXiv 2504.15669): a frozen encoder, an adapter to SAM's space, prompts from references, SAM's decoder.

    `encode_support` and `decode_query` start from pixels; `encode_support_feats` and `decode_query_feats` from the maps
    of `encoder`, which are the same whether computed now or read from a cache.
    """

    name = "fsdino"
    title = "FS-DINO"
    memory_type = SupportMemory
    takes_negatives = True
    learns_absence = True
    exportable = True
    # No memory passes through these parts, so they do not change what a saved one means.
    silent_args = frozenset({"promptable", "presence_likeness", "learnt_drawing"})

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(Resize(config.img_size, config.resize_mode), config.threshold)
        self.config = c = config
        how: dict[str, Any] = {"weights": c.encoder_weights, "stride": c.encoder_stride, "attention": c.attention_taps}
        self.encoder = FeatureEncoder(c.encoder, c.img_size, c.taps, c.encoder_kwargs, **how)
        self.compared = ComparedMaps(self.encoder, c.reader_taps, c.centred)
        self.adapter = SamAdapter(self.encoder.dim, c.prompt_dim, c.adapter_dim, c.adapter_hidden, c.adapter_heads)
        grid = (self.encoder.grid_size, self.encoder.grid_size)
        self.prompt_encoder = PromptEncoder(c.prompt_dim, grid, (c.img_size, c.img_size), c.mask_in_chans)
        self.prompts = PromptGenerator(
            self.encoder.dim,
            len(self.compared),
            c.prompt_dim,
            c.reader_dim,
            correlation=c.variant == "full",
            sparse=c.sparse,
            channel_match=c.channel_match,
            own_prototypes=c.own_prototypes,
        )
        self.decoder = MaskDecoder(c.prompt_dim, c.decoder_depth, c.decoder_mlp_dim, c.decoder_heads, c.decoder_iou_dim)
        self.presence = PresenceHead(c.prompt_dim, len(self.compared) if c.presence_likeness else None)
        # From 0 on, so that training starts at the training-free guess.
        self.mask_gain = nn.Parameter(torch.zeros(1))
        seen = self.encoder.num_maps * self.encoder.dim
        self.sam = SamPrompter(c, self.encoder.grid_size, seen) if c.promptable else None
        self.select_trainable_("episodes")

    @classmethod
    def build(cls, preset: str | None = None, **fields: Any) -> FewShotSegmenter:
        """FS-DINO from a preset's name, or from the defaults, with fields of `SegmenterConfig` replaced."""
        return cls(SegmenterConfig.from_dict(fields) if preset is None else named(preset, **fields))

    def arguments(self) -> dict[str, Any]:
        """See `FewShotMethod.arguments`; the file holds the weights, and the threshold beside them."""
        plain = replace(self.config, encoder_weights=None).to_dict()
        return {key: value for key, value in plain.items() if key not in ("encoder_weights", "threshold")}

    def summary(self) -> str:
        """See `FewShotMethod.summary`."""
        size = sum(p.numel() for p in self.encoder.parameters()) / 1e6
        made = self.config.encoder_kwargs
        # The name alone would say the size of the published encoder, whose sizes these replace.
        sizes = [f"{made[key]} {text}" for key, text in (("depth", "blocks"), ("embed_dim", "wide")) if key in made]
        told = ", ".join([*(["with " + " ".join(sizes)] if sizes else []), f"{size:.1f} M parameters"])
        return f"{self.config.variant} segmenter on {self.config.encoder} ({told})"

    @property
    def takes_hints(self) -> bool:
        """Whether SAM's prompted half is there."""
        return self.sam is not None

    takes_clicks = takes_hints

    # ---- references

    @torch.no_grad()
    def remember_references(self, references: Sequence[Reference]) -> SupportMemory:
        """As `FewShotMethod.remember`, for references of every kind and for negative ones."""
        if all(reference.negative for reference in references):
            raise ValueError("remember() got negative references alone; give at least one that shows the object.")
        images = [image_array(reference.image, reference.name) for reference in references]
        # Hints are drawn on the same maps that are remembered, so any kind of reference costs one pass of the encoder.
        feats = self.encoder(torch.stack([self._square(image) for image in images]))
        masks = [
            self._drawn_mask(reference, images[i].shape[:2], [feat[i : i + 1] for feat in feats])
            for i, reference in enumerate(references)
        ]
        negative = torch.tensor([[reference.negative for reference in references]], device=self.device)
        return self.encode_support_feats(feats, torch.stack(masks, dim=1), negative if negative.any() else None)

    def _drawn_mask(self, reference: Reference, size: tuple[int, ...], feats: list[Tensor]) -> Tensor:
        """A reference's mask, given or drawn, (1, S, S) float in [0, 1]."""
        if reference.mask is not None:
            return self._square_mask(reference_arrays(reference)[1])[None]
        points, labels = self._points(reference, size)
        logits = clicks.draw(self, feats, points, labels)
        return F.interpolate(logits, (self.img_size,) * 2, mode="bilinear", align_corners=False)[:, 0].sigmoid()

    def _points(self, reference: Reference, size: tuple[int, ...], on_object: bool = True) -> tuple[Tensor, Tensor]:
        """What a reference points at, (1, P, 2) in the square, and labels (1, P), on the device."""
        given = prompt_points(reference, (size[0], size[1]), self.resize.content_size(size[0], size[1]), on_object)
        points, labels = (torch.from_numpy(array)[None].to(self.device) for array in given)
        return points, labels

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> SupportMemory:
        """See `FewShotMethod.encode_support`."""
        return self.encode_support_feats(self.encoder(support_images.flatten(0, 1)), support_masks)

    def encode_support_feats(
        self, feats: list[Tensor], support_masks: Tensor, negative: Tensor | None = None
    ) -> SupportMemory:
        """Turn the references' feature maps into a memory: prototypes, and for the full variant all tokens.

        Args:
            feats: one (B*K, C, h, w) map per tap of the encoder, in its order.
            support_masks: (B, K, S, S) float in [0, 1].
            negative: (B, K) bool, references whose masks show what is not meant; None: there are none.
        """
        b, (h, w) = len(support_masks), feats[0].shape[-2:]
        feats = self._as_weights(feats)
        fg, bg = grid_weights(support_masks, (h, w), negative)
        layers = [support_tokens(feat, b) for feat in self.compared(feats)]
        memory = SupportMemory(prototypes=torch.stack([prototypes(tokens, fg, bg) for tokens in layers], dim=1))
        # The compact variants read prototypes alone, and their files stay small.
        if self.prompts.correlation:
            memory.tokens, memory.fg, memory.bg = in_cells(layers, fg, bg, (h, w), self.config.support_stride)
        return memory

    # ---- query

    def decode_query(self, memory: SupportMemory, query_image: Tensor) -> SegmenterOutput:
        """See `FewShotMethod.decode_query`."""
        held, asked = memory.batch_size, query_image.shape[0]
        if held != 1 and held != asked:
            raise ValueError(f"the memory holds {held} episodes but {asked} images came; give {held}, or one memory.")
        return self.decode_query_feats(memory, self.encoder(query_image))

    def decode_query_feats(self, memory: SupportMemory, feats: list[Tensor]) -> SegmenterOutput:
        """Segment from the queries' feature maps.

        Args:
            memory: of batch B, or 1 for all images; or of any batch N for one image, N classes at once.
            feats: one (B, C, h, w) map per tap of the encoder, in its order.
        """
        return self.decode_encoded(memory, self.encode_query_feats(feats))

    def encode_query_feats(self, feats: list[Tensor]) -> EncodedQuery:
        """What depends on the images alone, from their feature maps."""
        feats = self._as_weights(feats)
        embedding = self.adapter(feats[self.encoder.taps.index(self.config.adapter_tap)])
        tokens = torch.stack([unit_tokens(feat) for feat in self.compared(feats)], dim=1)
        return EncodedQuery(embedding, tokens, similarities(tokens[:, : self.config.similar_blocks]))

    def encode_query(self, query_image: Tensor) -> EncodedQuery:
        """See `FewShotMethod.encode_query`; as `encode_query_feats`."""
        return self.encode_query_feats(self.encoder(query_image))

    def decode_encoded(self, memory: SupportMemory, encoded: EncodedQuery) -> SegmenterOutput:
        """Segment from what `encode_query_feats` returned; memory and result as in `decode_query_feats`."""
        mask, iou_pred, evidence = self._decode(memory, encoded)
        return SegmenterOutput(mask, iou_pred, self.presence(evidence))

    def presence_evidence(self, memory: SupportMemory, feats: list[Tensor]) -> Tensor:
        """What the presence head judges, (B, E); arguments as in `decode_query_feats`."""
        return self._decode(memory, self.encode_query_feats(feats))[-1]

    def _decode(self, memory: SupportMemory, encoded: EncodedQuery) -> tuple[Tensor, Tensor, Tensor]:
        embedding, prompts = encoded.embedding, self.prompts(memory, encoded)
        # SAM's mask stem expects logits at four times the grid, the size of its own low-resolution masks.
        coarse = F.interpolate(prompts.coarse_logits, scale_factor=4, mode="bilinear", align_corners=False)
        dense = self.prompt_encoder.mask_downscaling(coarse.to(embedding.dtype)) + prompts.dense
        h, w = embedding.shape[-2:]
        image_pe = grid_code(self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix, (h, w))
        out = self.decoder(embedding, image_pe.to(embedding.dtype), prompts.sparse, dense)
        # SAM's first mask is its answer to prompts that leave no doubt; added to the guess, it has only to correct it.
        mask_logits = out.mask_logits[:, :1]
        if self.config.skip:
            mask_logits = coarse + GAIN_SCALE * self.mask_gain * mask_logits
        evidence = self.presence.evidence(memory, encoded, prompts, out.tokens[:, 1], mask_logits)
        return mask_logits, out.iou_pred[:, :1], evidence

    def join(self, memories: Sequence[SupportMemory]) -> list[SupportMemory]:
        """See `FewShotMethod.join`: classes are decoded as one batch."""
        starts = range(0, len(memories), MAX_CLASSES_AT_ONCE)
        return [stack_memories(memories[start : start + MAX_CLASSES_AT_ONCE]) for start in starts]

    def embed(self, images: Tensor) -> Tensor:
        """SAM's embedding (N, D, h, w) of images (N, 3, S, S); only the blocks up to the adapter's tap are computed."""
        return self.adapter(self.encoder(images, last_tap=self.config.adapter_tap)[-1])

    @torch.no_grad()
    def refine(self, memory: SupportMemory, image: ImageLike, points: Any, labels: Any = None) -> Segmentation:
        """See `FewShotMethod.refine`: SAM's decoder corrects what the memory found, click by click."""
        check_memory(memory, SupportMemory, self._mark())
        array = image_array(image, "image")
        marks = [1] * len(to_numbers(points, "refine(): points")) if labels is None else labels
        given = Reference(image, points=points, labels=marks, name="refine()")
        where, kinds = self._points(given, array.shape[:2], on_object=False)
        output = clicks.correct(self, memory, self.encoder(self._square(array)[None]), where, kinds)
        return next(held_back(self, [None], [segmentation(self, output, 0, array.shape)], array, "auto"))

    @torch.no_grad()
    def draw_mask(self, reference: Reference) -> np.ndarray:
        """See `FewShotMethod.draw_mask`."""
        image = image_array(reference.image, reference.name)
        logits = clicks.draw(self, self.encoder(self._square(image)[None]), *self._points(reference, image.shape[:2]))
        found: np.ndarray = (self.resize.invert(logits[0, 0], (image.shape[0], image.shape[1])) > 0).cpu().numpy()
        return found

    def memory_shapes(self) -> dict[str, Shape]:
        """See `FewShotMethod.memory_shapes`."""
        layers, dim = len(self.compared), self.encoder.dim
        tokens: Shape = (1, layers, "M", dim)
        return {"prototypes": (1, layers, 2, dim), "tokens": tokens, "fg": (1, "M"), "bg": (1, "M")}

    # ---- training and weights

    def select_trainable_(self, stage: Stage) -> FewShotSegmenter:
        """Let only the stage's parameters learn: "distill" the adapter, "episodes" what the variant asks for."""
        self.requires_grad_(False)
        if stage == "distill":
            self.adapter.requires_grad_(True)
            return self
        frozen = self.config.variant == "compact_frozen"
        for part in (self.prompts, self.presence, self.prompt_encoder.mask_downscaling):
            part.requires_grad_(True)
        self.mask_gain.requires_grad_(self.config.skip)
        self.decoder.requires_grad_(not frozen)
        # SAM's three answers to ambiguous prompts are not used, and plain DDP refuses parameters that no loss reaches.
        for unused in self.decoder.output_hypernetworks_mlps[1:]:
            unused.requires_grad_(False)
        self.adapter.requires_grad_(not frozen and not self.config.freeze_adapter)
        return self

    def prepare_training_(self, iou_weight: float, presence_weight: float) -> None:
        """See `FewShotMethod.prepare_training_`."""
        # Plain DDP, again: what no loss reaches must not ask for gradients.
        if iou_weight == 0:
            self.decoder.iou_prediction_head.requires_grad_(False)
        self.presence.requires_grad_(presence_weight > 0)

    def predict_episodes(self, batch: Mapping[str, Any]) -> SegmenterOutput:
        """See `FewShotMethod.predict_episodes`; `query_feats` (B, L, C, h, w), `support_feats` (B, K, L, C, h, w)."""
        if "query_feats" not in batch:
            return super().predict_episodes(batch)
        memory = self.encode_support_feats(list(batch["support_feats"].flatten(0, 1).unbind(1)), batch["support_masks"])
        return self.decode_query_feats(memory, list(batch["query_feats"].unbind(1)))

    def frozen_maps(self) -> FrozenMaps:
        """See `FewShotMethod.frozen_maps`."""
        return self.encoder.frozen_maps()

    def shared_encoder(self) -> FeatureEncoder:
        """See `FewShotMethod.shared_encoder`."""
        return self.encoder

    def part_sizes(self) -> dict[str, int]:
        """Parameters of each box of the figure."""
        boxes: dict[str, list[nn.Module]] = {
            "encoder": [self.encoder],
            "adapter": [self.adapter],
            "prompts + reader": [self.prompts, self.prompt_encoder, self.presence, nn.ParameterList([self.mask_gain])],
            "decoder": [self.decoder],
            "SAM's prompted half": [] if self.sam is None else [self.sam],
        }
        sizes = {name: sum(p.numel() for part in parts for p in part.parameters()) for name, parts in boxes.items()}
        return {name: size for name, size in sizes.items() if size}

    def load_sam_(self, state_dict: Mapping[str, Tensor]) -> FewShotSegmenter:
        """Start decoder, mask stem and, where there is one, the prompted half from the state dict of a whole SAM."""
        load_sam_parts_(self.decoder, self.prompt_encoder, state_dict)
        return self.load_prompter_(state_dict)

    def load_prompter_(self, state_dict: Mapping[str, Tensor]) -> FewShotSegmenter:
        """Fill SAM's prompted half alone, where there is one; arguments and errors as in `load_sam_`."""
        if self.sam is not None:
            load_sam_parts_(self.sam.mask_decoder, self.sam.prompt_encoder, state_dict)
        return self

    def _as_weights(self, feats: list[Tensor]) -> list[Tensor]:
        # Cached maps may be half precision.
        return [feat.to(self.adapter.head.weight.dtype) for feat in feats]
