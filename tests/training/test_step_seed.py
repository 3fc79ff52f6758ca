"""Dropout comes out the same twice, also in a run that was interrupted."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fsdino.pipeline.run import LAST, checkpoints
from fsdino.training.step_seed import StepSeed


class Dropping(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 1)
        nn.init.ones_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.line(nn.functional.dropout(batch, 0.5)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def _fit(folder: Path, epochs: int, resume: Path | None = None) -> Tensor:
    module = Dropping()
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[StepSeed(3), *checkpoints(folder, None)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.ones(6, 8), batch_size=2), ckpt_path=resume)
    return module.line.weight.detach()


def test_a_resumed_run_drops_the_same(tmp_path: Path) -> None:
    whole = _fit(tmp_path / "whole", 3)
    _fit(tmp_path / "parts", 1)
    torch.rand(17)  # another process stands elsewhere in its stream
    assert torch.equal(_fit(tmp_path / "parts", 3, tmp_path / "parts" / LAST), whole)
