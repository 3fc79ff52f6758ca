"""SAM2's parts as batched functions: encode a frame, encode its mask into memory, attend to memory, decode.

`transformers.Sam2VideoModel` holds the parts (and so the official weights fit), but runs them on one video with a
session object. Here a batch of few-shot episodes is a batch of short videos, and every step is a function of tensors,
with gradients. Ravi et al. 2024, arXiv 2408.00714.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam2VideoConfig, Sam2VideoModel

# SAM2 feeds masks to its memory encoder as 20 * probability - 10.
MASK_SCALE, MASK_BIAS = 20.0, -10.0
# What stands in a mask that SAM2 takes for empty.
NO_OBJECT = -1024.0


@dataclass
class Frame:
    """Features of N images.

    Args:
        embedding: (N, D, h, w), stride 16, not yet conditioned on any memory.
        position: (N, D, h, w), sine position code of the same map.
        high_res: maps of stride 4 (N, D/8, 4h, 4w) and stride 8 (N, D/4, 2h, 2w), projected for the mask decoder.
    """

    embedding: Tensor
    position: Tensor
    high_res: tuple[Tensor, Tensor]

    def take(self, index: Tensor) -> Frame:
        """The images of an index (M,) long, which may repeat them."""
        fine, middle = self.high_res
        return Frame(self.embedding[index], self.position[index], (fine[index], middle[index]))


@dataclass
class Decoded:
    """What the mask decoder says about N images, M masks each.

    Args:
        mask_logits: (N, M, 4h, 4w).
        iou_pred: (N, M), in [0, 1].
        pointers: (N, M, D), the object pointers of the masks.
        object_logits: (N, 1), above 0 where SAM2 sees the object.
    """

    mask_logits: Tensor
    iou_pred: Tensor
    pointers: Tensor
    object_logits: Tensor

    def best(self) -> Decoded:
        """Keep one mask an image (M = 1): the one with the best predicted IoU."""
        index = self.iou_pred.argmax(dim=1)
        rows = torch.arange(len(index), device=index.device)
        masks, ious, pointers = (x[rows, index][:, None] for x in (self.mask_logits, self.iou_pred, self.pointers))
        return Decoded(masks, ious, pointers, self.object_logits)


class Sam2(nn.Module):
    """SAM2's image encoder, memory encoder, memory attention, prompt encoder and mask decoder.

    Args:
        config: from `sam2_config`, or of a loaded checkpoint.
        net: the `transformers` model that owns all weights; None for one with random weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: Sam2VideoConfig, net: Sam2VideoModel | None = None) -> None:
        super().__init__()
        self.net = _new(config) if net is None else net
        self.img_size = int(config.image_size)  # type: ignore[arg-type]
        # The map of stride 16 is what memory and decoder work on: its side, and the width D of its positions.
        self.grid = self.img_size // 16
        self.dim: int = config.vision_config.fpn_hidden_size  # type: ignore[union-attr]
        self.memory_dim: int = config.memory_encoder_output_channels
        # ImageNet's statistics; not in the state dict, which stays the one of `transformers`.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; inputs are brought to it."""
        return self.net.no_memory_embedding.dtype

    def encode(self, images: Tensor) -> Frame:
        """Features of images (N, 3, S, S) in [0, 1], S = `img_size`.

        Raises:
            ValueError: for another side.
        """
        if images.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(
                f"expected images of {self.img_size} x {self.img_size}, got {images.shape[-2]} x {images.shape[-1]}; "
                "resize them, or build the model with another image_size."
            )
        out = self.net.vision_encoder(((images - self.mean) / self.std).to(self.dtype), return_dict=True)
        fine, middle, coarse = out.fpn_hidden_states
        decoder = self.net.mask_decoder
        # Projected here, once an image, rather than at every decoding of the same frame.
        return Frame(coarse, out.fpn_position_encoding[-1], (decoder.conv_s0(fine), decoder.conv_s1(middle)))

    def decode(
        self,
        frame: Frame,
        embedding: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask_prompt: Tensor | None = None,
        multimask: bool = True,
    ) -> Decoded:
        """Masks from a (conditioned) embedding and prompts.

        Args:
            frame: its high-resolution maps are used.
            embedding: (N, D, h, w).
            points: (N, P, 2), x and y in pixels of the square input; None for an empty prompt.
            labels: (N, P) long: 1 object, 0 background, 2 and 3 the corners of a box, -1 not a point.
            mask_prompt: (N, 1, 4h, 4w), in the scale of `mask_downsample`.
            multimask: three masks an image (M = 3), else SAM2's single one (M = 1).
        """
        num, device = len(embedding), embedding.device
        # SAM2 never decodes without a point: an empty prompt is one that is marked as padding.
        if points is None or labels is None:
            points = torch.zeros(num, 1, 2, device=device)
            labels = torch.full((num, 1), -1, dtype=torch.long, device=device)
        # transformers has room for several prompts an image, on axis 1; here every image has one.
        sparse, dense = self.net.prompt_encoder(points[:, None].to(self.dtype), labels[:, None], None, mask_prompt)
        masks, ious, tokens, object_logits = self.net.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=self.net.get_image_wide_positional_embeddings().expand(num, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=list(frame.high_res),
        )
        pointers = self.net.object_pointer_proj(tokens[:, 0])
        return Decoded(masks[:, 0], ious[:, 0], pointers, object_logits[:, 0])

    def without_memory(self, frame: Frame) -> Tensor:
        """The embedding of a frame that no memory conditions: plus the learned no-memory code, (N, D, h, w)."""
        return frame.embedding + self.net.no_memory_embedding.view(1, -1, 1, 1)

    def where_present(self, found: Decoded) -> Decoded:
        """What SAM2 goes on with: an empty mask (logits -1024) and the no-object pointer where its score is <= 0."""
        nothing = self.net.no_object_pointer
        if nothing is None:  # switched off: the object is always there
            return found
        there = found.object_logits > 0  # (N, 1)
        masks = found.mask_logits.masked_fill(~there[..., None, None], NO_OBJECT)
        return Decoded(
            masks, found.iou_pred, torch.where(there[..., None], found.pointers, nothing), found.object_logits
        )

    def mask_pointer(self, frame: Frame, masks: Tensor) -> Tensor:
        """Object pointers (N, D) of masks (N, 1, S, S) in [0, 1] on N images, whether SAM2 sees an object or not."""
        return self._decode_mask(frame, masks).pointers[:, 0]

    def _decode_mask(self, frame: Frame, masks: Tensor) -> Decoded:
        # The mask goes in as dense prompt, and the token of the mask that comes out is the pointer. As in SAM2, the
        # embedding stays without the no-memory code here.
        prompt = self.net.mask_downsample(masks.to(self.dtype))  # (N, 1, 4h, 4w)
        return self.decode(frame, frame.embedding, mask_prompt=prompt, multimask=False)

    def encode_memory(self, frame: Frame, masks: Tensor, there: Tensor | None = None) -> Tensor:
        """Memory tokens (N, h*w, memory_dim), without position or temporal code, of N images with their masks.

        Args:
            frame: N images.
            masks: (N, 1, S, S) probabilities in [0, 1].
            there: (N, 1) bool, where an object is; SAM 2.1 marks the others' memory. None: everywhere.
        """
        features, _ = self.net.memory_encoder(frame.embedding, (masks * MASK_SCALE + MASK_BIAS).to(self.dtype))
        empty = self.net.occlusion_spatial_embedding_parameter  # (1, memory_dim), in SAM 2.1 alone
        if there is not None and empty is not None:
            features = features + torch.where(there, torch.zeros_like(empty), empty)[..., None, None]
        return features.flatten(2).transpose(1, 2)

    def given_memory(self, frame: Frame, masks: Tensor, smooth: bool = False) -> Tensor:
        """Memory tokens (N, h*w, memory_dim) of images whose mask somebody gave.

        Args:
            frame: N images.
            masks: (N, 1, S, S) in [0, 1].
            smooth: take the mask's logits through the size of SAM2's own answers, a quarter, as SANSA does.
        """
        # As in SAM2, a given mask becomes logits of -10 and 10, as if it had been predicted with certainty; their
        # sigmoid is scaled once more in `encode_memory`.
        logits = masks * MASK_SCALE + MASK_BIAS
        if smooth:
            quarter = (4 * self.grid, 4 * self.grid)
            logits = F.interpolate(logits.float(), quarter, mode="bilinear", align_corners=False, antialias=True)
            return self.encode_memory(frame, self.to_input_size(logits), _any(masks))
        return self.encode_memory(frame, logits.sigmoid(), _any(masks))

    def given_pointer(self, frame: Frame, masks: Tensor) -> Tensor:
        """Object pointers (N, D) of masks (N, 1, S, S) in [0, 1]; SAM2's no-object pointer where it sees no object."""
        pointers = self.where_present(self._decode_mask(frame, masks)).pointers[:, 0]
        nothing = self.net.no_object_pointer
        return pointers if nothing is None else torch.where(_any(masks), pointers, nothing)

    def memory_position(self, device: torch.device) -> Tensor:
        """Sine position code of one memory map, (h*w, memory_dim)."""
        shape = torch.Size((1, self.memory_dim, self.grid, self.grid))
        return self.net.memory_encoder.position_encoding(shape, device, self.dtype)[0].flatten(1).T

    def temporal_code(self, offset: int) -> Tensor:
        """Learned code of a memory slot, (memory_dim,): 0 is the conditioning frame, t means t frames ago."""
        # The table holds the slots 1, 2, ... and the conditioning frame's last: index -1 for 0 is meant.
        return self.net.memory_temporal_positional_encoding[offset - 1, 0, 0]

    def pointer_code(self, offsets: Tensor) -> Tensor:
        """Temporal codes (K, memory_dim) of pointers; zeros in SAM 2.0, which has none.

        Args:
            offsets: (K,) time differences divided by the longest one, in [0, 1].
        """
        if not self.net.config.enable_temporal_pos_encoding_for_object_pointers:
            return offsets.new_zeros(len(offsets), self.memory_dim, dtype=self.dtype)
        half = self.dim // 2
        frequency = 10000 ** (2 * (torch.arange(half, device=offsets.device) // 2) / half)
        angle = offsets[:, None] / frequency  # (K, D/2)
        code = torch.cat([angle.sin(), angle.cos()], dim=1).to(self.dtype)
        return self.net.temporal_positional_encoding_projection_layer(code)

    def split_pointers(self, pointers: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Pointers (N, K, D) as tokens (N, P, memory_dim), P = K*D/memory_dim, and their codes (P, memory_dim)."""
        # One attention reads maps and pointers, so both need the same width; the pieces of a pointer share its code.
        pieces = self.dim // self.memory_dim
        return pointers.reshape(len(pointers), -1, self.memory_dim), codes.repeat_interleave(pieces, dim=0)

    def attend(self, frame: Frame, tokens: Tensor, positions: Tensor, num_pointer_tokens: int) -> Tensor:
        """The embedding (N, D, h, w) of a frame of N images, conditioned on memory.

        Args:
            frame: N images.
            tokens: (N, T, memory_dim): whole memory maps of h*w tokens first, pointer tokens last.
            positions: (N, T, memory_dim) or (T, memory_dim).
            num_pointer_tokens: how many of T are pointers; they are not rotated.
        """
        out = self.net.memory_attention(
            frame.embedding.flatten(2).permute(2, 0, 1),  # (h*w, N, D)
            tokens.transpose(0, 1),
            frame.position.flatten(2).permute(2, 0, 1),
            positions.expand_as(tokens).transpose(0, 1),
            num_pointer_tokens,
        )
        # transformers returns (1, N, h*w, D)
        return out.reshape(len(tokens), self.grid**2, self.dim).transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def to_input_size(self, mask_logits: Tensor) -> Tensor:
        """Probabilities at the input's size from mask logits (N, 1, 4h, 4w): what the memory encoder reads."""
        size = (self.img_size, self.img_size)
        # Logits are enlarged, not probabilities: the border stays sharp.
        logits = F.interpolate(mask_logits.float(), size=size, mode="bilinear", align_corners=False)
        return logits.sigmoid().to(mask_logits.dtype)


def _new(config: Sam2VideoConfig) -> Sam2VideoModel:
    net = Sam2VideoModel(config)
    # Prompts and images share one Fourier matrix in every checkpoint; a new model draws two.
    with torch.no_grad():
        net.shared_image_embedding.positional_embedding.copy_(net.prompt_encoder.shared_embedding.positional_embedding)
    return net


def _any(masks: Tensor) -> Tensor:
    """(N, 1, S, S) -> (N, 1) bool: whether anything is marked."""
    return (masks > 0).flatten(1).any(1, keepdim=True)
