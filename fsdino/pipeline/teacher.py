"""Stage 0 of a job: a promptable SAM of the run's own, from class-agnostic regions and from the masks of classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from fsdino.base.bundled import bundled_file
from fsdino.base.digest import file_sha256
from fsdino.base.processes import write_once
from fsdino.base.resize import Resize
from fsdino.cache.cache import only_writer
from fsdino.teachers.architecture import SamConfig, load_prompting_, load_vit_
from fsdino.teachers.sam import SamTeacher, save_sam
from fsdino.training.teacher import TeachModule
from fsdino.training.teacher_data import ClassObjects, ObjectData, ObjectSource, RegionObjects

if TYPE_CHECKING:
    from fsdino.pipeline.run import Job


def teach(job: Job) -> Path:
    """Train the teacher of a job's recipe, or find it trained.

    Regions know no class and so no fold: what is learnt from them alone, where the recipe wants that first, lies beside
    the caches for every run that shares it.

    Args:
        job: whose folder gets the teacher.

    Returns:
        Its file, in SAM's format.

    Raises:
        ValueError: if there is nothing to learn from.
    """
    part, chosen = job.recipe.teach, job.train_set
    regions = [RegionObjects(root) for root in part.regions]
    start = None
    if part.region_epochs > 0:
        shared = replace(job, folder=Path(job.recipe.cache.dir) / f"teacher-regions-{_region_digest(job, regions)}")
        with only_writer(shared.folder, job.trainer("teach")):
            start = _train(shared, regions, part.region_epochs, None)
    bases = (*chosen.classes, *chosen.val_classes)
    objects = [ClassObjects(chosen.index, bases, tuple(chosen.ignore_classes))] if part.objects else []
    return _train(job, [*objects, *regions], part.epochs, start)


def _region_digest(job: Job, regions: Sequence[RegionObjects]) -> str:
    """Twelve digits of everything that decides a training on regions alone."""
    part = asdict(job.recipe.teach)
    for key in ("vit", "prompting"):
        if part[key] not in (None, "tiny"):
            part[key] = file_sha256(part[key])
    part = {key: value for key, value in part.items() if key not in ("objects", "epochs", "regions")}
    sizes = [[(path.name, path.stat().st_size) for path in source.files] for source in regions]
    settled = [part, sizes, job.recipe.seed, job.recipe.segmenter().resize_mode, job.trainer_options]
    return hashlib.sha256(json.dumps(settled, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _train(job: Job, sources: Sequence[ObjectSource], epochs: int, start: Path | None) -> Path:
    """One training, from a teacher's file or from what the recipe names."""
    part, file = job.recipe.teach, job.folder / "teach" / "sam.safetensors"
    if file.is_file():
        return file
    if not sources:
        raise ValueError("the teacher has no masks to learn from; name folders of regions in teach.regions.")
    module = TeachModule(SamConfig(**part.sam), lr=part.lr, optimizer=part.optimizer, seed=job.recipe.seed)
    if start is not None:
        module.sam.load_state_dict(SamTeacher.from_checkpoint(start).sam.state_dict())
    else:
        if part.vit is not None:
            load_vit_(module.sam, load_file(part.vit))
        if part.prompting is not None:
            tiny = part.prompting == "tiny"
            load_prompting_(module.sam, load_file(bundled_file("tiny_sam") if tiny else part.prompting))
    data = ObjectData(
        sources, Resize(module.config.img_size, job.recipe.segmenter().resize_mode), part.epoch_length,
        max_objects=part.max_objects, batch_size=part.batch_size, num_workers=job.recipe.num_workers,
        seed=job.recipe.seed,
    )  # fmt: skip
    trained = job.fit("teach", module, data, epochs, [])
    module.load_state_dict(torch.load(trained, map_location="cpu", weights_only=True)["state_dict"])
    write_once(lambda: save_sam(module.sam, module.config, file))
    return file
