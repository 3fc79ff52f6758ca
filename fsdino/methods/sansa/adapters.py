"""AdaptFormer adapters in SAM2's image encoder: the only weights that SANSA trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fsdino.methods.sam2.net import Sam2
from fsdino.methods.sam2.published import PublishedState


class Adapter(nn.Module):
    """AdaptFormer's bottleneck (Chen et al. 2022): norm, down, ReLU, up, times a small scale."""

    def __init__(self, dim: int, bottleneck: int, scale: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        self.scale = scale
        # Zero output at first: training starts from SAM2 as it is. The scale keeps the steps away from it small.
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.scale * self.up(self.down(self.norm(x)).relu())


class AdaptedMlp(nn.Module):
    """A block's second norm and MLP with an adapter beside them, all fed by the stream after attention."""

    def __init__(self, norm: nn.Module, mlp: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.norm = norm
        self.mlp = mlp
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim), to be added to the stream."""
        return self.mlp(self.norm(x)) + self.adapter(x)


def add_adapters_(sam2: Sam2, factor: float, stages: Sequence[int] = (2, 3)) -> list[nn.Parameter]:
    """Put an adapter into every Hiera block of some stages.

    Args:
        sam2: changed in place; load weights before.
        factor: bottleneck width over the block's *input* width (so a stage's first block has half of the others').
        stages: of 0 to 3.

    Returns:
        The adapters' parameters.
    """
    backbone = sam2.net.vision_encoder.backbone
    ends = [0, *(end + 1 for end in backbone.stage_ends)]
    parameters: list[nn.Parameter] = []
    for stage in stages:
        for block in backbone.blocks[ends[stage] : ends[stage + 1]]:
            adapter = Adapter(block.dim_out, int(factor * block.dim)).to(sam2.mean.device, sam2.dtype)
            block.mlp = AdaptedMlp(block.layer_norm2, block.mlp, adapter)
            # The block calls its norm, then its MLP. The adapter reads the stream before the norm, so the norm moves
            # into the place of the MLP, beside the adapter.
            block.layer_norm2 = nn.Identity()
            parameters += adapter.parameters()
    return parameters


def load_adapters_(sam2: Sam2, state: PublishedState) -> None:
    """Fill every adapter from an authors' checkpoint.

    Raises:
        ValueError: if the two have adapters in other blocks or of other widths.
    """
    blocks = sam2.net.vision_encoder.backbone.blocks
    own = {i: block.mlp.adapter for i, block in enumerate(blocks) if isinstance(block.mlp, AdaptedMlp)}
    if own.keys() != state.adapters.keys():
        raise ValueError(
            f"{state.name} has adapters in the blocks {sorted(state.adapters)}, this SAM2 in {sorted(own)}; give the "
            "size and the stages that it was trained with."
        )
    for i, adapter in own.items():
        wanted, found = adapter.state_dict(), state.adapters[i]
        for name in wanted.keys() | found.keys():
            there, here = (tuple(side[name].shape) if name in side else "missing" for side in (found, wanted))
            if there != here:
                raise ValueError(
                    f"{state.name}: weight {name} of the adapter in block {i} is {there}, here {here}; give the size "
                    "and factor that it was trained with (published: 0.3, and 0.8 for the generalist)."
                )
        adapter.load_state_dict(found)
        adapter.scale = state.scales.get(i, adapter.scale)
