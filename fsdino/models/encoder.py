"""The frozen Vision Transformer that everything is read from."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdino.base.foundation import recorded
from fsdino.base.frozen import FrozenMaps
from fsdino.models.encoder_weights import check_kernels, misfit, overlay, read_weights

# What attention layers returned in the pass under way. Not an attribute of the encoder, since threads share one.
_ATTENDED: ContextVar[dict[int, Tensor] | None] = ContextVar("attended", default=None)


@dataclass(frozen=True)
class _Keep:
    """Forward hook of the attention of one block: timm returns the outputs of whole blocks alone."""

    block: int

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept = _ATTENDED.get()
        if kept is not None:
            kept[self.block] = output


class FeatureEncoder(nn.Module):
    """One frozen Vision Transformer of timm: pixels in [0, 1] in, layer-normed feature maps out.

    The transformer never trains: no gradients, always in eval mode.

    Args:
        name: timm's name, for instance "vit_base_patch14_dinov2", "vit_base_patch16_dinov3" or "vit_tiny_patch16_224".
        img_size: native side of the square input, in pixels; other multiples of the patch work too.
        taps: blocks (from 0) to read.
        model_kwargs: handed to `timm.create_model`.
        weights: "timm" downloads timm's weights, a path loads a checkpoint of this architecture, None: random.
        stride: pixels between patches where they shall overlap for a finer map (Amir et al., arXiv 2112.05814); None:
            the patch size.
        attention: blocks whose attention outputs are read as well, before the residual sum, as ClearCLIP (Lan et al.,
            arXiv 2407.12442) reads the last one's.

    Attributes:
        own_norm: maps go through the transformer's own last norm, in place of one without weights.

    Raises:
        ValueError: if the size is not a multiple of the patch, a tap does not exist, or the model is not a ViT.
    """

    backbone: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        img_size: int,
        taps: Sequence[int],
        model_kwargs: dict[str, Any] | None = None,
        weights: str | None = None,
        stride: int | None = None,
        attention: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.img_size = img_size
        backbone = create_vit(name, img_size, model_kwargs or {}, weights, stride)
        self.backbone = backbone
        self.patch_size = int(backbone.patch_embed.patch_size[0])
        self.dim = int(backbone.embed_dim)
        self.depth = len(backbone.blocks)
        self.check_size(img_size)
        self.taps = _checked_taps(taps, self.depth, repr(name))
        self.attention = self._listened(attention, repr(name))
        self.own_norm = False
        for stat in ("mean", "std"):
            value = torch.tensor(backbone.pretrained_cfg[stat], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(stat, value, persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def reading(self, taps: Sequence[int] | None = None, attention: Sequence[int] = ()) -> FeatureEncoder:
        """The same frozen transformer read at other blocks (None: all), without a copy of its weights."""
        # A shallow copy shares the module's dictionaries, so moving either to a device moves both.
        other = copy.copy(self)
        other.taps = tuple(range(self.depth)) if taps is None else _checked_taps(taps, self.depth, "this encoder")
        other.attention = self._listened(attention, "this encoder")
        return other

    def _listened(self, attention: Sequence[int], name: str) -> tuple[int, ...]:
        """The blocks, with a hook on the attention of each."""
        if not attention:
            return ()
        blocks = _checked_taps(attention, self.depth, name)
        for i in blocks:
            layer = getattr(self.backbone.blocks[i], "attn", None)
            if not isinstance(layer, nn.Module):
                raise ValueError(f"block {i} of {name} has no attention of its own to read; leave attention empty.")
            if not any(isinstance(hook, _Keep) for hook in layer._forward_hooks.values()):
                layer.register_forward_hook(_Keep(i))
        return blocks

    @property
    def num_maps(self) -> int:
        """How many maps a pass returns."""
        return len(self.taps) + len(self.attention)

    @property
    def grid_size(self) -> int:
        """Side of the feature map at the native input size."""
        return self.img_size // self.patch_size

    @property
    def rotary(self) -> bool:
        """Whether positions enter as rotations (RoPE), as in DINOv3, PE-Spatial and LingBot."""
        return getattr(self.backbone, "rope", None) is not None

    def check_size(self, size: int) -> None:
        """Check that a square input of this side splits into patches.

        Raises:
            ValueError: if it does not; names the nearest sizes that do.
        """
        below = size // self.patch_size * self.patch_size
        if below != size:
            sizes = f"{below} or {below + self.patch_size}" if below else f"{self.patch_size}"
            raise ValueError(f"img_size {size} is not a multiple of the patch size {self.patch_size}; use {sizes}.")

    def train(self, mode: bool = True) -> FeatureEncoder:
        """Stay in eval mode, whatever is asked: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, last_tap: int | None = None) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            images: (N, 3, S, S) float in [0, 1], S a multiple of the patch.
            last_tap: stop after this tap; later blocks are not computed, and attention outputs are not returned.

        Returns:
            One (N, C, h, w) map per tap up to `last_tap`, in the order of `taps`, then one per block of `attention`.

        Raises:
            ValueError: if the size does not split into patches or `last_tap` is not one of the taps.
        """
        self.check_size(images.shape[-2])
        self.check_size(images.shape[-1])
        if last_tap is not None and last_tap not in self.taps:
            raise ValueError(f"last_tap {last_tap} is not read; the taps are {self.taps}.")
        taps = [tap for tap in self.taps if last_tap is None or tap <= last_tap]
        dtype = next(self.backbone.parameters()).dtype
        # In float32 before the cast: a difference taken in bfloat16 would lose the pixels' last bits.
        x = ((images.float() - self.mean.float()) / self.std.float()).to(dtype)
        attention = self.attention if last_tap is None else ()
        token = _ATTENDED.set({})
        try:
            found = self.backbone.forward_intermediates(
                x,
                indices=taps + [block for block in attention[-1:] if block > taps[-1]],  # far enough for both
                stop_early=True,
                intermediates_only=True,
                output_fmt="NCHW",
                norm=self.own_norm,
            )
            attended = _ATTENDED.get() or {}
        finally:
            _ATTENDED.reset(token)
        maps = [m if self.own_norm else _normed(m.permute(0, 2, 3, 1)) for m in found[: len(taps)]]
        for block in attention:
            patches = attended[block][:, self.backbone.num_prefix_tokens :]
            maps.append(_normed(patches.unflatten(1, found[0].shape[-2:])))
        return maps

    @torch.no_grad()
    def mean_features(self, squares: Iterable[Tensor]) -> Tensor:
        """Mean feature (L, C) of each map over images (3, S, S) float in [0, 1] and their positions.

        Raises:
            ValueError: there is no image.
        """
        sums = [torch.stack([m.double().mean((0, 2, 3)) for m in self(square[None])]) for square in squares]
        if not sums:
            raise ValueError("there is no image to take means of; give a few dozen pictures, no labels are needed.")
        return torch.stack(sums).mean(0).float()

    def stacked(self, images: Tensor) -> Tensor:
        """All maps of images (N, 3, S, S) in one tensor (N, L, C, h, w)."""
        return torch.stack(self(images), dim=1)

    def frozen_maps(self) -> FrozenMaps:
        """All maps (L, C, h, w) of an image at the native size, as what a cache holds in place of its pixels."""
        shape = (self.num_maps, self.dim, self.grid_size, self.grid_size)
        settings = (self.taps, self.attention) if self.attention else self.taps
        about: dict[str, Any] = {"settings": settings, "img_size": self.img_size, "entry_shape": shape}
        return FrozenMaps("features", self, **about, compute=self.stacked, in_place_of_images=True)

    def freeze_size_(self) -> FeatureEncoder:
        """Accept the native size alone from now on, for export: no resampling of the position embedding remains."""
        self.backbone.patch_embed.strict_img_size = True
        # timm keeps rotary positions either for one size or for any; made for any, they need the grid that only the
        # dynamic path hands them, and there learnt positions of the native size pass as they are.
        if not self.rotary:
            self.backbone.dynamic_img_size = False
            self.backbone.patch_embed.flatten = True
        return self


def _normed(tokens: Tensor) -> Tensor:
    """Tokens (N, h, w, C) layer-normed over channels, as a map (N, C, h, w)."""
    # Without parameters: a few channels would dominate the cosines between raw tokens.
    return F.layer_norm(tokens, tokens.shape[-1:]).permute(0, 3, 1, 2)


def _checked_taps(taps: Sequence[int], depth: int, name: str) -> tuple[int, ...]:
    found = tuple(sorted(set(taps)))
    if not found or found[0] < 0 or found[-1] >= depth:
        raise ValueError(f"taps {tuple(taps)} do not fit {name}; it has blocks 0 to {depth - 1}.")
    return found


def create_vit(
    name: str, img_size: int, model_kwargs: dict[str, Any], weights: str | None = None, stride: int | None = None
) -> Any:
    """Build a transformer from the arguments of `FeatureEncoder`; its native size needs no resampling of positions.

    Raises:
        ValueError: if it is not a ViT, or the stride does not divide the input.
    """
    if stride is None:
        return _create(name, img_size, model_kwargs, weights)
    # The patch size is known only once the model is there; on the meta device it costs no memory and no random numbers.
    with torch.device("meta"):
        patch = int(_create(name, img_size, model_kwargs, None).patch_embed.proj.kernel_size[0])
    if not 0 < stride <= patch or img_size % stride:
        raise ValueError(f"stride {stride} must divide img_size {img_size} and be at most the patch size {patch}.")
    # timm makes one position per patch of its input: an input that is larger by patch / stride gives one for each
    # overlapping patch, and pretrained positions are resampled to them once, while loading.
    model = _create(name, img_size // stride * patch, model_kwargs, weights)
    set_stride_(model, stride)
    model.patch_embed.img_size = (img_size, img_size)
    return model


def set_stride_(vit: Any, stride: int) -> None:
    """Let patches of a timm ViT with `dynamic_img_size` overlap (or not): the same kernels, `stride` pixels apart."""
    proj = vit.patch_embed.proj
    # So much padding that a patch lies centred on its cell, and S / stride patches fit a side.
    padding = (proj.kernel_size[0] - stride + 1) // 2
    proj.stride, proj.padding = (stride, stride), (padding, padding)
    vit.patch_embed.patch_size = (stride, stride)


def _create(name: str, img_size: int, model_kwargs: dict[str, Any], weights: str | None) -> Any:
    recorded(name)
    kwargs: dict[str, Any] = {"img_size": img_size, "dynamic_img_size": True, "num_classes": 0, **model_kwargs}
    file, tensors = ("", {}) if weights is None else read_weights(name, weights)
    if tensors:
        kwargs["pretrained_cfg_overlay"] = overlay(name, tensors)
    try:
        model: Any = timm.create_model(name, pretrained=bool(tensors), **kwargs)
    except TypeError as error:  # convolutional networks know neither img_size nor dynamic_img_size
        raise ValueError(f"encoder {name!r} does not take {sorted(kwargs)}; use a Vision Transformer.") from error
    except Exception as error:  # each architecture has its own way to trip over the weights of another
        if not tensors:
            raise
        raise misfit(name, file, error) from error
    if not (hasattr(model, "blocks") and hasattr(model, "patch_embed") and hasattr(model, "forward_intermediates")):
        raise ValueError(f"encoder {name!r} has no transformer blocks to read; use a Vision Transformer.")
    if tensors:
        check_kernels(name, file, tensors, model)
        del model.pretrained_cfg["state_dict"]  # a second copy of all weights
    return model
