"""A recipe from end to end: cache, distill coarse to fine, train on episodes, learn absence and drawing, export.

Each stage looks for what it has already finished and goes on from there, so the same command after an interruption
continues and ends with the same weights. Stages 0 (a teacher of the run's own), 1 (distillation), 3 (absence) and 4
(drawing) are FS-DINO's; other methods have stage 2 alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsdino.base import registry, storage
from fsdino.base.bundled import bundled_file
from fsdino.base.memory import image_tensor
from fsdino.base.method import FewShotMethod
from fsdino.base.resize import ResizeMode
from fsdino.cache.cache import EmbeddingCache
from fsdino.cache.image_list import ImageList
from fsdino.data.splits import TestSet, TrainSet, open_test, open_train
from fsdino.models.config import preset
from fsdino.pipeline.recipe import Recipe
from fsdino.pipeline.teacher import own_teacher
from fsdino.teachers.sam import SamTeacher
from fsdino.training.cache_writer import OnGrid, write_cache
from fsdino.training.callbacks import EpisodeStrips
from fsdino.training.distill import DistillModule
from fsdino.training.distill_data import DistillData
from fsdino.training.drawing import DrawData, DrawModule
from fsdino.training.episode_data import CachedMaps, EpisodeDataModule
from fsdino.training.episodes import EpisodeModule
from fsdino.training.fit import Fitter
from fsdino.training.loggers import log_image, log_model
from fsdino.training.presence import PresenceData, presence_stage

CENTRED_BY = 64  # images at most, evenly spread


@dataclass
class Run:
    """One run of a recipe; `given_maps` are maps of the frozen encoder that are there already."""

    recipe: Recipe
    trainer_options: dict[str, Any]
    folder: Path
    given_maps: CachedMaps | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def test(self) -> TestSet:
        """The test set, opened once."""
        return open_test(self.recipe.data)

    @cached_property
    def train_set(self) -> TrainSet:
        """The training set, opened once."""
        return open_train(self.recipe.data, self.test, self.recipe.seed)

    @cached_property
    def fitter(self) -> Fitter:
        """Makes the stages' trainers."""
        recipe = self.recipe
        how: dict[str, Any] = {"log": recipe.log, "seed": recipe.seed, "compute": recipe.compute}
        return Fitter(self.folder, recipe.name, self.trainer_options, config=asdict(recipe), **how)

    @property
    def is_fsdino(self) -> bool:
        """Whether the run has stages 0 and 1."""
        return self.recipe.method.name == "fsdino"

    @property
    def new_model(self) -> bool:
        """Whether the run starts from new weights, not from a trained model."""
        return self.recipe.train.init_from is None

    def build(self) -> FewShotMethod:
        """The untrained method of the recipe, its new weights drawn from the recipe's seed; or the one to adapt."""
        name, first = self.recipe.method.name, self.recipe.train.init_from
        if first is not None:
            return storage.load(first, method=name)
        # Weights follow the seed whatever was drawn before, so that every stage builds the same network.
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            return registry.build(name, **self.recipe.arguments())

    # ---- what frozen networks compute, written once

    def cache(self) -> None:
        """Write the teacher's embeddings and the method's frozen maps, where the recipe wants them."""
        if self.recipe.cache.teacher and self.recipe.distills:
            self.teacher_cache()
        if self.recipe.cache.features:
            self.maps(self.build(), self.train_set.annotated)

    def teacher_cache(self) -> EmbeddingCache:
        """The teacher's embeddings of all images of distillation."""
        part = self.recipe.cache
        return write_cache(
            OnGrid(self.teacher, part.stored_grid(self.teacher.grid)),
            self.train_set.images,
            part,
            kind="teacher",
            trainer=self.fitter.trainer("cache teacher"),
            resize_mode=self.resize_mode,
            views=part.views,
            num_workers=self.recipe.num_workers,
        )

    def maps(self, method: FewShotMethod, images: ImageList) -> CachedMaps | None:
        """The method's frozen maps of an image list; None where the recipe wants or the method has none."""
        part, source = self.recipe.cache, method.frozen_maps()
        if not part.features or source is None:
            return None
        cache = write_cache(
            source,
            images,
            part,
            kind=source.name,
            trainer=self.fitter.trainer(f"cache {source.name}"),
            resize_mode=method.resize.mode,
            views=part.views if source.in_place_of_images else ("plain",),
            num_workers=self.recipe.num_workers,
        )
        return CachedMaps(cache, images, source.in_place_of_images)

    # ---- stages 0 and 1

    @property
    def resize_mode(self) -> ResizeMode:
        """How FS-DINO brings images to a square, and so the teacher as well."""
        return preset(self.recipe.preset, **self.recipe.model).resize_mode

    @cached_property
    def teacher(self) -> SamTeacher:
        """The teacher, loaded once; trained first (stage 0) where it is the run's own."""
        part, recipe = self.recipe.teacher, self.recipe
        file: str | Path = part.checkpoint
        if part.checkpoint == "tiny":
            file = bundled_file("tiny_sam")
        elif part.checkpoint == "own":
            file = own_teacher(
                recipe.teach,
                self.train_set,
                self.fitter,
                shared=Path(recipe.cache.dir),
                resize_mode=self.resize_mode,
                num_workers=recipe.num_workers,
            )
        return SamTeacher.from_checkpoint(file, part.sha256).run_as(part.bf16, part.compile)

    def distill(self) -> Path | None:
        """Stage 1; the checkpoint, or None where there is no such stage."""
        if not self.recipe.distills:
            return None
        recipe, part = self.recipe, self.recipe.distill
        # A cache holds all that the embedding loss needs; the mask loss asks the teacher's decoder in every step.
        live = not recipe.cache.teacher
        model: Any = self.build()  # FS-DINO, since the recipe distills
        teacher = self.teacher if live or part.mask_weight > 0 else None
        module = DistillModule(model, part, teacher, recipe.seed)
        data = DistillData(
            self.train_set.images,
            part,
            cache=None if live else self.teacher_cache(),
            teacher_size=self.teacher.img_size if live else None,
            resize_mode=self.resize_mode,
            hflip=recipe.cache.hflip,
            num_workers=recipe.num_workers,
            prefetch=recipe.prefetch,
            seed=recipe.seed,
        )
        return self.fitter.fit("distill", module, data, part.epochs)

    # ---- stages 2 to 4

    def train(self, distilled: Path | None = None) -> Path:
        """Stages 2 to 4, from a distilled checkpoint or from new weights; the best checkpoint."""
        recipe, part, chosen = self.recipe, self.recipe.train, self.train_set
        model = self.build()
        # Before the teacher's weights come in: the maps are of the frozen encoder, which they do not touch.
        maps = self.given_maps or self.maps(model, chosen.annotated)
        if self.is_fsdino and self.new_model:
            self.start(model, distilled)
        data = EpisodeDataModule(
            chosen,
            part,
            model.resize,
            shots=recipe.data.shots,
            maps=maps,
            num_workers=recipe.num_workers,
            prefetch=recipe.prefetch,
            seed=recipe.seed,
        )
        # Without held-out classes there is nothing to draw, and the last epoch is the best.
        strips = []
        if chosen.val_episodes is not None:
            strips.append(EpisodeStrips(chosen.val_index, chosen.val_episodes, self.folder / "train" / "images"))
        trained = self.fitter.fit(
            "train",
            EpisodeModule(model, chosen.val_classes, part),
            data,
            part.epochs,
            unit="episodes",
            monitor="val/miou",
            callbacks=strips,
        )
        if model.learns_absence:
            trained = self.learn_absence(trained, maps)
        return self.learn_drawing(storage.load(trained), maps) if recipe.draws else trained

    def start(self, model: Any, distilled: Path | None) -> None:
        """What FS-DINO's stage 2 starts with: distilled adapter, the teacher's decoder and prompted half, means.

        Raises:
            ValueError: if the checkpoint has no adapter of this size.
        """
        if self.recipe.train.sam_decoder:
            model.load_sam_(self.teacher.sam.state_dict())
        elif model.takes_clicks:
            model.load_prompter_(self.teacher.sam.state_dict())
        if model.config.centred:
            model.compared.fit_(model.encoder.mean_features(self.centring(model)))
        if distilled is None:
            return
        prefix, state = f"{storage.MODEL_PREFIX}adapter.", storage.read_checkpoint(distilled)["state_dict"]
        adapter = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        try:
            model.adapter.load_state_dict(adapter)
        except RuntimeError as error:
            raise ValueError(
                f"{distilled} has no adapter that fits this model; distill with the same recipe. {error}"
            ) from error

    def centring(self, method: FewShotMethod) -> Iterator[Tensor]:
        """The images that features are centred by, (3, S, S) float in [0, 1]; of training, without their labels."""
        images = self.train_set.annotated
        for name in images.ids[:: -(-len(images) // CENTRED_BY)]:
            yield method.resize.image(image_tensor(images.load_image(name)))

    def learn_absence(self, trained: Path, maps: CachedMaps | None) -> Path:
        """Stage 3: the checkpoint of stage 2 with a presence head that has seen absent objects."""
        recipe = self.recipe
        return presence_stage(
            trained,
            self.folder / "presence",
            PresenceData(self.train_set, recipe.data.shots, maps, recipe.seed),
            recipe.presence,
            batch_size=recipe.train.batch_size,
            num_workers=recipe.num_workers,
            device=self.fitter.trainer("presence").strategy.root_device,
        )

    def learn_drawing(self, model: Any, maps: CachedMaps | None) -> Path:
        """Stage 4: the checkpoint of a promptable model, which is changed, that has learnt to draw."""
        recipe, part = self.recipe, self.recipe.draw
        data = DrawData(
            self.train_set,
            part,
            model.resize,
            maps=maps,
            num_workers=recipe.num_workers,
            prefetch=recipe.prefetch,
            seed=recipe.seed,
        )
        return self.fitter.fit("draw", DrawModule(model, part, recipe.seed), data, part.epochs)

    def export(self, model: FewShotMethod, results: Mapping[str, float | str] | None = None) -> Path:
        """Write the trained method where `fsdino.load` opens it."""
        return storage.save(model, self.folder / "export", results=results)

    # ---- around the stages

    def timed(self, stage: str, run: Callable[[], Any]) -> Any:
        """Run a stage and note its seconds."""
        started = time.perf_counter()
        result = run()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        return result

    def log_results(self, results: Mapping[str, float | str], sheet: Path, folder: Path) -> None:
        """Send scores, strips and the exported model to W&B, where it follows the run."""
        if self.recipe.log.wandb == "off":
            return
        loggers = self.fitter.loggers("train")
        # Not the first, metrics.csv: its rows are the steps of training, and these scores are of none.
        for logger in loggers[1:]:
            logger.log_metrics({f"test/{key.replace(' ', '_')}": float(value) for key, value in results.items()})
        log_image(loggers, "test/strips", sheet)
        log_model(loggers, folder, self.recipe.name)
        for logger in loggers[1:]:
            logger.finalize("success")
