"""Saved memories: a small file that finds the same, that one model reads, and that says when it is damaged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save_file

from fsdino.base.registry import METHODS, build
from fsdino.models.correlation import pool_correlation
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.predict.memory_file import (
    FORMAT_VERSION,
    SavedMemory,
    _digest,
    _to_text,
    load_memory,
    save_memory,
    thin_out,
    thumbnail,
)
from tests.small import METHOD_ARGS, references, refuses, scene, small_segmenter


@pytest.fixture(scope="module")
def model() -> FewShotSegmenter:
    return small_segmenter()


@pytest.fixture(scope="module")
def memory(model: FewShotSegmenter) -> SavedMemory:
    shown, *_ = given = references(3)
    arrays = model.pack(model.remember(given))
    return SavedMemory("striped box", model.fingerprint(), arrays, thumbnail(shown.image, shown.mask))


@pytest.mark.parametrize(("spared", "atol"), [(0, 2e-3), (1000, 1e-2)])
def test_a_saved_memory_finds_the_same(model, memory, tmp_path, spared, atol) -> None:
    path = save_memory(memory, tmp_path / "box.fsmem")
    if spared:
        whole = path.stat().st_size
        save_memory(memory, path, max_bytes=whole - spared)
        assert path.stat().st_size <= whole - spared
    read = load_memory(path, model.fingerprint())
    assert read.class_name == "striped box" and np.array_equal(read.thumbnail, memory.thumbnail)
    image = scene(seed=9)[0]
    before, after = (model.segment(model.unpack(saved.arrays), image) for saved in (memory, read))
    assert np.abs(before.probs - after.probs).max() < atol


def big_memory(positions: int, layers: int = 3, channels: int = 768) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((1, layers, positions, channels), dtype=np.float32)
    tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
    fg = np.clip(np.sin(np.arange(positions) / positions * 7), 0, 1).astype(np.float32)[None]
    prototypes = rng.standard_normal((1, layers, 2, channels), dtype=np.float32)
    return {"prototypes": prototypes, "tokens": tokens, "fg": fg, "bg": 1 - fg}


def test_a_memory_of_the_b14_preset_is_under_a_megabyte(tmp_path: Path) -> None:
    image, mask = scene(480, 640)
    memory = SavedMemory("cat", "0" * 16, big_memory(37 * 37), thumbnail(image, mask))
    path = save_memory(memory, tmp_path / "cat.fsmem")
    assert 900_000 < path.stat().st_size <= 1_000_000
    kept = load_memory(path).arrays
    assert kept["tokens"].shape[2] == kept["fg"].shape[1] > 300


def test_thinning_keeps_the_pooled_correlation() -> None:
    memory = big_memory(4000, layers=1, channels=16)
    thinned = thin_out(memory, 1000)
    assert thinned["fg"].shape == (1, 1000) and thinned["fg"].max() <= 1 and thinned["bg"].max() <= 1
    assert thin_out(memory, 4000) is memory
    query = torch.nn.functional.normalize(torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(0)), dim=-1)

    def pooled(arrays: dict[str, np.ndarray]) -> torch.Tensor:
        groups = torch.from_numpy(np.stack([arrays["fg"], arrays["bg"]], axis=1))
        return pool_correlation(query, torch.from_numpy(arrays["tokens"][:, 0]), groups, 0.1)

    before, after = pooled(memory), pooled(thinned)
    assert float((before - after)[:, :, :2].abs().mean()) < 0.02, "smooth maximum and mean"
    assert float((before - after)[:, :, 2].abs().mean()) < 0.1, "maximum: the best position may be gone"


def test_wrong_memorys_are_named(memory: SavedMemory, tmp_path: Path) -> None:
    path = save_memory(memory, tmp_path / "box.fsmem")
    with pytest.raises(FileNotFoundError, match="does not exist; make it with `fsdino remember`"):
        load_memory(tmp_path / "none.fsmem")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refuses("is damaged", load_memory, path)
    newer = {"format": "fsmem", "format_version": "9", "fingerprint": "", "class_name": "", "thumbnail": ""}
    save_file({"a": torch.zeros(1)}, tmp_path / "new.fsmem", metadata=newer)
    refuses("format version 9", load_memory, tmp_path / "new.fsmem")


def test_files_made_to_harm_are_refused(tmp_path: Path) -> None:
    def refused(words: str, arrays: dict[str, np.ndarray], **metadata: str) -> None:
        told = {"format": "fsmem", "format_version": str(FORMAT_VERSION)} | metadata
        (tmp_path / "made.fsmem").write_bytes(save(arrays, told | {"sha256": _digest(arrays, told)}))
        refuses(words, load_memory, tmp_path / "made.fsmem")

    named = {"fingerprint": "f", "class_name": "c"}
    refused("is damaged .no fingerprint.", {"a": np.zeros(1)}, class_name="c", thumbnail="")
    refused("is damaged .cannot identify image file", {"a": np.zeros(1)}, **named, thumbnail="")
    large = _to_text(np.zeros((1, 2000, 3), np.uint8))
    refused("is damaged .its image is larger than 1024 pixels", {"a": np.zeros(1)}, **named, thumbnail=large)
    small = _to_text(np.zeros((1, 1, 3), np.uint8))
    outer = {"tokens": np.zeros((1, 1, 1, 9), np.int8), "tokens_scale": np.zeros((1, 9, 9, 1), np.float16)}
    refused("is damaged .tokens_scale is not one number a token", outer, **named, thumbnail=small)


@pytest.mark.parametrize("name", METHODS)
def test_memories_of_every_method_survive_disk(name: str, tmp_path: Path) -> None:
    method = build(name, **METHOD_ARGS[name])
    memory = method.remember(references(2))
    saved = SavedMemory("thing", method.fingerprint(), method.pack(memory), scene()[0])
    read = load_memory(save_memory(saved, tmp_path / "thing.fsmem"), method.fingerprint())
    restored = method.unpack(read.arrays)
    assert type(restored) is type(memory)
    for key, tensor in memory.tensors().items():
        torch.testing.assert_close(restored.tensors()[key], tensor, atol=2e-3, rtol=2e-3)
