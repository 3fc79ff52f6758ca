"""Embeddings of an image list, computed once through Lightning's predict loop and read back memory-mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from fsdino.base.digest import file_sha256
from fsdino.base.resize import Resize
from fsdino.cache.image_list import ImageData, ImageList
from fsdino.cache.shards import CacheRecipe, ShardStore, read_manifest, shard_bytes, shard_path
from fsdino.models.encoder import FeatureEncoder


class EmbeddingSource(Protocol):
    """Anything frozen that turns images into rows of a cache; `SamTeacher` is one."""

    name: str

    @property
    def img_size(self) -> int:
        """Side of the images it wants, in pixels."""

    @property
    def fingerprint(self) -> str:
        """sha256 over its weights and sizes."""

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """Shape of one image's embedding."""

    def to(self, device: torch.device | str) -> EmbeddingSource:
        """Moves it."""

    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) float in [0, 1] -> (N, *entry_shape)."""


class FrozenTaps:
    """The maps of a frozen encoder as a cache source, so that episodes can be trained without running it again.

    Args:
        encoder: the encoder; rows are its taps stacked, (L, C, h, w).
        img_size: side of the images in pixels; None = the encoder's own.
        name: how manifests call it.
    """

    def __init__(self, encoder: FeatureEncoder, img_size: int | None = None, name: str = "encoder") -> None:
        self.encoder, self.name = encoder, name
        self.img_size = img_size or encoder.img_size
        encoder.check_size(self.img_size)

    @property
    def fingerprint(self) -> str:
        """sha256 over the taps and all weights."""
        digest = hashlib.sha256(repr(tuple(self.encoder.taps)).encode())
        for key, value in sorted(self.encoder.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """(L, C, h, w)."""
        grid = self.img_size // self.encoder.patch_size
        return (len(self.encoder.taps), self.encoder.dim, grid, grid)

    def to(self, device: torch.device | str) -> FrozenTaps:
        """Moves the encoder."""
        self.encoder.to(device)
        return self

    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) float in [0, 1] -> (N, L, C, h, w)."""
        return torch.stack(self.encoder(images), dim=1)


def cache_recipe(
    source: EmbeddingSource,
    images: ImageList,
    resize_mode: str = "squash",
    views: tuple[str, ...] = ("plain",),
    shard_size: int = 512,
    precision: str = "32-true",
) -> CacheRecipe:
    """What a cache of an image list must say in its manifest.

    Args:
        source: the frozen network.
        images: the list.
        resize_mode: how images become square.
        views: "plain", optionally also "hflip".
        shard_size: images in a shard.
        precision: Lightning's precision that the network runs in.

    Returns:
        The recipe.

    Raises:
        ValueError: for an unknown view.
    """
    for view in views:
        if view not in ("plain", "hflip"):
            raise ValueError(f"unknown view {view!r}; use 'plain' and 'hflip'.")
    return CacheRecipe(
        source=source.name,
        fingerprint=source.fingerprint,
        images=images.name,
        images_sha256=images.sha256,
        num_images=len(images),
        img_size=source.img_size,
        resize_mode=resize_mode,
        views=tuple(views),
        entry_shape=(len(views), *source.entry_shape),
        shard_size=shard_size,
        precision=precision,
    )


class EmbeddingCache:
    """A finished cache, read by memory mapping; cheap to send to worker processes.

    Args:
        folder: the cache.
        expected: refuse a cache that was made with another recipe; None takes any.
        verify: read every shard once and compare its digest (about a second per gigabyte); sizes are always checked.

    Raises:
        FileNotFoundError: if there is no cache or a shard is gone.
        ValueError: if it is unfinished, made with another recipe, or a shard is damaged.
    """

    def __init__(self, folder: str | Path, expected: CacheRecipe | None = None, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.recipe, shards = read_manifest(folder)
        if expected is not None:
            self.recipe.check_same(expected, self.folder)
        if len(shards) < self.recipe.num_shards:
            raise ValueError(f"cache {folder} is unfinished; run the same `fsdino cache` command again, it goes on.")
        for shard in range(self.recipe.num_shards):
            self._check(shard, shards, verify)
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.recipe.num_images

    def __getitem__(self, index: int) -> Tensor:
        """(C, h, w) float16 of the plain image at a place of the list."""
        return self.view(index, "plain")

    def view(self, index: int, view: str) -> Tensor:
        """One view of one image.

        Args:
            index: place in the image list.
            view: "plain" or "hflip".

        Returns:
            The source's embedding, float16.

        Raises:
            IndexError: if the list is shorter.
            ValueError: if the cache does not hold that view.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} is outside the cache's {len(self)} images.")
        if view not in self.recipe.views:
            raise ValueError(f"cache {self.folder} holds the views {self.recipe.views}, not {view!r}; cache it again.")
        shard, row = divmod(index, self.recipe.shard_size)
        if shard not in self._maps:
            self._maps[shard] = np.load(shard_path(self.folder, shard), mmap_mode="r")
        return torch.from_numpy(self._maps[shard][row, self.recipe.views.index(view)].copy())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a memory map would be pickled with all its numbers

    def _check(self, shard: int, shards: dict[str, str], verify: bool) -> None:
        path = shard_path(self.folder, shard)
        if not path.is_file():
            raise FileNotFoundError(f"cache shard {path} is gone; run the same `fsdino cache` command again.")
        advice = f"delete {path.name} and {path.stem}.json and run `fsdino cache` again."
        got_bytes, expected = path.stat().st_size, shard_bytes(self.recipe, shard)
        if got_bytes != expected:
            raise ValueError(f"cache shard {path} is damaged: {got_bytes} bytes, expected {expected}; {advice}")
        if verify and (got := file_sha256(path)) != shards[path.name]:
            raise ValueError(f"cache shard {path} is damaged: sha256 {got}, expected {shards[path.name]}; {advice}")


class CacheModule(LightningModule):
    """The predict step of a cache; the source is no `nn.Module`, so it stays outside of this one.

    Args:
        source: the frozen network.
        views: what to embed of each image.
    """

    def __init__(self, source: EmbeddingSource, views: tuple[str, ...] = ("plain",)) -> None:
        super().__init__()
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
    """The images that this process still has to embed.

    Args:
        images: the list.
        store: the cache being written.
        batch_size: images a step.
        num_workers: loader processes.
    """

    def __init__(self, images: ImageList, store: ShardStore, batch_size: int = 8, num_workers: int = 0) -> None:
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
    """Every item in order. Lightning splits a loader among its devices unless the sampler is a distributed one;
    here each process has a data set of its own already."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.dataset)))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


class CacheWriter(BasePredictionWriter):
    """Puts every predicted batch into the store.

    Args:
        store: the cache being written.
    """

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
    folder: str | Path,
    trainer: Trainer | None = None,
    resize_mode: str = "squash",
    views: tuple[str, ...] = ("plain",),
    batch_size: int = 8,
    num_workers: int = 0,
    shard_size: int = 512,
) -> EmbeddingCache:
    """Makes a cache, or goes on with one, or finds it done.

    Args:
        source: the frozen network.
        images: the list.
        folder: the cache.
        trainer: Lightning's trainer; each of its devices writes whole shards of its own. None = one process on the CPU.
        resize_mode: how images become square.
        views: "plain", optionally also "hflip".
        batch_size: images a step and device.
        num_workers: loader processes a device.
        shard_size: images in a shard; a cache that exists keeps its own.

    Returns:
        The finished cache.

    Raises:
        ValueError: if the folder holds a cache with another recipe or a damaged shard, or an embedding is not finite.
    """
    trainer = trainer or Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    recipe = cache_recipe(source, images, resize_mode, views, shard_size, str(trainer.precision))
    with only_writer(Path(folder), trainer):
        store = ShardStore(folder, recipe)
        found = store.is_finished
        if not found:
            trainer.callbacks.append(CacheWriter(store))  # type: ignore[attr-defined]
            data = CacheData(images, store, batch_size, num_workers)
            trainer.predict(CacheModule(source, recipe.views), data, return_predictions=False)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                store.finalize()
            trainer.strategy.barrier()
        return EmbeddingCache(folder, expected=recipe, verify=found)


@contextmanager
def only_writer(folder: Path, trainer: Trainer) -> Iterator[None]:
    """Let runs that share a folder write it one after the other: the second waits, then finds it done.

    The processes of one distributed run write together, so they take no lock.

    Args:
        folder: what they share; made when missing.
        trainer: of the run that writes.
    """
    if trainer.num_devices * trainer.num_nodes > 1:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
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
