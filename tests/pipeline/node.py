"""One node of a test's run: `fsdino run`, which leaves its weights, and sends itself a signal where it is told to."""

import os
import signal
import sys

import torch

from fsdino.cli import main
from fsdino.training.episodes import EpisodeModule
from fsdino.training.preempt import Preemption

# RANK:STEP:SIGNAL, for instance 1:5:SIGKILL
RANK, STEP, SIGNAL = os.environ.get("SEND", "-1:0:SIGTERM").split(":")


def step_done(module: EpisodeModule, *_: object) -> None:
    """After every step: the signal, where it is due."""
    if (module.trainer.global_rank, module.trainer.global_step) == (int(RANK), int(STEP)):
        os.kill(os.getpid(), signal.Signals[SIGNAL])


def begun(module: EpisodeModule) -> None:
    """Before the first step: the weights that it starts from, those of a first start alone."""
    if module.global_step == 0:
        torch.save(module.model.state_dict(), "start.pt")


def trained(module: EpisodeModule) -> None:
    """After the last step: this process's own weights."""
    torch.save(module.model.state_dict(), f"weights-{module.trainer.global_rank}-{module.trainer.world_size}.pt")


EpisodeModule.on_fit_start = begun  # type: ignore[method-assign]
EpisodeModule.on_train_batch_end = step_done  # type: ignore[method-assign, assignment]
EpisodeModule.on_fit_end = trained  # type: ignore[method-assign]
Preemption.__init__.__defaults__ = (1,)  # the epoch is short
sys.exit(main(sys.argv[1:]))
