"""What a recipe will need, from tensors without memory: sizes of caches, parameters, arithmetic, activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fsdino.base import registry, storage
from fsdino.base.method import FewShotMethod
from fsdino.cache.shards import CacheRecipe, cache_bytes
from fsdino.methods.sam2.sizes import SIZES
from fsdino.models.clicks import prompter
from fsdino.pipeline.recipe import Recipe
from fsdino.teachers.architecture import SAM_CONFIGS, SamConfig, build_sam
from fsdino.teachers.sam import SamTeacher
from fsdino.training.drawing import DrawModule
from fsdino.training.episodes import EpisodeModule

FLOAT, ADAM = 4, 8  # bytes of a parameter, and of the optimiser's two averages of it
META = torch.device("meta")  # tensors with a shape and nothing else


@dataclass(frozen=True)
class CacheNeed:
    """A cache of a frozen network.

    Args:
        kind: start of its folder's name.
        count: images; None where they are not known.
        entry_shape: of one image, the views first.
    """

    kind: str
    count: int | None
    entry_shape: tuple[int, ...]
    views: tuple[str, ...]
    shard_size: int

    def bytes(self, count: int) -> int:
        """Size on disk for so many images, to the byte."""
        about = {"source": "", "fingerprint": "", "images": "", "images_sha256": "", "img_size": 1, "resize_mode": ""}
        return cache_bytes(
            CacheRecipe(
                **about,  # type: ignore[arg-type]
                num_images=count,
                views=self.views,
                entry_shape=self.entry_shape,
                shard_size=self.shard_size,
            )
        )

    def formula(self) -> str:
        """How `bytes` comes about."""
        return " x ".join(
            [f"{self.count:,} images" if self.count else "images", *map(str, self.entry_shape), "2 bytes"]
        )


@dataclass(frozen=True)
class Stage:
    """Arithmetic of one stage: so many times `flops`, and the bytes that a step holds."""

    name: str
    times: int | None
    flops: float
    memory: float


@dataclass(frozen=True)
class Step:
    """One forward and backward pass: operations, of them the forward ones, and bytes kept for the way back."""

    flops: float
    forward: float
    saved: int


class Needs:
    """What a recipe needs.

    Args:
        images: images of distillation, None where unknown.
        annotated: annotated images, None where unknown.
    """

    def __init__(self, recipe: Recipe, images: int | None, annotated: int | None) -> None:
        self.recipe, self.images, self.annotated = recipe, images, annotated

    @cached_property
    def method(self) -> FewShotMethod:
        """The recipe's method, without weights, with what learns in episodes."""
        return EpisodeModule(untrained(self.recipe), part=self.recipe.train).model

    @cached_property
    def teacher(self) -> SamConfig:
        """The teacher's sizes."""
        name, teach = self.recipe.teacher.checkpoint, self.recipe.teach
        if name == "own":
            return SamConfig(**teach.sam)
        if name in SAM_CONFIGS:
            return SAM_CONFIGS[name]
        if not Path(name).is_file():
            raise ValueError(f"the sizes of the teacher '{name}' are unknown until the file is here; fetch it first.")
        return SamTeacher.from_checkpoint(name).config

    @cached_property
    def caches(self) -> list[CacheNeed]:
        """The caches that the run writes."""
        part = self.recipe.cache
        found: list[CacheNeed] = []
        shape: tuple[int, ...]
        if part.teacher and self.recipe.distills:
            sam, grid = self.teacher, part.stored_grid(self.teacher.grid)
            shape = (len(part.views), sam.prompt_dim, grid, grid)
            found.append(CacheNeed("teacher", self.images, shape, part.views, part.shard_size))
        source = self.method.frozen_maps()
        if part.features and source is not None:
            views = part.views if source.in_place_of_images else ("plain",)
            shape = (len(views), *source.entry_shape)
            found.append(CacheNeed(source.name, self.annotated, shape, views, part.shard_size))
        return found

    @cached_property
    def checkpoints(self) -> int:
        """Bytes of the checkpoints and the exported model."""
        whole = FLOAT * count(self.method)
        total = 2 * (whole + ADAM * count(self.method, learning=True)) + 2 * whole
        if self.recipe.distills:
            total += whole + ADAM * count(self.student.adapter)
        if self.recipe.draws:
            drawer = self.drawing.model
            # The exported model has what draws as well.
            total += 2 * FLOAT * count(drawer) - whole + ADAM * count(drawer, learning=True)
        return total

    @cached_property
    def drawing(self) -> DrawModule:
        """FS-DINO that learns to draw."""
        return DrawModule(untrained(self.recipe), self.recipe.draw)  # type: ignore[arg-type]

    @cached_property
    def student(self) -> Any:
        """FS-DINO in distillation."""
        method: Any = untrained(self.recipe)
        return method.select_trainable_("distill")

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages in turn; measuring counts as the forward pass."""
        recipe, found = self.recipe, []
        if self.recipe.distills:
            found += self._distillation()
        shots, episode = recipe.data.shots, self._episode()
        weights, learning = count(self.method), count(self.method, learning=True)
        per_step = FLOAT * weights + (FLOAT + ADAM) * learning + recipe.train.batch_size * episode.saved
        source, cached = self.method.frozen_maps(), 0.0
        if recipe.cache.features and source is not None:
            side = torch.empty(1, 3, source.img_size, source.img_size, device=META)
            encoding = counted(lambda: source.embed(side)).flops
            views = next(need for need in self.caches if need.kind == source.name).entry_shape[0]
            times = None if self.annotated is None else self.annotated * views
            found.append(Stage(f"cache {source.name}", times, encoding, FLOAT * weights))
            # Maps that are read from the cache are not computed again.
            cached = encoding * (shots + 1)
        episodes = recipe.train.epochs * recipe.train.epoch_length
        found.append(Stage("train", episodes, max(episode.flops - cached, episode.forward * 0.01), per_step))
        if recipe.draws:
            found.append(self._drawing(recipe.cache.features))
        looked_at = recipe.data.test_episodes + recipe.data.val_episodes * recipe.train.epochs
        found.append(Stage("validate and evaluate", looked_at, episode.forward, FLOAT * weights))
        return found

    def _distillation(self) -> list[Stage]:
        recipe, sam = self.recipe, self.teacher
        with META:
            network = build_sam(sam)
        side = torch.empty(1, 3, sam.img_size, sam.img_size, device=META)
        with torch.no_grad():
            embedding = counted(lambda: network.image_encoder(side)).flops
        part, weights = recipe.distill, FLOAT * count(network)
        # SAM's global blocks write their attention out, and its softmax beside it.
        attention = 2 * FLOAT * sam.num_heads * sam.grid**4
        found = []
        if recipe.teacher.checkpoint == "own":
            teach = recipe.teach
            epochs = teach.epochs + teach.region_epochs
            # Backward costs about twice as much as forward.
            memory = 4 * weights + teach.batch_size * sam.depth * attention / 2
            found.append(Stage("teach", epochs * teach.epoch_length, 3 * embedding, memory))
        steps = [self._embed(size) for size in part.sizes]
        flops = sum(step.flops for step in steps) / len(steps)
        saved = max(step.saved for step in steps)
        memory = FLOAT * count(self.student) + (FLOAT + ADAM) * count(self.student.adapter) + part.batch_size * saved
        each = part.epoch_length or self.images
        if recipe.cache.teacher:
            times = None if self.images is None else self.images * len(recipe.cache.views)
            found.append(Stage("cache teacher", times, embedding, weights + recipe.cache.batch_size * attention))
        else:
            flops, memory = flops + embedding, memory + weights + part.batch_size * attention
        found.append(Stage("distill", None if each is None else part.epochs * each, flops, memory))
        return found

    def _drawing(self, cached: bool) -> Stage:
        part, module = self.recipe.draw, self.drawing
        model, sam = module.model, prompter(module.model)
        side = torch.empty(1, 3, model.img_size, model.img_size, device=META)

        def predict() -> torch.Tensor:
            seen = module.embed({"image": side})
            prompt = torch.empty(1, 2, model.config.prompt_dim, device=META)
            return torch.stack(
                [sam.mask_decoder(seen, seen, prompt, seen).mask_logits.sum() for _ in range(part.max_objects)]
            ).sum()

        step, encoding = counted(predict), counted(lambda: model.encoder(side)).flops
        memory = FLOAT * count(model) + (FLOAT + ADAM) * count(model, learning=True) + part.batch_size * step.saved
        return Stage("draw", part.epochs * part.epoch_length, step.flops - (encoding if cached else 0.0), memory)

    def _embed(self, size: int) -> Step:
        image = torch.empty(1, 3, size, size, device=META)
        return counted(lambda: self.student.embed(image))

    def _episode(self) -> Step:
        side, shots = self.method.img_size, self.recipe.data.shots
        query, shown = torch.empty(1, 3, side, side, device=META), torch.empty(1, shots, 3, side, side, device=META)
        masks = torch.empty(1, shots, side, side, device=META)

        def predict() -> torch.Tensor:
            output = self.method(query, shown, masks)
            return output.mask_logits.sum() + output.iou_pred.sum() + output.presence_logit.sum()

        step = counted(predict)
        # With several targets the references are segmented as well, in a chain.
        chain = self.recipe.train.num_targets
        return Step(step.flops * chain, step.forward, step.saved * chain)


def untrained(recipe: Recipe) -> FewShotMethod:
    """The recipe's method on the meta device, of the size that its weights have, without them."""
    name, given = recipe.method.name, recipe.arguments()
    args = {key: value for key, value in given.items() if key not in registry.FILE_ARGUMENTS}
    if recipe.train.init_from is not None:
        return storage.load(recipe.train.init_from, method=name).to(META)
    weights = str(given.get("weights", ""))
    if name != "fsdino" and "size" not in args and not Path(weights).is_file():
        # "facebook/sam2-hiera-base-plus" is of the size "base_plus".
        plain = weights.replace("-", "_")
        args["size"] = next((size for size in SIZES if plain.endswith(size)), "mini")
    elif name != "fsdino" and Path(weights).is_file():
        # Only the file knows its size.
        return registry.build(name, **given).to(META)
    with META:
        return registry.build(name, **args)


def count(network: nn.Module, learning: bool = False) -> int:
    """Parameters, all or those that learn."""
    return sum(one.numel() for one in network.parameters() if one.requires_grad or not learning)


def counted(work: Callable[[], Any]) -> Step:
    """One forward pass on meta tensors, and backward where something learns."""
    saved = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        # Parameters are counted elsewhere. A tensor that two operations keep is counted twice: an upper estimate.
        saved += 0 if tensor.is_leaf else tensor.nbytes
        return tensor

    with (
        FlopCounterMode(display=False) as operations,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        result = work()
        forward = operations.get_total_flops()
        if isinstance(result, torch.Tensor) and result.requires_grad:
            result.sum().backward()
    return Step(operations.get_total_flops(), forward, saved)
