"""A recipe from end to end: cache, distill coarse to fine, train on episodes, measure on novel classes, export.

Each stage looks for what it has already finished and goes on from there, so the same command after an interruption
continues and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from fsdino.base.bundled import bundled_file
from fsdino.base.resize import ResizeMode
from fsdino.base.storage import load_segmenter, save_pretrained
from fsdino.cache.cache import EmbeddingCache, EmbeddingSource, FrozenTaps, cache_recipe, write_cache
from fsdino.cache.image_list import ImageList
from fsdino.data.splits import TestSet, TrainSet, open_test, open_train
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.pipeline.recipe import Recipe
from fsdino.pipeline.teacher import teach
from fsdino.teachers.sam import SamTeacher
from fsdino.training.callbacks import EpisodeStrips, StageProgress, Throughput
from fsdino.training.distill import DistillModule
from fsdino.training.distill_data import DistillData
from fsdino.training.episode_data import MetaData
from fsdino.training.episodes import MetaModule
from fsdino.training.loggers import log_image, log_model, make_loggers
from fsdino.training.presence import PresenceData, presence_stage
from fsdino.training.step_seed import StepSeed

LAST, BEST = "last.ckpt", "best.ckpt"


@dataclass
class Job:
    """One run of a recipe.

    Args:
        recipe: what to do.
        trainer_options: keyword arguments for Lightning's Trainer.
        folder: the run's folder.
        features: maps of the frozen encoder that are there already, with their list; None makes them for this run.
    """

    recipe: Recipe
    trainer_options: dict[str, Any]
    folder: Path
    features: tuple[EmbeddingCache, ImageList] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _test: TestSet | None = None
    _train: TrainSet | None = None
    _teacher: SamTeacher | None = None

    @property
    def test(self) -> TestSet:
        """The test set, opened once."""
        if self._test is None:
            self._test = open_test(self.recipe.data)
        return self._test

    @property
    def train_set(self) -> TrainSet:
        """The training set, opened once."""
        if self._train is None:
            self._train = open_train(self.recipe.data, self.test, self.recipe.seed)
        return self._train

    @property
    def teacher(self) -> SamTeacher:
        """The teacher, loaded once."""
        if self._teacher is None:
            part = self.recipe.teacher
            named = {"tiny": lambda: bundled_file("tiny_sam"), "own": lambda: teach(self)}
            file = named[part.checkpoint]() if part.checkpoint in named else part.checkpoint
            self._teacher = SamTeacher.from_checkpoint(file, part.sha256)
        return self._teacher

    def trainer(self, stage: str, unit: str = "images", **stage_options: Any) -> Trainer:
        """A Trainer for one stage; the recipe's own Trainer flags come last."""
        options: dict[str, Any] = {
            "accelerator": "auto", "devices": 1, "enable_model_summary": False, "logger": False,
            "enable_checkpointing": False, "num_sanity_val_steps": 0, "log_every_n_steps": 10,
        }  # fmt: skip
        callbacks = stage_options.pop("callbacks", [])
        if self.trainer_options.get("enable_progress_bar", True):
            callbacks = [StageProgress(stage, unit), *callbacks]
        return Trainer(callbacks=callbacks, **{**options, **stage_options, **self.trainer_options})

    def loggers(self, stage: str) -> list[Logger]:
        """`metrics.csv` in the stage's folder, and W&B where the recipe wants it."""
        log = self.recipe.log
        name = f"{self.recipe.name}-{self.folder.name}-{stage}"
        return make_loggers(self.folder / stage, name, log.project, log.wandb, asdict(self.recipe))

    # ---- stages

    def cache(self) -> None:
        """Write the teacher's embeddings and the frozen encoder's maps, where the recipe wants them."""
        if self.recipe.cache.teacher and self.recipe.distill.epochs > 0 and self.recipe.train.init_from is None:
            self.teacher_cache()
        if self.recipe.cache.features:
            self.feature_cache(self.train_set.annotated)

    def teacher_cache(self) -> EmbeddingCache:
        """The teacher's embeddings of all images of distillation."""
        mode = self.recipe.segmenter().resize_mode
        return self.cached("teacher", self.teacher, self.train_set.images, mode, self._cache_views)

    def feature_cache(self, images: ImageList) -> EmbeddingCache:
        """The frozen encoder's maps of an image list."""
        first = self.recipe.train.init_from
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)  # as the training modules do: an encoder without weights is theirs
            segmenter = FewShotSegmenter(self.recipe.segmenter()) if first is None else load_segmenter(first)
        source, mode = FrozenTaps(segmenter.encoder), segmenter.resize.mode
        return self.cached("features", source, images, mode, self._cache_views)

    @property
    def _cache_views(self) -> tuple[str, ...]:
        return ("plain", "hflip") if self.recipe.cache.hflip else ("plain",)

    def cached(
        self, kind: str, source: EmbeddingSource, images: ImageList, mode: ResizeMode, views: tuple[str, ...]
    ) -> EmbeddingCache:
        """What a frozen network makes of images, written once into a folder named after everything that decides it.

        Args:
            kind: start of the folder's name, and what the progress bar says.
            source: the network.
            images: what it sees.
            mode: how images become squares.
            views: "plain" and, if wanted, "hflip".

        Returns:
            The cache, whole.
        """
        part, trainer = self.recipe.cache, self.trainer(f"cache {kind}")
        wanted = cache_recipe(source, images, mode, views, part.shard_size, str(trainer.precision))
        digest = hashlib.sha256(json.dumps(asdict(wanted), sort_keys=True).encode()).hexdigest()[:12]
        folder = Path(part.dir) / f"{kind}-{digest}"
        return write_cache(
            source, images, folder, trainer, mode, views, part.batch_size, self.recipe.num_workers, part.shard_size,
        )  # fmt: skip

    def distill(self) -> Path | None:
        """Stage 1; the checkpoint, or None where the recipe leaves it out or adapts a trained segmenter."""
        part = self.recipe.distill
        if part.epochs == 0 or self.recipe.train.init_from is not None:
            return None
        live = not self.recipe.cache.teacher
        module = DistillModule(
            self.recipe.segmenter(), self.teacher if live or part.mask_weight > 0 else None, part.loss,
            part.mask_weight, lr=part.lr, weight_decay=part.weight_decay, optimizer=part.optimizer,
            seed=self.recipe.seed,
        )  # fmt: skip
        data = DistillData(
            self.train_set.images, part.sizes, part.shares, None if live else self.teacher_cache(),
            self.teacher.img_size if live else None, self.recipe.segmenter().resize_mode, part.epoch_length,
            part.val_count, self.recipe.cache.hflip, part.batch_size, self.recipe.num_workers, self.recipe.seed,
        )  # fmt: skip
        return self.fit("distill", module, data, part.epochs, [])

    def train(self, distilled: Path | None = None) -> Path:
        """Stages 2 and 3, from a distilled checkpoint or from new weights; the best checkpoint."""
        part, chosen = self.recipe.train, self.train_set
        first = None if part.init_from is None else load_segmenter(part.init_from)
        module = MetaModule(
            self.recipe.segmenter() if first is None else first.config, chosen.val_classes, part.lr, part.weight_decay,
            optimizer=part.optimizer, dice_weight=part.dice_weight, seed=self.recipe.seed,
        )  # fmt: skip
        if first is not None:
            module.model.load_state_dict(first.state_dict())
            module.model.threshold = first.threshold
        else:
            start_from(module.model, distilled, self.teacher.sam.state_dict() if part.sam_decoder else None)
            if module.model.sam is not None:
                module.model.load_prompter_(self.teacher.sam.state_dict())
        features = self.features
        if features is None and self.recipe.cache.features:
            features = self.feature_cache(chosen.annotated), chosen.annotated
        cache, images = features or (None, None)
        data = MetaData(
            chosen.index, chosen.classes, chosen.val_episodes, module.model.resize, self.recipe.data.shots,
            part.epoch_length, chosen.ignore_classes, part.absent_prob, part.augment, cache,
            images, part.batch_size, self.recipe.num_workers, self.recipe.seed, chosen.class_weights,
        )  # fmt: skip
        strips: list[Callback] = []
        if chosen.val_episodes is not None:
            strips.append(EpisodeStrips(chosen.index, chosen.val_episodes, self.folder / "train" / "images"))
        trained = self.fit("train", module, data, part.epochs, strips)
        absence = PresenceData(
            chosen.index, chosen.classes, chosen.val_classes, self.recipe.data.shots, chosen.ignore_classes, features,
            self.recipe.seed, chosen.val_index,
        )  # fmt: skip
        return presence_stage(
            trained, self.folder / "presence", absence, self.recipe.presence.episodes, part.batch_size,
            self.recipe.num_workers, self.trainer("presence").strategy.root_device,
        )  # fmt: skip

    def fit(
        self, stage: str, module: LightningModule, data: LightningDataModule, epochs: int, callbacks: list[Callback]
    ) -> Path:
        """Train a stage, or go on with it; its best checkpoint, or the last where nothing picks one."""
        folder = self.folder / stage / "checkpoints"
        done = self.folder / stage / "done"
        if not done.is_file():
            trainer = self.trainer(
                stage, "episodes" if stage == "train" else "images", max_epochs=epochs,
                reload_dataloaders_every_n_epochs=1, enable_checkpointing=True, gradient_clip_val=1.0,
                logger=self.loggers(stage),
                callbacks=[
                    Throughput(), StepSeed(self.recipe.seed), *callbacks,
                    *checkpoints(folder, "val/miou" if stage == "train" else None),
                ],
            )  # fmt: skip
            last = folder / LAST
            trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=True)
            done.write_text("finished\n")
        best = folder / BEST
        return best if best.is_file() else folder / LAST

    def export(self, model: FewShotSegmenter, results: dict[str, float | str]) -> Path:
        """Write the trained segmenter where `fsdino.load` opens it."""
        return save_pretrained(model, self.folder / "export", results=results)

    def log_results(self, results: dict[str, float | str], sheet: Path, folder: Path) -> None:
        """Send scores, strips and the exported model to W&B, where it follows the run."""
        if self.recipe.log.wandb == "off":
            return
        loggers = self.loggers("train")
        for logger in loggers[1:]:
            logger.log_metrics({f"test/{key.replace(' ', '_')}": float(value) for key, value in results.items()})
        log_image(loggers, "test/strips", sheet)
        log_model(loggers, folder, self.recipe.name)
        for logger in loggers[1:]:
            logger.finalize("success")

    def timed(self, stage: str, run: Callable[[], Any]) -> Any:
        """Run a stage and note its seconds."""
        started = time.perf_counter()
        result = run()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        return result


def checkpoints(folder: Path, monitor: str | None) -> list[ModelCheckpoint]:
    """The last epoch always, to resume from; the best on held-out base classes where there is something to watch.

    The best comes first: what a run goes on from then knows of it, whenever the run is killed.
    """
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    last = ModelCheckpoint(folder, filename="last", save_top_k=1, **options)
    if monitor is None:
        return [last]
    return [ModelCheckpoint(folder, filename="best", monitor=monitor, mode="max", **options), last]


def start_from(model: FewShotSegmenter, distilled: Path | None, sam_state: dict[str, Any] | None) -> None:
    """First weights of stage 2: the distilled adapter, and the teacher's decoder.

    Args:
        model: receives the weights.
        distilled: checkpoint of stage 1; None leaves the adapter as it is.
        sam_state: the teacher's state dict; None leaves the decoder as it is.

    Raises:
        ValueError: if the checkpoint has no adapter of this size.
    """
    if sam_state is not None:
        model.load_sam_(sam_state)
    if distilled is None:
        return
    state = torch.load(distilled, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "model.adapter."
    adapter = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    try:
        model.adapter.load_state_dict(adapter)
    except RuntimeError as error:
        raise ValueError(
            f"{distilled} has no adapter that fits this model; distill with the same recipe. {error}"
        ) from error
