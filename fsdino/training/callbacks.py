"""What a run does beside learning: one compact progress bar, its speed, strips of episodes, a seed for each step."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch import Tensor
from tqdm import tqdm

from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.training.loggers import log_image
from fsdino.visualize import episode_strip, sheet, write_png


class RateMeter:
    """Images a second over the last `window` steps."""

    def __init__(self, window: int = 30) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=window + 1)

    def update(self, images: int) -> float:
        """Images a second after a step of so many that ends now; 0 at the first step."""
        self._steps.append((time.perf_counter(), images))
        # The oldest entry only says when the window begins: its own images were done before that.
        seconds = self._steps[-1][0] - self._steps[0][0]
        return sum(count for _, count in list(self._steps)[1:]) / seconds if seconds > 0 else 0.0

    def pause(self) -> None:
        """Forgets the past."""
        self._steps.clear()


def batch_images(batch: Any) -> int:
    """Number of items in a batch: the leading size of the first tensor in it, 0 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((count for value in values if (count := batch_images(value))), 0)


class Throughput(Callback):
    """Logs `train/images_per_s` every so many steps, and on a GPU `train/peak_mb`, the most memory since the start."""

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._meter = RateMeter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock anew."""
        # Validation and the making of loaders lie between two epochs and would count as slow steps.
        self._meter.pause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch."""
        rate = self._meter.update(batch_images(batch) * trainer.world_size)
        if rate and trainer.global_step % self.every_n_steps == 0:
            pl_module.log("train/images_per_s", rate, batch_size=1)
            if pl_module.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(pl_module.device) / 2**20
                pl_module.log("train/peak_mb", peak, batch_size=1)


class StepSeed(Callback):
    """Lets torch's global random numbers depend on (seed, epoch, step, process) alone: a resumed run repeats them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds all devices' generators."""
        # A hash, because a sum would give step 1 of epoch 0 the numbers of step 0 of epoch 1.
        key = np.random.SeedSequence([self.seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        torch.manual_seed(int(key.generate_state(1)[0]))


class StageProgress(ProgressBar):
    """One bar for a whole stage: `distill 112 px  45% |███   | loss 0.123 · 311 images/s · 0:12 left`.

    Args:
        unit: what is counted, "images" or "episodes".
        stream: where it is drawn; None = stderr. Where that is not a terminal, a line every ten seconds.
    """

    def __init__(self, stage: str, unit: str = "images", stream: TextIO | None = None) -> None:
        super().__init__()
        self.stage, self.unit, self.stream = stage, unit, stream
        self._enabled = True
        # A tqdm; typed loosely because its stubs do not know a list as postfix.
        self._bar: Any = None
        self._meter = RateMeter()
        self._parts: list[str] = []

    def disable(self) -> None:
        """Draws nothing (Lightning asks all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Draws again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar over all steps of the run."""
        total = trainer.estimated_stepping_batches
        # A resumed run starts at its step, or the time left would be guessed from steps that it never took.
        self._start(int(total) if total != float("inf") else None, trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the clock anew."""
        self._meter.pause()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar to the step."""
        # To read a number makes the CPU wait for the GPU, so it is done only where the bar is drawn anew.
        if self._is_due(trainer):
            metrics = trainer.progress_bar_metrics
            self._parts = [f"{key.split('/')[-1]} {float(value):.3f}" for key, value in metrics.items()]
        # With accumulated gradients many batches make one optimiser step, so the bar follows the trainer's count.
        step = trainer.global_step - int(self._bar.n if self._bar is not None else 0)
        self._advance(step, batch_images(batch) * trainer.world_size, self._parts, self._size(batch))

    def on_train_end(self, *_: Any) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Closes the bar."""
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar over all batches of this process."""
        self._start(int(sum(trainer.num_predict_batches)), 0)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Moves the bar by a batch."""
        self._advance(1, batch_images(batch) * trainer.world_size, [], None)

    def on_predict_end(self, *_: Any) -> None:
        """Closes the bar."""
        self._close()

    def _start(self, total: int | None, done: int) -> None:
        self._close()
        self._meter.pause()
        stream = self.stream or sys.stderr
        bar: Any = tqdm
        self._bar = bar(
            total=total,
            initial=done,
            desc=self.stage,
            file=stream,
            disable=not self._enabled,
            mininterval=0.2 if stream.isatty() else 10.0,
            bar_format="{desc} {percentage:3.0f}% |{bar:20}| {postfix[0]}{elapsed} so far · {remaining} left",
            postfix=[""],
        )

    def _advance(self, steps: int, images: int, parts: list[str], size: int | None) -> None:
        rate = self._meter.update(images)
        if self._bar is None or self._bar.disable:
            return
        parts = [*parts, f"{rate:.0f} {self.unit}/s"] if rate else parts
        self._bar.postfix[0] = "".join(f"{part} · " for part in parts)
        if size is not None:
            self._bar.desc = f"{self.stage} {size} px"
        self._bar.update(steps)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether the bar is about to be drawn, or shows its last step."""
        bar = self._bar
        if bar is None or bar.disable:
            return False
        return bar.total == trainer.global_step or time.time() - bar.last_print_t >= bar.mininterval

    def _close(self) -> None:
        if self._bar is not None:
            if not self._bar.disable:
                self._bar.refresh()
            self._bar.close()
            self._bar = None

    @staticmethod
    def _size(batch: Any) -> int | None:
        """Side of the images, where the batch has any."""
        image = batch.get("image", batch.get("query_image")) if isinstance(batch, Mapping) else None
        return int(image.shape[-1]) if isinstance(image, Tensor) else None


class EpisodeStrips(Callback):
    """After each validation draws some fixed episodes (support · query · truth · prediction) as one PNG.

    The module that trains must hold the method as `model`; the files are `epoch-000.png` and so on in `folder`.
    """

    def __init__(self, index: ClassIndex, episodes: EpisodeList, folder: str | Path, count: int = 6) -> None:
        self.index, self.folder = index, Path(folder)
        # The list is in the order of its draw, so a stride shows many classes.
        step = max(1, len(episodes.episodes) // max(1, count))
        self.episodes = episodes.episodes[::step][:count]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, writes and logs the sheet."""
        if trainer.sanity_checking or not trainer.is_global_zero or not self.episodes:
            return
        path = self.draw(pl_module.model, self.folder / f"epoch-{trainer.current_epoch:03d}.png")  # type: ignore[arg-type]
        log_image(trainer.loggers, "val/strips", path, trainer.global_step)

    @torch.no_grad()
    def draw(self, method: FewShotMethod, path: Path) -> Path:
        """Runs a method on the episodes and draws them into a PNG, whose folder is made."""
        strips = []
        for episode in self.episodes:
            masks = [self.index.load_mask(name, episode.class_id) == 1 for name in episode.support]
            images = [self.index.load_image(name) for name in episode.support]
            query, truth = self.index.load_image(episode.query), self.index.load_mask(episode.query, episode.class_id)
            memory = method.remember([Reference(image, mask=mask) for image, mask in zip(images, masks)])
            found = method.segment(memory, query)
            name, prediction = self.index.class_names[episode.class_id], found.mask
            strips.append(
                episode_strip(images, masks, query, truth, prediction, class_name=name, score=found.score, size=160)
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_png(path, sheet(strips))
