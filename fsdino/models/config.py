"""What defines a segmenter, and the named sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from fsdino.base.ranges import Block, Depth, Side, Width, check_fields

Variant = Literal["compact", "compact_frozen", "full"]
MAX_WEIGHTS, MAX_POSITIONS = 10_000_000_000, 1_000_000  # of an encoder: beyond them a size is a slip
VARIANTS = ("compact", "compact_frozen", "full")


@dataclass
class SegmenterConfig:
    """Everything that `FewShotSegmenter` needs; channels and grid follow from the encoder.

    Args:
        encoder: name of a Vision Transformer in timm.
        img_size: side of the network's square, in pixels; a multiple of the encoder's patch.
        adapter_tap: block (from 0) whose output the adapter turns into SAM's space.
        reader_taps: blocks (from 0) whose outputs query and references are compared at.
        attention_taps: blocks (from 0) whose attention outputs they are compared at as well.
        centred: whether each map that is compared is less its mean over training images.
        encoder_kwargs: handed to `timm.create_model`.
        encoder_weights: "timm" downloads timm's weights, a path loads a file, None leaves them random.
        encoder_stride: pixels between patches where they overlap for a finer map; None: the patch size.
        resize_mode: "squash" or "pad", see `Resize`.
        variant: "compact" (prototypes), "full" (4D reader); "compact_frozen" trains neither decoder nor adapter.
        prompt_dim: width D of SAM's space.
        adapter_dim: width of the adapter's convolutions; `adapter_hidden` and `adapter_heads` are its attention's.
        decoder_depth: two-way blocks of the mask decoder; `decoder_mlp_dim` and `decoder_heads` are theirs.
        decoder_iou_dim: hidden width of the decoder's IoU head.
        mask_in_chans: hidden channels of SAM's mask stem.
        reader_dim: channels of the readers of maps.
        channel_match: see `PromptGenerator`, as for `sparse` and `own_prototypes`.
        similar_blocks: so many of the compared blocks, from the first on, tell which positions of an image are alike;
            None: all.
        support_stride: so many positions a side of a reference's grid are one to the 4D correlation.
        skip: whether the coarse logits are added to the decoder's mask logits.
        freeze_adapter: whether the adapter keeps its distilled weights in episode training.
        threshold: probability above which a pixel belongs to the object.
        presence_likeness: whether the presence head judges likeness, see `PresenceHead`; set by the training of that
            head, see `fsdino.training.presence`.
        promptable: whether SAM's prompted half is kept for references with points, boxes or scribbles and for
            corrections; `segment` does not use it.
        learnt_drawing: whether that half also sees the encoder's maps; set by its training, see
            `fsdino.training.drawing`.
    """

    encoder: str = "vit_base_patch14_dinov2"
    img_size: Side = 518
    # Early blocks are distributed much as SAM's embedding, late ones tell classes apart; one pass serves both.
    adapter_tap: Block = 2
    reader_taps: tuple[Block, ...] = (5, 8, 11)
    attention_taps: tuple[Block, ...] = ()
    centred: bool = False
    encoder_kwargs: dict[str, Any] = field(default_factory=dict)
    encoder_weights: str | None = None
    encoder_stride: Side | None = None
    resize_mode: Literal["squash", "pad"] = "squash"
    variant: Variant = "full"
    prompt_dim: Width = 256
    adapter_dim: Width = 256
    adapter_hidden: Width = 128
    adapter_heads: Width = 4
    decoder_depth: Depth = 2
    decoder_mlp_dim: Width = 2048
    decoder_heads: Width = 8
    decoder_iou_dim: Width = 256
    mask_in_chans: Width = 16
    reader_dim: Width = 64
    channel_match: bool = True
    own_prototypes: bool = True
    sparse: bool = True
    similar_blocks: Depth | None = None
    support_stride: Depth = 1
    skip: bool = True
    freeze_adapter: bool = True
    threshold: float = 0.5
    presence_likeness: bool = False
    promptable: bool = False
    learnt_drawing: bool = False

    def __post_init__(self) -> None:
        for name in ("reader_taps", "attention_taps"):
            if isinstance(getattr(self, name), list):  # from YAML and JSON
                setattr(self, name, tuple(getattr(self, name)))
        # Before the general words for a text that is none of several
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r} is unknown; use one of {', '.join(VARIANTS)}.")
        check_fields(self)
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold!r} is not a probability; use a value above 0 and below 1.")
        self._check_encoder()
        if not self.reader_taps:
            raise ValueError("reader_taps is empty; name at least one block, counted from 0.")

    def _check_encoder(self) -> None:
        """Refuse sizes of an encoder that would not fit into memory, before one is built."""
        if not isinstance(self.encoder, str):
            raise ValueError(f"encoder: expected a name of timm, got {self.encoder!r:.80}; correct it.")
        made = self.encoder_kwargs
        for key, limit in (("depth", 256), ("embed_dim", 16_384), ("num_heads", 256), ("patch_size", 1_024)):
            if key in made and not (type(made[key]) is int and 1 <= made[key] <= limit):
                raise ValueError(
                    f"encoder_kwargs: expected {key} from 1 to {limit:,}, got {made[key]!r:.80}; correct it."
                )
        for key, value in made.items():  # NaN is in no range
            if isinstance(value, int | float) and not abs(value) <= 1e9:
                raise ValueError(
                    f"encoder_kwargs: expected {key} within a thousand million, got {value!r:.80}; correct it."
                )
        # Twelve squares of the width a block: attention's four and eight of the layers behind it.
        weights = 12 * made.get("depth", 1) * made.get("embed_dim", 1) ** 2
        positions = (self.img_size // (self.encoder_stride or made.get("patch_size", 8))) ** 2
        if weights > MAX_WEIGHTS or positions > MAX_POSITIONS:
            raise ValueError(
                f"the encoder would have {weights:,} weights or more and {positions:,} positions, this package takes "
                f"{MAX_WEIGHTS:,} and {MAX_POSITIONS:,}; take smaller sizes."
            )

    @property
    def taps(self) -> tuple[int, ...]:
        """All blocks that the encoder must return, in order."""
        return tuple(sorted({self.adapter_tap, *self.reader_taps}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        values = {**asdict(self), "reader_taps": list(self.reader_taps), "attention_taps": list(self.attention_taps)}
        # Left out while unused: models that were saved before there were such options keep their fingerprints.
        return {name: value for name, value in values.items() if value or name not in ("attention_taps", "centred")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SegmenterConfig:
        """The config of `to_dict`.

        Raises:
            ValueError: if a key is unknown.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"SegmenterConfig has no {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
        return cls(**values)


# Official SAMs are 256 wide; this fits a teacher of `SamConfig`'s default sizes, which is 64 wide.
_SMALL_SAM: dict[str, Any] = {
    "prompt_dim": 64,
    "adapter_dim": 64,
    "adapter_hidden": 64,
    "decoder_mlp_dim": 256,
    "decoder_heads": 4,
    "decoder_iou_dim": 64,
    "reader_dim": 32,
}
# At 1,369 positions the products of all with all are what costs most after the encoder. For the chain one block's
# similarities did as well (benchmarks/results/chain.csv); references are compared on half the grid.
_FINE_GRID: dict[str, Any] = {"similar_blocks": 1, "support_stride": 2}
PRESETS: dict[str, SegmenterConfig] = {
    "tiny": SegmenterConfig(
        encoder="vit_small_patch14_dinov2",
        encoder_kwargs={"embed_dim": 192, "depth": 6, "num_heads": 3, "init_values": 1.0},
        img_size=112,
        encoder_stride=7,
        reader_taps=(3, 4, 5),
        # Neither pays on this world (benchmarks/results/ablation.csv).
        own_prototypes=False,
        similar_blocks=1,
        **_SMALL_SAM,
    ),
    # A few hundred photographs do not teach which channels matter: what sees channels learns their classes by heart.
    # This encoder's attention outputs tell classes apart better than its blocks' (benchmarks/results/compared.csv).
    "photos": SegmenterConfig(
        encoder="vit_tiny_patch16_224",
        img_size=448,
        reader_taps=(6, 8, 11),
        attention_taps=(5, 6, 7, 8, 9),
        centred=True,
        channel_match=False,
        sparse=False,
        **_SMALL_SAM,
    ),
    "s14": SegmenterConfig(encoder="vit_small_patch14_dinov2", **_FINE_GRID),
    "b14": SegmenterConfig(encoder="vit_base_patch14_dinov2", **_FINE_GRID),
    "l14": SegmenterConfig(encoder="vit_large_patch14_dinov2", adapter_tap=5, reader_taps=(11, 17, 23), **_FINE_GRID),
}


def preset(name: str, **overrides: Any) -> SegmenterConfig:
    """A new config: a key of `PRESETS` with some fields replaced.

    Raises:
        ValueError: if the name or a field is unknown.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS)}.")
    return SegmenterConfig.from_dict({**replace(PRESETS[name]).to_dict(), **overrides})
