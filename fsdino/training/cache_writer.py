"""Writing a cache through Lightning's predict loop: each process embeds whole shards of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from fsdino.base.ranges import Count, check_fields
from fsdino.base.resize import Resize, ResizeMode
from fsdino.cache.cache import EmbeddingCache, EmbeddingSource, cache_recipe
from fsdino.cache.image_list import ImageData, ImageList
from fsdino.cache.shards import ShardStore


@dataclass
class CachePart:
    """Caches of frozen networks.

    Args:
        dir: where caches lie; runs with equal recipes share them.
        teacher: write the teacher's embeddings once; False asks the teacher in every step.
        features: write the frozen encoder's maps of the annotated images once, for episode training.
        hflip: also the mirrored images, where maps stand in place of images.
        batch_size: images a step and device.
        shard_size: images in a file; a cache that exists keeps its own.
        check_disk: refuse to start a run whose caches the disk cannot hold.
    """

    dir: str = "runs/cache"
    teacher: bool = True
    features: bool = True
    hflip: bool = True
    batch_size: Count = 16
    shard_size: Count = 256
    check_disk: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def views(self) -> tuple[str, ...]:
        """What is embedded of each image."""
        return ("plain", "hflip") if self.hflip else ("plain",)


class CacheModule(LightningModule):
    """The predict step of a cache: embeds the wanted views of each image with a frozen network."""

    def __init__(self, source: EmbeddingSource, views: tuple[str, ...] = ("plain",)) -> None:
        super().__init__()
        # The source is not an `nn.Module`, so Lightning neither moves nor stores it: see `on_predict_start`.
        self.source, self.views = source, views

    def on_predict_start(self) -> None:
        """Moves the source to this process's device."""
        self.source.to(self.device)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Rows (N, views, *entry_shape)."""
        images = batch["image"]
        rows = [self.source.embed(images.flip(-1) if view == "hflip" else images) for view in self.views]
        return torch.stack(rows, dim=1)


class CacheData(LightningDataModule):
    """The images that this process still has to embed."""

    def __init__(self, images: ImageList, store: ShardStore, batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        self.images, self.store, self.batch_size, self.num_workers = images, store, batch_size, num_workers

    def predict_dataloader(self) -> DataLoader:
        """Pending images of this rank's shards."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        resize = Resize(self.store.recipe.img_size, self.store.recipe.resize_mode)  # type: ignore[arg-type]
        data = ImageData(self.images, resize, self.store.pending(rank, world_size))
        sampler = _OwnSampler(data, 1, 0)
        return DataLoader(data, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers)


class _OwnSampler(DistributedSampler):
    """Every item in order."""

    # Lightning splits a loader among its devices unless the sampler is a distributed one; here each process has a
    # data set of its own already.
    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.dataset)))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


class CacheWriter(BasePredictionWriter):
    """Puts every predicted batch into the store."""

    def __init__(self, store: ShardStore) -> None:
        super().__init__("batch")
        self.store = store

    def write_on_batch_end(self, trainer: Trainer, pl_module: LightningModule, prediction: Any, *args: Any) -> None:
        """Writes the rows of one batch."""
        batch = args[1]
        self.store.put(batch["index"].tolist(), prediction.float().cpu().numpy())


def write_cache(
    source: EmbeddingSource,
    images: ImageList,
    part: CachePart,
    *,
    kind: str = "",
    folder: str | Path | None = None,
    trainer: Trainer | None = None,
    resize_mode: ResizeMode = "squash",
    views: tuple[str, ...] = ("plain",),
    num_workers: int = 0,
) -> EmbeddingCache:
    """Makes a cache, or goes on with one, or finds it done.

    Args:
        kind: start of the folder's name, which goes on with a digest of everything that decides the maps.
        folder: the cache itself, in place of one below `part.dir`.
        trainer: Lightning's trainer; each of its devices writes whole shards of its own. None = one process on the CPU.
        views: "plain", optionally also "hflip".

    Raises:
        ValueError: if the folder holds a cache with another recipe or a damaged shard, or an embedding is not finite.
    """
    trainer = trainer or Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    recipe = cache_recipe(
        source,
        images,
        resize_mode=resize_mode,
        views=views,
        shard_size=part.shard_size,
        precision=str(trainer.precision),
    )
    if folder is None:
        digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:12]
        folder = Path(part.dir) / f"{kind}-{digest}"
    # Two runs of equal recipes share the folder: the second waits here, and then finds every shard done.
    with only_writer(Path(folder), trainer):
        store = ShardStore(folder, recipe)
        found = store.is_finished
        if not found:
            trainer.callbacks.append(CacheWriter(store))  # type: ignore[attr-defined]
            data = CacheData(images, store, part.batch_size, num_workers)
            trainer.predict(CacheModule(source, recipe.views), data, return_predictions=False)
            # The manifest lists digests of all shards, so the first process writes it after the others' last shard,
            # and nobody opens the cache before it lies there.
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                store.finalize()
            trainer.strategy.barrier()
        # What this run wrote it has hashed a moment ago; what it found may have been damaged since.
        return EmbeddingCache(folder, expected=recipe, verify=found)


@contextmanager
def only_writer(folder: Path, trainer: Trainer) -> Iterator[None]:
    """Let runs that share a folder write it one after the other: the second waits, then finds it done."""
    # The processes of one distributed run write together, each its own shards, so they take no lock.
    if trainer.num_devices * trainer.num_nodes > 1:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # The system frees the lock when its process dies, so no kill leaves it behind.
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that writes {folder}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
