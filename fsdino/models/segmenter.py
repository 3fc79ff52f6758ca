"""The method: references in, prompts for SAM's mask decoder out, all read from one frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from fsdino.base.hub import HubModel
from fsdino.base.method import (
    FewShotMethod,
    ImageLike,
    Reference,
    Segmentation,
    SegmenterOutput,
    image_tensor,
    prompt_points,
    reference_tensors,
)
from fsdino.base.reference import ON
from fsdino.base.resize import Resize
from fsdino.models.adapter import SamAdapter
from fsdino.models.clicks import SamPrompter, click_logits, grid_code
from fsdino.models.config import SegmenterConfig
from fsdino.models.correlation import PivotReader, PooledReader, unit_tokens
from fsdino.models.decoder import MaskDecoder
from fsdino.models.encoder import FeatureEncoder
from fsdino.models.memory import SupportMemory, grid_weights, prototypes, stack_memories, support_tokens
from fsdino.models.presence import PresenceHead
from fsdino.models.prompts import PromptGenerator

Stage = Literal["distill", "episodes"]
CERTAIN = 10.0  # presence logit of an object that was clicked on


class FewShotSegmenter(FewShotMethod, HubModel):
    """FS-DINO (arXiv 2504.15669): a frozen encoder, an adapter to SAM's space, prompts from references, SAM's decoder.

    `encode_support` and `decode_query` start from pixels; `encode_support_feats` and `decode_query_feats` from the maps
    of `encoder`, which are the same whether computed now or read from a cache.

    Args:
        config: What to build; see `SegmenterConfig`.
        load_encoder: False leaves the encoder's weights random whatever the config says, for loading a checkpoint.
    """

    def __init__(self, config: SegmenterConfig, load_encoder: bool = True) -> None:
        super().__init__(Resize(config.img_size, config.resize_mode), config.threshold)
        self.config = config
        c, d, num_layers = config, config.prompt_dim, len(config.reader_taps)
        weights = c.encoder_weights if load_encoder else None
        self.encoder = FeatureEncoder(c.encoder, c.img_size, c.taps, c.encoder_kwargs, weights, c.encoder_stride)
        self.adapter = SamAdapter(self.encoder.dim, d, c.adapter_dim, c.adapter_hidden, c.adapter_heads)
        grid = (self.encoder.grid_size, self.encoder.grid_size)
        self.prompt_encoder = PromptEncoder(d, grid, (c.img_size, c.img_size), c.mask_in_chans)
        self.prompts = PromptGenerator(
            self.encoder.dim, num_layers, d, _reader(c), c.reader_dim, c.sparse, c.dense_source == "adapter",
            c.channel_match,
        )
        self.decoder = MaskDecoder(d, c.decoder_depth, c.decoder_mlp_dim, c.decoder_heads, c.decoder_iou_dim)
        self.presence = PresenceHead(d, c.presence_statistics)
        self.decoder.quieten_()  # SAM's weights, where loaded, replace this
        self.sam = SamPrompter(c, self.encoder.grid_size) if c.promptable else None
        self.select_trainable_("episodes")

    # ---- references

    @torch.no_grad()
    def remember(self, references: Sequence[Reference]) -> SupportMemory:
        """As `FewShotMethod.remember`, for references of every kind and for negative ones.

        What a reference points at is drawn first, by SAM's decoder on the same feature maps that are remembered, so a
        reference costs one pass of the encoder whatever its kind.
        """
        if len(references) == 0:
            return super().remember(references)
        if all(reference.negative for reference in references):
            raise ValueError("remember() got negative references alone; give at least one that shows the object.")
        images = [image_tensor(reference.image, reference.name) for reference in references]
        feats = self.encoder(torch.stack([self.resize.image(image.to(self.device)) for image in images]))
        masks = [self._square_mask(one, [feat[i : i + 1] for feat in feats]) for i, one in enumerate(references)]
        negative = torch.tensor([[reference.negative for reference in references]], device=self.device)
        return self.encode_support_feats(feats, torch.stack(masks, dim=1), negative if negative.any() else None)

    def _square_mask(self, reference: Reference, feats: list[Tensor]) -> Tensor:
        """A reference's mask, given or drawn, (1, S, S) float in [0, 1]."""
        if reference.mask is not None:
            return self.resize.soft_mask(reference_tensors(reference)[1].to(self.device))[None]
        image = image_tensor(reference.image, reference.name)
        points, labels = prompt_points(reference, (image.shape[-2], image.shape[-1]), self.resize)
        logits = self.draw(feats, points.to(self.device)[None], labels.to(self.device)[None])
        return F.interpolate(logits, (self.img_size,) * 2, mode="bilinear", align_corners=False)[:, 0].sigmoid()

    def draw(self, feats: list[Tensor], points: Tensor, labels: Tensor) -> Tensor:
        """Masks of what is pointed at.

        SAM's decoder answers first; the segmenter, which then knows the object, looks at the same image again, and
        the two logits are averaged, each above its own border.

        Args:
            feats: One (B, C, h, w) map per tap of the encoder, in its order.
            points: (B, P, 2) as x, y in pixels of the square.
            labels: (B, P) long: 1 on the object, 0 off it, 2 and 3 the corners of a box, -1 no point.

        Returns:
            Logits (B, 1, 4h, 4w), above 0 on the object.

        Raises:
            ValueError: If the segmenter was built without SAM's prompted half.
        """
        sam = self._prompter()
        feats = self._as_weights(feats)
        drawn = sam(self._adapt(feats), points, labels).mask_logits[:, :1].float()
        soft = F.interpolate(drawn, (self.img_size,) * 2, mode="bilinear", align_corners=False).sigmoid()
        again = self.decode_query_feats(self.encode_support_feats(feats, soft), feats)
        cut = math.log(self.threshold / (1.0 - self.threshold))  # where the segmenter's masks end; SAM's end at 0
        return 0.5 * (drawn + again.mask_logits.float() - cut)

    def _prompter(self) -> SamPrompter:
        if self.sam is None:
            raise ValueError(
                "this segmenter answers to masks alone; build it with promptable: true in the recipe's model, or give "
                "references with masks."
            )
        return self.sam

    def encode_support(self, support_images: Tensor, support_masks: Tensor) -> SupportMemory:
        """See `FewShotMethod.encode_support`."""
        return self.encode_support_feats(self.encoder(support_images.flatten(0, 1)), support_masks)

    def encode_support_feats(
        self, feats: list[Tensor], support_masks: Tensor, negative: Tensor | None = None
    ) -> SupportMemory:
        """Turn the references' feature maps into a memory.

        Args:
            feats: One (B*K, C, h, w) map per tap of the encoder, in its order.
            support_masks: (B, K, S, S) float in [0, 1].
            negative: (B, K) bool, references whose masks show what is not meant; None: there are none.

        Returns:
            Memory of batch B: prototypes, and for the full variant all tokens with their weights.
        """
        b, k = support_masks.shape[:2]
        h, w = feats[0].shape[-2:]
        feats = self._as_weights(feats)
        fg, bg = grid_weights(support_masks, (h, w), negative)
        layers = [support_tokens(feat, b) for feat in self._reader_feats(feats)]
        memory = SupportMemory(prototypes=torch.stack([prototypes(tokens, fg, bg) for tokens in layers], dim=1))
        if self.prompts.use_embedding:
            embedded = support_tokens(self._adapt(feats), b)
            memory.embedding_prototypes = prototypes(embedded, fg, bg)
        if self.prompts.reader is not None:
            memory.tokens = torch.stack(layers, dim=1)
            memory.fg, memory.bg, memory.grid = fg, bg, (k, h, w)
        return memory

    # ---- query

    def decode_query(self, memory: SupportMemory, query_image: Tensor) -> SegmenterOutput:
        """See `FewShotMethod.decode_query`.

        Raises:
            ValueError: If the memory's batch is neither 1 nor the number of images.
        """
        held, asked = memory.batch_size, query_image.shape[0]
        if held != 1 and held != asked:
            raise ValueError(f"the memory holds {held} episodes but {asked} images came; give {held}, or one memory.")
        return self.decode_query_feats(memory, self.encoder(query_image))

    def decode_query_feats(self, memory: SupportMemory, feats: list[Tensor]) -> SegmenterOutput:
        """Segment from the queries' feature maps.

        Args:
            memory: Of batch B, or 1 for all images; or of any batch N for one image, N classes at once.
            feats: One (B, C, h, w) map per tap of the encoder, in its order.

        Returns:
            Mask logits (B or N, 1, 4h, 4w), predicted IoU and presence.
        """
        return self.decode_encoded(memory, *self.encode_query_feats(feats))

    def encode_query_feats(self, feats: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What is computed once per image, whatever the number of classes.

        Args:
            feats: One (B, C, h, w) map per tap of the encoder, in its order.

        Returns:
            Embedding (B, D, h, w) in SAM's space and unit-length tokens (B, L, h*w, C) of the reader's layers.
        """
        feats = self._as_weights(feats)
        return self._adapt(feats), torch.stack([unit_tokens(feat) for feat in self._reader_feats(feats)], dim=1)

    def decode_encoded(self, memory: SupportMemory, embedding: Tensor, query: Tensor) -> SegmenterOutput:
        """Segment from what `encode_query_feats` returned; arguments and result as in `decode_query_feats`."""
        mask_logits, iou_pred, evidence = self._decode(memory, embedding, query)
        return SegmenterOutput(mask_logits, iou_pred, self.presence(evidence))

    def presence_evidence(self, memory: SupportMemory, feats: list[Tensor]) -> Tensor:
        """What the presence head judges, (B, E); arguments as in `decode_query_feats`."""
        return self._decode(memory, *self.encode_query_feats(feats))[2]

    def _decode(self, memory: SupportMemory, embedding: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, w = embedding.shape[-2:]
        prompts = self.prompts(memory, query, (h, w), unit_tokens(embedding) if self.prompts.use_embedding else None)
        coarse = F.interpolate(prompts.coarse_logits, scale_factor=4, mode="bilinear", align_corners=False)
        dense = self.prompt_encoder.mask_downscaling(coarse) + prompts.dense
        out = self.decoder(embedding, self.image_pe((h, w)).to(embedding.dtype), prompts.sparse, dense)
        mask_logits = out.mask_logits[:, :1]
        if self.config.skip:
            mask_logits = mask_logits + coarse
        evidence = self.presence.evidence(out.tokens[:, 1], prompts.coarse_logits, mask_logits)
        return mask_logits, out.iou_pred[:, :1], evidence

    def embed(self, images: Tensor) -> Tensor:
        """SAM's embedding as the adapter sees it; only the blocks up to its tap are computed.

        Args:
            images: (N, 3, S, S) float in [0, 1], any multiple of the patch size.

        Returns:
            (N, D, h, w).
        """
        return self.adapter(self.encoder(images, last_tap=self.config.adapter_tap)[-1])

    def image_pe(self, size: tuple[int, int]) -> Tensor:
        """SAM's random Fourier position encoding of a grid, (1, D, h, w) float32 whatever the model's dtype."""
        return grid_code(self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix, size)

    # ---- corrections and several classes

    @torch.no_grad()
    def refine(self, memory: SupportMemory, image: ImageLike, points: Any, labels: Any = None) -> Segmentation:
        """See `FewShotMethod.refine`: SAM's decoder corrects what the memory found, click by click."""
        tensor = image_tensor(image, "image")
        size = (tensor.shape[-2], tensor.shape[-1])
        if labels is None:
            labels = [1] * len(points)
        given = Reference(image, points=points, labels=labels, name="refine()")
        clicks, marks = prompt_points(given, size, self.resize, on_object=False)
        feats = self.encoder(self.resize.image(tensor.to(self.device))[None])
        output = self.correct(memory, feats, clicks.to(self.device)[None], marks.to(self.device)[None])
        return self._segmentation(output, 0, size)

    def correct(self, memory: SupportMemory, feats: list[Tensor], points: Tensor, labels: Tensor) -> SegmenterOutput:
        """Segment with a memory and clicks; shapes as in `draw`.

        What the memory finds, what SAM's decoder makes of it with the clicks, and what the segmenter finds when it
        takes that for a reference are averaged; then each click has its say on what is near and like it.

        Returns:
            Mask logits (B, 1, 4h, 4w), predicted IoU and presence: a click on the object says that it is there.
        """
        sam = self._prompter()
        feats = self._as_weights(feats)
        embedding, tokens = self.encode_query_feats(feats)
        cut = math.log(self.threshold / (1.0 - self.threshold))  # SAM's masks end at 0, the segmenter's at its cut
        found = self.decode_encoded(memory, embedding, tokens)
        first = found.mask_logits.float() - cut
        drawn = sam(embedding, points, labels, first)
        second = drawn.mask_logits[:, :1].float()
        near = F.normalize(tokens.float().mean(1), dim=-1)
        said = click_logits(near, points, labels, (embedding.shape[-2], embedding.shape[-1]), self.img_size)
        said = F.interpolate(said, scale_factor=4, mode="bilinear", align_corners=False)
        guess = F.interpolate(0.5 * (first + second) + said, (self.img_size,) * 2, mode="bilinear", align_corners=False)
        third = self.decode_encoded(self.encode_support_feats(feats, guess.sigmoid()), embedding, tokens).mask_logits
        logits = (first + second + third.float() - cut) / 3.0 + said + cut
        clicked = (labels == ON).any(-1, keepdim=True)
        return SegmenterOutput(logits, drawn.iou_pred[:, :1], torch.where(clicked, CERTAIN, found.presence_logit))

    def decode_classes(self, memories: Sequence[SupportMemory], query_image: Tensor) -> SegmenterOutput:
        """See `FewShotMethod.decode_classes`; the image is encoded once and the classes are one batch."""
        encoded = self.encode_query_feats(self.encoder(query_image))
        if self.config.variant == "full" and self.config.reader == "pivot":  # it reads each reference in its place
            parts = [self.decode_encoded(memory, *encoded) for memory in memories]
            return SegmenterOutput(*(torch.cat(outputs) for outputs in zip(*(vars(part).values() for part in parts))))
        return self.decode_encoded(stack_memories(memories), *encoded)

    # ---- training and weights

    def select_trainable_(self, stage: Stage) -> FewShotSegmenter:
        """Let only the stage's parameters learn.

        Args:
            stage: "distill" trains the adapter; "episodes" what the config's variant asks for: prompts, mask stem and
                presence head, for all but "compact_frozen" the decoder, and the adapter unless `freeze_adapter`.

        Returns:
            Itself.
        """
        self.requires_grad_(False)
        if stage == "distill":
            self.adapter.requires_grad_(True)
            return self
        frozen = self.config.variant == "compact_frozen"
        self.prompts.requires_grad_(True)
        self.presence.requires_grad_(True)
        self.prompt_encoder.mask_downscaling.requires_grad_(True)
        self.decoder.requires_grad_(not frozen)
        for unused in self.decoder.output_hypernetworks_mlps[1:]:  # SAM's answers to ambiguous prompts
            unused.requires_grad_(False)
        self.adapter.requires_grad_(not frozen and not self.config.freeze_adapter)
        return self

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that learn in the stage selected last ("episodes" at first)."""
        return [p for p in self.parameters() if p.requires_grad]

    def load_sam_(self, state_dict: dict[str, Tensor]) -> FewShotSegmenter:
        """Start decoder and mask stem from a SAM checkpoint.

        Args:
            state_dict: SAM's; its `mask_decoder.*` and `prompt_encoder.*` are used, the rest is not.

        Returns:
            Itself.

        Raises:
            ValueError: If those keys are missing or shaped for another decoder.
        """
        self._load_parts({"mask_decoder": self.decoder, "prompt_encoder": self.prompt_encoder}, state_dict)
        return self.load_prompter_(state_dict)

    def load_prompter_(self, state_dict: dict[str, Tensor]) -> FewShotSegmenter:
        """Fill SAM's prompted half alone, where the segmenter has it; arguments and errors as in `load_sam_`."""
        if self.sam is not None:
            parts = {"mask_decoder": self.sam.mask_decoder, "prompt_encoder": self.sam.prompt_encoder}
            self._load_parts(parts, state_dict)
        return self

    def _load_parts(self, parts: Mapping[str, nn.Module], state_dict: dict[str, Tensor]) -> None:
        for part, module in parts.items():
            prefix = f"{part}."
            weights = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
            if not weights:
                raise ValueError(f"this checkpoint has no '{part}.*' weights; give the state dict of a whole SAM.")
            try:
                module.load_state_dict(weights)
            except RuntimeError as error:
                raise ValueError(
                    f"'{part}.*' does not fit this segmenter (prompt_dim {self.config.prompt_dim}); set prompt_dim, "
                    f"decoder_* and mask_in_chans to the SAM's sizes. {error}"
                ) from error

    def _reader_feats(self, feats: list[Tensor]) -> list[Tensor]:
        return [feats[self.encoder.taps.index(tap)] for tap in self.config.reader_taps]

    def _adapt(self, feats: list[Tensor]) -> Tensor:
        return self.adapter(feats[self.encoder.taps.index(self.config.adapter_tap)])

    def _as_weights(self, feats: list[Tensor]) -> list[Tensor]:
        """The maps in the weights' dtype: cached ones may be half precision."""
        return [feat.to(self.adapter.head.weight.dtype) for feat in feats]


def _reader(config: SegmenterConfig) -> nn.Module | None:
    """The reader of the 4D correlation, for the variant that has one."""
    if config.variant != "full":
        return None
    num_layers = len(config.reader_taps)
    if config.reader == "pivot":
        return PivotReader(num_layers, config.reader_dim, config.contrastive)
    return PooledReader(num_layers, config.reader_dim, config.contrastive, config.self_correlation)
