"""How a run is computed: what may differ between machines without changing what is learnt, but for rounding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fsdino.base.ranges import Weight, check_fields


@dataclass
class ComputePart:
    """How training is computed; precision, devices, nodes and accumulated gradients are flags of `--trainer.`.

    Args:
        compile: compile the blocks of frozen transformers (torch.compile); pays on a GPU in long runs.
        find_batch_size: at the first start of a stage of one process, double its batch until memory or the epoch's
            number of batches ends it (Lightning's finder), and go on with that; learning rates are not changed with it.
        timeout: minutes that the processes of a distributed run wait for one that is silent, then end with an error.
    """

    compile: bool = False
    find_batch_size: bool = False
    timeout: Weight = 30.0

    def __post_init__(self) -> None:
        check_fields(self)


def compile_frozen_(module: nn.Module) -> int:
    """Compile the blocks of every frozen transformer in a module, in place; how many there are.

    Block by block: blocks of one shape share what is compiled, and weights keep their names. Blocks whose attention
    outputs are read stay as they are, since a compiled call does not hand out what a hook sees.
    """
    count = 0
    for part in module.modules():
        blocks = getattr(part, "blocks", None)
        for block in blocks if isinstance(blocks, nn.ModuleList | nn.Sequential) else ():
            learns = [parameter.requires_grad for parameter in block.parameters()]
            if learns and not any(learns) and not any(layer._forward_hooks for layer in block.modules()):
                block.compile()
                count += 1
    return count
