"""What the processes of one distributed run do once among them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, distributed


def write_once(write: Callable[[], object]) -> None:
    """Let the first process of a distributed run write files that all of them go on with; the others wait."""
    shared = distributed.is_available() and distributed.is_initialized()
    if not shared or distributed.get_rank() == 0:
        write()
    if shared:
        distributed.barrier()


def own_items(places: Tensor, rank: int, world_size: int) -> Tensor:
    """Which items of a batch are a process's own, (B,) bool, from their places (B,) in the list: each counts once."""
    # Processes take every `world_size`-th item of a fixed list; where it does not divide evenly, a distributed sampler
    # hands out the first ones again.
    return places % world_size == rank
