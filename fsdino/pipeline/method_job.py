"""A recipe of SANSA or FSSAM from end to end: the stages of `Job` without teacher and distillation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from fsdino.base.method import FewShotMethod
from fsdino.base.registry import build_method, save_method
from fsdino.cache.cache import EmbeddingCache
from fsdino.cache.image_list import ImageList
from fsdino.methods.fssam.method import Fssam
from fsdino.pipeline.run import Job
from fsdino.training.callbacks import EpisodeStrips
from fsdino.training.method_data import FssamMaps, MethodData
from fsdino.training.method_module import MethodModule


class MethodJob(Job):
    """One run of a recipe whose `method` is another system than FS-DINO; takes what `Job` takes."""

    def build(self) -> FewShotMethod:
        """The untrained method of the recipe, its new weights drawn from the recipe's seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            return build_method(self.recipe.method.name, **self.recipe.method_args())

    def cache(self) -> None:
        """Write the maps of FSSAM's frozen encoder, where the recipe wants them; SANSA has none."""
        self.maps(self.build(), self.train_set.annotated)

    def maps(self, method: FewShotMethod, images: ImageList) -> tuple[EmbeddingCache, ImageList] | None:
        """The cached maps of an image list; None where the recipe or the method wants none."""
        if not self.recipe.cache.features or not isinstance(method, Fssam):
            return None
        return self.cached("fssam", FssamMaps(method), images, method.resize.mode, ("plain",)), images

    def distill(self) -> Path | None:
        """There is no stage 1."""
        return None

    def train(self, distilled: Path | None = None) -> Path:
        """Episode training; the best checkpoint on held-out base classes.

        Raises:
            ValueError: for another optimiser than AdamW, which both systems were published with.
        """
        part, chosen, recipe = self.recipe.train, self.train_set, self.recipe
        if part.optimizer != "adamw":
            raise ValueError(f"train.optimizer is {part.optimizer!r}, but {recipe.method.name} trains with 'adamw'.")
        method = self.build()
        options = {key: value for key, value in asdict(recipe.method).items() if key not in ("name", "args")}
        module = MethodModule(method, chosen.val_classes, lr=part.lr, weight_decay=part.weight_decay, **options)
        cache, images = self.maps(method, chosen.annotated) or (None, None)
        data = MethodData(
            chosen.index, chosen.classes, chosen.val_episodes, method.resize,
            recipe.data.shots + recipe.method.num_targets - 1, part.epoch_length, chosen.ignore_classes,
            part.absent_prob, part.augment, cache, images, part.batch_size, recipe.num_workers, recipe.seed,
            chosen.class_weights,
        )  # fmt: skip
        strips: list[Callback] = []
        if chosen.val_episodes is not None:
            strips.append(EpisodeStrips(chosen.index, chosen.val_episodes, self.folder / "train" / "images"))
        return self.fit("train", module, data, part.epochs, strips)

    def export(self, model: FewShotMethod, results: dict[str, float | str]) -> Path:
        """Write the trained method where `fsdino.load` opens it; the results stand in the run's folder."""
        return save_method(model, self.folder / "export")
