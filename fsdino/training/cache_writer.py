"""Writing a cache through Lightning's predict loop: each process embeds the shards that it claims."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from fsdino.base.ranges import Batch, Count, check_fields
from fsdino.base.resize import Resize, ResizeMode
from fsdino.cache.append import adopt
from fsdino.cache.cache import EmbeddingCache, EmbeddingSource, cache_recipe
from fsdino.cache.image_list import ImageData, ImageList
from fsdino.cache.store import ShardStore
from fsdino.training.losses import resize_embedding

PAUSE = 0.5  # seconds between two looks at shards that others hold


@dataclass
class CachePart:
    """Caches of frozen networks.

    Args:
        dir: where caches lie; runs with equal recipes share them.
        teacher: write the teacher's embeddings once; False asks the teacher in every step, and needs no room.
        grid: cells a side of the teacher's embeddings as they are stored; None = the teacher's own, 64 for SAM. With
            the student's, image side / patch, they are resized once, when they are written, and not in every step; at
            the smaller sizes of the student they are then resized twice.
        features: write the frozen encoder's maps of the annotated images once, for episode training.
        hflip: also the mirrored images, where maps stand in place of images.
        batch_size: images a step and device.
        shard_size: images in a file, which a process that is killed makes again; a cache that exists keeps its own.
        check_disk: refuse to start a run whose caches the disk cannot hold.
    """

    dir: str = "runs/cache"
    teacher: bool = True
    grid: Count | None = None
    features: bool = True
    hflip: bool = True
    batch_size: Batch = 16
    shard_size: Count = 256
    check_disk: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def views(self) -> tuple[str, ...]:
        """What is embedded of each image."""
        return ("plain", "hflip") if self.hflip else ("plain",)

    def stored_grid(self, own: int) -> int:
        """The grid of the teacher's embeddings in the cache.

        Raises:
            ValueError: if the teacher's own is smaller.
        """
        if self.grid is not None and self.grid > own:
            raise ValueError(f"cache.grid: expected at most the teacher's own {own} cells a side, got {self.grid}.")
        return self.grid or own


@dataclass(frozen=True)
class OnGrid:
    """A source of square maps (N, D, h, h), brought to `grid` cells a side before they are stored."""

    source: EmbeddingSource
    grid: int

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    @property
    def img_size(self) -> int:
        """The source's."""
        return self.source.img_size

    @property
    def fingerprint(self) -> str:
        """The source's: the grid is told by the shape."""
        return self.source.fingerprint

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """Shape of one image's maps, (D, grid, grid)."""
        return (self.source.entry_shape[0], self.grid, self.grid)

    def to(self, device: torch.device | str) -> OnGrid:
        """Moves the source."""
        self.source.to(device)
        return self

    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) float in [0, 1] -> (N, D, grid, grid); as the source gives them where that is its own grid."""
        return resize_embedding(self.source.embed(images), (self.grid, self.grid))


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
    """The images of the shards that this process claims, in batches that are the same whoever claims them."""

    def __init__(self, images: ImageList, store: ShardStore, batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        self.images, self.store, self.batch_size, self.num_workers = images, store, batch_size, num_workers
        # A process may come when the others have claimed everything.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def predict_dataloader(self) -> ClaimedBatches:
        """Batches until the whole cache is written, by this process or by others."""
        return ClaimedBatches(self)


class ClaimedBatches:
    """Batches of claimed shards; the end is where all shards are whole."""

    # No DataLoader itself: Lightning would split one among its devices.
    def __init__(self, data: CacheData) -> None:
        self.data, self.store = data, data.store

    def __len__(self) -> int:
        # At most so many. A length also keeps Lightning from asking for a batch before the last one is done, so that
        # waiting for others below never waits for this process itself.
        shards = map(self.store.recipe.shard_images, self.store.pending())
        return sum(-(-len(images) // self.data.batch_size) for images in shards)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        recipe = self.store.recipe
        images = ImageData(self.data.images, Resize(recipe.img_size, recipe.resize_mode))  # type: ignore[arg-type]
        while True:
            if (first := self.store.claim()) is not None:
                yield from DataLoader(images, batch_sampler=self._places(first), num_workers=self.data.num_workers)
                self.store.settle()
            elif self.store.finish():
                return
            else:
                time.sleep(PAUSE)

    def _places(self, shard: range | None) -> Iterator[list[int]]:
        while shard is not None:
            # No batch holds images of two shards: a network's last bits may depend on the batch, and must not on who
            # claims what.
            for start in range(0, len(shard), self.data.batch_size):
                yield list(shard[start : start + self.data.batch_size])
            shard = self.store.claim()


class CacheWriter(Callback):
    """Hands every predicted batch to the store."""

    def __init__(self, store: ShardStore) -> None:
        self.store = store

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Puts the rows of one batch; the store's thread takes them from the device."""
        self.store.put(batch["index"].tolist(), outputs.half())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the thread."""
        self.store.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets go of the shards that this process has claimed, so that others need not wait."""
        self.store.abandon()


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
    """Makes a cache, or goes on with one, or finds it done; runs of equal recipes fill one folder together.

    Args:
        kind: start of the folder's name, which goes on with a digest of everything that decides the maps. From caches
            of the first images of the list beside it the full shards are taken over.
        folder: the cache itself, in place of one below `part.dir`.
        trainer: Lightning's trainer; each of its devices claims shards of its own. None = one process on the CPU.
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
    if kind:
        adopt(Path(folder), recipe, images, Path(folder).parent.glob(f"{kind}-*"))
    store = ShardStore(folder, recipe)
    if not store.finish():
        trainer.callbacks.append(CacheWriter(store))  # type: ignore[attr-defined]
        data = CacheData(images, store, part.batch_size, num_workers)
        trainer.predict(CacheModule(source, recipe.views), data, return_predictions=False)
        # Where another run has made the last shard before this one looked, nobody here has come to the end.
        store.finish()
    return EmbeddingCache(folder, expected=recipe, written=store.written)
