"""Weights from a file into a network: every one once, of the right shape, and all of them numbers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def fill_(method: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a network, in its own precision; `where` names their file in error messages.

    Raises:
        ValueError: if one is missing, unknown, of another shape, or not finite.
    """
    wanted = method.state_dict()
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            f"'{where}' does not fit its configuration:{_named('missing', missing)}{_named('unknown', unknown)}."
        )
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"'{where}': weight {name} has shape {tuple(tensors[name].shape)}, its configuration needs "
                f"{tuple(tensor.shape)}; the files do not belong together."
            )
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"'{where}': weight {name} holds NaN or infinity; take weights from before that.")
    method.load_state_dict(tensors)  # copies into float32 parameters, whatever the stored precision


def _named(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    return f" {len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
