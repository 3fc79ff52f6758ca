"""Stage 0: a promptable SAM of the run's own, from class-agnostic regions and from the masks of classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from lightning import Trainer
from safetensors.torch import load_file

from fsdino.base.bundled import bundled_file
from fsdino.base.digest import file_sha256
from fsdino.base.processes import write_once
from fsdino.base.resize import Resize, ResizeMode
from fsdino.data.splits import TrainSet
from fsdino.teachers.architecture import SamConfig, load_prompting_, load_vit_
from fsdino.teachers.sam import SamTeacher, save_sam
from fsdino.training.fit import Fitter
from fsdino.training.teacher import TeachModule, TeachPart
from fsdino.training.teacher_data import ClassObjects, ObjectData, ObjectSource, RegionObjects


def own_teacher(
    part: TeachPart, chosen: TrainSet, fitter: Fitter, *, shared: Path, resize_mode: ResizeMode, num_workers: int = 0
) -> Path:
    """Train a run's teacher on base classes and regions, or find it trained; its file, in SAM's format.

    `shared` is the folder for what runs share.

    Raises:
        ValueError: if there is nothing to learn from.
    """
    regions = [RegionObjects(root) for root in part.regions]
    train = partial(_train, resize_mode=resize_mode, num_workers=num_workers)
    # Regions know no class and so no fold: what is learnt from them alone comes first, and runs share it.
    start = None
    if part.region_epochs > 0:
        folder = shared / f"teacher-regions-{_region_digest(part, regions, fitter, resize_mode)}"
        with _only_one(folder, fitter.trainer("teach")):
            start = train(replace(part, epochs=part.region_epochs), regions, replace(fitter, folder=folder))
    bases = (*chosen.classes, *chosen.val_classes)
    objects = [ClassObjects(chosen.index, bases, tuple(chosen.ignore_classes))] if part.objects else []
    return train(part, [*objects, *regions], fitter, start)


def _region_digest(part: TeachPart, regions: Sequence[RegionObjects], fitter: Fitter, mode: ResizeMode) -> str:
    """Twelve digits of everything that decides a training on regions alone."""
    # Files count by their content, wherever they lie.
    told = asdict(part)
    for key in ("vit", "prompting"):
        if told[key] not in (None, "tiny"):
            told[key] = file_sha256(told[key])
    # What follows after the regions, and where they lie, is not part of what is learnt from them.
    told = {key: value for key, value in told.items() if key not in ("objects", "epochs", "regions")}
    sizes = [[(path.name, path.stat().st_size) for path in source.files] for source in regions]
    settled = [told, sizes, fitter.seed, mode, fitter.options]
    return hashlib.sha256(json.dumps(settled, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _train(
    part: TeachPart,
    sources: Sequence[ObjectSource],
    fitter: Fitter,
    start: Path | None = None,
    *,
    resize_mode: ResizeMode,
    num_workers: int,
) -> Path:
    """One training, from a teacher's file or from what the recipe names."""
    file = fitter.folder / "teach" / "sam.safetensors"
    if file.is_file():
        return file
    if not sources:
        raise ValueError("the teacher has no masks to learn from; name folders of regions in teach.regions.")
    module = TeachModule(SamConfig(**part.sam), lr=part.lr, optimizer=part.optimizer, seed=fitter.seed)
    if start is not None:
        module.sam.load_state_dict(SamTeacher.from_checkpoint(start).sam.state_dict())
    else:
        if part.vit is not None:
            load_vit_(module.sam, load_file(part.vit))
        if part.prompting is not None:
            tiny = part.prompting == "tiny"
            load_prompting_(module.sam, load_file(bundled_file("tiny_sam") if tiny else part.prompting))
    data = ObjectData(sources, Resize(module.config.img_size, resize_mode), part, num_workers, fitter.seed)
    # The file is written after the last epoch alone, so that one that lies there is a whole teacher.
    trained = fitter.fit("teach", module, data, part.epochs)
    module.load_state_dict(torch.load(trained, map_location="cpu", weights_only=True)["state_dict"])
    write_once(lambda: save_sam(module.sam, module.config, file))
    return file


@contextmanager
def _only_one(folder: Path, trainer: Trainer) -> Iterator[None]:
    """Let runs that share a teacher train it one after the other: the second waits, then finds it done."""
    # The processes of one distributed run train together, so they take no lock.
    if trainer.num_devices * trainer.num_nodes > 1:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # The system frees the lock when its process dies, so no kill leaves it behind.
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that trains {folder}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
