"""The optimisers and the schedules (warm-up, then cosine or polynomial to zero) that every training here uses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.optim import Muon
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["cosine", "poly"]


def parameter_groups(module: nn.Module, weight_decay: float, muon: bool = False) -> list[dict[str, Any]]:
    """Splits the trainable parameters by what should happen to them, into non-empty groups in a fixed order.

    Biases, norms, embeddings and position tables are not decayed. With `muon` the matrices of the hidden
    linear layers form the group that timm's Muon orthogonalises; everything else stays with its AdamW.

    Raises:
        ValueError: if nothing is trainable.
    """
    # Muon orthogonalises matrices; those narrower than 16 (heads, hints) stay with AdamW.
    linear = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear) and min(m.weight.shape) >= 16}
    embedding = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    matrices, decayed, plain = [], [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if muon and id(parameter) in linear:
            matrices.append(parameter)
        elif parameter.ndim < 2 or id(parameter) in embedding or "pos" in name.rsplit(".", 1)[-1]:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    if not (matrices or decayed or plain):
        raise ValueError(f"{type(module).__name__} has no trainable parameter; unfreeze the part that should learn.")
    extra: dict[str, Any] = {"use_fallback": True} if muon else {}
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": decayed, "weight_decay": weight_decay, **extra},
        {"params": plain, "weight_decay": 0.0, **extra},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    module: nn.Module,
    name: OptimizerName = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.Optimizer:
    """AdamW, or Muon on the hidden matrices with AdamW on the rest.

    Raises:
        ValueError: for an unknown name, or if nothing is trainable.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=lr, betas=betas)
    if name == "muon":
        # timm's Muon scales its updates to the size of AdamW's, so one `lr` serves both.
        return Muon(parameter_groups(module, weight_decay, muon=True), lr=lr, betas=betas, nesterov=True)
    raise ValueError(f"unknown optimizer {name!r}; use 'adamw' or 'muon'.")


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, kind: ScheduleName = "cosine") -> float:
    """Linear warm-up to 1, then down to 0: along a cosine, or as the remaining share to the power of 0.9."""
    # One more than the steps taken, so that the first step moves and the last of the warm-up stays below the peak.
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return (1 - done) ** 0.9 if kind == "poly" else 0.5 * (1 + math.cos(math.pi * done))


def build_schedule(
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    warmup: float = 0.05,
    kind: ScheduleName = "cosine",
    horizon: float = 1.0,
) -> OptimizerLRSchedulerConfig:
    """What `configure_optimizers` returns: the optimiser with its per-step schedule; the rate is logged as `train/lr`.

    Args:
        total_steps: steps of the whole run, e.g. `trainer.estimated_stepping_batches`.
        warmup: share of the steps spent warming up, in [0, 1).
        kind: "cosine" or "poly".
        horizon: length of the schedule over that of the run; above 1 the run ends before the rate is 0.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in ("cosine", "poly"):
        raise ValueError(f"unknown schedule {kind!r}; use 'cosine' or 'poly'.")
    # At least one step: a run of no epochs still asks for a schedule.
    total = max(1, int(total_steps * horizon))
    warmup_steps = int(total * warmup)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, warmup_steps, kind))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "train/lr"}}


def count_parameters(parameters: Iterable[nn.Parameter], trainable: bool = False) -> int:
    """Number of values in the parameters, or in those that require a gradient."""
    return sum(p.numel() for p in parameters if p.requires_grad or not trainable)
