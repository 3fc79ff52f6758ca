"""Segmenters on disk and on the Hub, and saved concepts: what is written is what is read, and nothing else is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

import fsdino
from fsdino.base import bundled
from fsdino.base.reference import Reference
from fsdino.base.storage import CHECKPOINT_KEY, describe, fingerprint, load, save
from fsdino.models.correlation import pool_correlation
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.predict.engines.torch import TorchEngine
from fsdino.predict.memory_file import SavedMemory, load_memory, save_memory, thin_out, thumbnail
from tests.small_segmenter import annotated, scene, small_segmenter


@pytest.fixture(scope="module")
def model() -> FewShotSegmenter:
    return small_segmenter()


@pytest.fixture
def folder(model: FewShotSegmenter, tmp_path: Path) -> Path:
    return save(model, tmp_path / "model", results={"novel mIoU": 41.2})


def probs(model: FewShotSegmenter) -> torch.Tensor:
    image, mask = scene()
    return model.segment(model.remember([Reference(image, mask=mask)]), scene(seed=5)[0]).probs


def test_a_saved_model_is_the_same_model(model: FewShotSegmenter, folder: Path) -> None:
    loaded = fsdino.load(str(folder))
    assert torch.equal(probs(loaded), probs(model))
    assert not loaded.training and fingerprint(loaded) == fingerprint(model)
    assert loaded.config.to_dict() == {**model.config.to_dict(), "encoder_weights": None}
    assert not any(p.requires_grad for p in loaded.encoder.parameters())
    assert torch.equal(probs(load(folder / "model.safetensors")), probs(model))


def test_half_precision_is_half_the_size_and_the_same_fingerprint(model: FewShotSegmenter, tmp_path: Path) -> None:
    whole, half = save(model, tmp_path / "a"), save(model, tmp_path / "b", half=True)
    sizes = [(path / "model.safetensors").stat().st_size for path in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load(half)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert fingerprint(loaded) == fingerprint(model)
    assert float((probs(loaded) - probs(model)).abs().max()) < 0.01


def test_files_are_as_readable_as_others(folder: Path) -> None:
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert set(modes) == {"model.safetensors", "config.json", "README.md"}
    assert len(set(modes.values())) == 1


def test_a_write_that_breaks_leaves_the_older_model(
    model: FewShotSegmenter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("no space left")

    for step in ("fsdino.base.storage.save_file", "fsdino.base.hub.model_card"):
        with monkeypatch.context() as broken:
            broken.setattr(step, refuse)
            with pytest.raises(OSError, match="no space left"):
                save(small_segmenter(seed=1), folder)
        assert fingerprint(load(folder)) == fingerprint(model)


def test_processes_may_write_the_same_model(
    model: FewShotSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_beside_another(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        with monkeypatch.context() as other:
            other.setattr("fsdino.base.storage.save_file", save_file)
            other.setattr("fsdino.base.storage.os.getpid", lambda: 0)
            save(model, tmp_path)

    monkeypatch.setattr("fsdino.base.storage.save_file", save_beside_another)
    save(model, tmp_path)
    assert fingerprint(load(tmp_path)) == fingerprint(model)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}


def test_the_threshold_is_kept(model: FewShotSegmenter, tmp_path: Path) -> None:
    changed = small_segmenter()
    changed.threshold = 0.35
    assert load(save(changed, tmp_path / "m")).threshold == pytest.approx(0.35)
    assert fingerprint(changed) == fingerprint(model), "memories stay valid when only the cut on the result moves"


def test_other_weights_or_sizes_have_other_fingerprints(model: FewShotSegmenter) -> None:
    assert fingerprint(small_segmenter(seed=1)) != fingerprint(model)
    assert fingerprint(small_segmenter(skip=False)) != fingerprint(model)


def test_lightning_checkpoints_open(model: FewShotSegmenter, tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {**state, "other": torch.zeros(1)}, CHECKPOINT_KEY: describe(model)}, path)
    assert torch.equal(probs(load(path)), probs(model))


def test_distilled_weights_are_not_taken_for_trained_ones(model: FewShotSegmenter, tmp_path: Path) -> None:
    saved = save(model, tmp_path / "m", stage="distilled")
    with pytest.raises(ValueError, match=r"is a distill checkpoint.*Run `fsdino train`"):
        load(saved)
    assert torch.equal(probs(load(saved, stage="distilled")), probs(model))


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def break_missing_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("decoder.iou_token.weight")
    save_file(tensors, folder / "model.safetensors")


def break_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "decoder.iou_token.weight": torch.zeros(1, 7)}, folder / "model.safetensors")


def break_extra(folder: Path) -> None:
    save_file({**load_file(folder / "model.safetensors"), "extra": torch.zeros(1)}, folder / "model.safetensors")


def break_mixed(folder: Path) -> None:
    shutil.copy(save(small_segmenter(1), folder / "b") / "model.safetensors", folder / "model.safetensors")


BROKEN = {
    "missing weight": (break_missing_weight, ValueError, r"1 missing \(decoder.iou_token.weight\)"),
    "unknown weight": (break_extra, ValueError, r"1 unknown \(extra\)"),
    "other shape": (break_shape, ValueError, r"decoder.iou_token.weight has shape \(1, 7\), its configuration needs"),
    "two models": (break_mixed, ValueError, "mixes two models"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"12345678900"), ValueError, "cut or damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "has no model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "has no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), ValueError, "is not JSON"),
    "config of another kind": (lambda f: (f / "config.json").write_text("{}"), ValueError, "another kind of model"),
    "too new": (lambda f: rewrite(f, format_version=99), ValueError, "format version 99, this fsdino reads up to 1"),
    "unknown setting": (lambda f: rewrite(f, segmenter={"colour": 1}), ValueError, "SegmenterConfig has no colour"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_named(folder: Path, case: str) -> None:
    damage, kind, message = BROKEN[case]
    damage(folder)
    with pytest.raises(kind, match=message):
        load(folder)


def test_wrong_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (("a.onnx", "no model.*--runtime onnx"), ("a.fsmem", "saved memory"), ("a.txt", "no model")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
    (tmp_path / "cut.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "cut.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no state_dict"):
        load(tmp_path / "other.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="not written by `fsdino train`"):
        load(tmp_path / "foreign.ckpt")
    with pytest.raises(FileNotFoundError, match="no model 'nowhere': give a preset"):
        load("nowhere")
    with pytest.raises(FileNotFoundError, match="no weights are bundled for preset 'b14'"):
        load("b14")
    monkeypatch.setitem(bundled.BUNDLED, "tiny", "absent")
    with pytest.raises(FileNotFoundError, match="bundled weights of 'tiny' are missing"):
        load("tiny")


def test_an_encoder_that_is_bundled_is_not_stored_twice(tmp_path: Path) -> None:
    tiny = load("tiny")
    folder = save(tiny, tmp_path / "again", half=True, encoder="tiny_encoder")
    stored = load_file(folder / "model.safetensors")
    assert stored and not any(key.startswith("encoder.") for key in stored)
    assert fingerprint(load(folder)) == fingerprint(tiny)
    with torch.no_grad():
        tiny.encoder.backbone.norm.weight.add_(1)
    with pytest.raises(ValueError, match="another encoder than this model's"):
        save(tiny, tmp_path / "other", encoder="tiny_encoder")


# ---- the Hub


def test_hub_methods_use_the_same_folder(model: FewShotSegmenter, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    assert torch.equal(probs(FewShotSegmenter.from_pretrained(tmp_path / "m")), probs(model))


def test_hub_ids_are_downloaded(model: FewShotSegmenter, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("fsdino.base.hub.snapshot_download", fetch)
    assert torch.equal(probs(load("someone/some-model")), probs(model))
    assert asked == [("someone/some-model", ["model.safetensors", "config.json"])]


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(repo_id: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("fsdino.base.hub.snapshot_download", fetch)
    with pytest.raises(FileNotFoundError, match="no folder 'someone/some-model', and the Hub cannot be reached"):
        load("someone/some-model")


def test_push_uploads_the_folder(model: FewShotSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, list[str]] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: Path, **_: Any) -> str:
            uploaded[repo_id] = sorted(path.name for path in folder_path.iterdir())
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    model.push_to_hub("someone/some-model")
    assert uploaded == {"someone/some-model": ["README.md", "config.json", "model.safetensors"]}


def test_the_model_card_is_valid_and_has_the_numbers(model: FewShotSegmenter, folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-segmentation"
    assert "| novel mIoU | 41.2 |" in card.text and fingerprint(model) in card.text
    assert f"| total | {sum(p.numel() for p in model.parameters()):,} |" in card.text


def test_results_follow_the_weights_they_were_measured_on(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    again = save(loaded, tmp_path / "same")
    assert json.loads((again / "config.json").read_text())["results"] == {"novel mIoU": 41.2}
    with torch.no_grad():
        loaded.decoder.iou_token.weight.add_(1)
    changed = save(loaded, tmp_path / "changed")
    assert json.loads((changed / "config.json").read_text())["results"] == {}


# ---- saved concepts


@pytest.fixture(scope="module")
def concept(model: FewShotSegmenter) -> SavedMemory:
    engine, references = TorchEngine(model), annotated(3)
    arrays = engine.pack(engine.remember(references))
    return SavedMemory("striped box", engine.fingerprint, arrays, thumbnail(references[0].image, references[0].mask))


@pytest.mark.parametrize(("spared", "atol"), [(0, 2e-3), (1000, 1e-2)])
def test_a_saved_concept_finds_the_same(
    model: FewShotSegmenter, concept: SavedMemory, tmp_path: Path, spared: int, atol: float
) -> None:
    path = save_memory(concept, tmp_path / "box.fsmem")
    if spared:
        whole = path.stat().st_size
        save_memory(concept, path, max_bytes=whole - spared)
        assert path.stat().st_size <= whole - spared
    read = load_memory(path, fingerprint(model))
    assert read.class_name == "striped box" and np.array_equal(read.thumbnail, concept.thumbnail)
    engine, image = TorchEngine(model), scene(seed=9)[0]
    before, after = (next(engine.segment([engine.unpack(c.arrays)], image)) for c in (concept, read))
    assert np.abs(before.probs - after.probs).max() < atol


def big_memory(positions: int, layers: int = 3, channels: int = 768) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((1, layers, positions, channels), dtype=np.float32)
    tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
    fg = np.clip(np.sin(np.arange(positions) / positions * 7), 0, 1).astype(np.float32)[None]
    prototypes = rng.standard_normal((1, layers, 2, channels), dtype=np.float32)
    return {"prototypes": prototypes, "tokens": tokens, "fg": fg, "bg": 1 - fg, "grid": np.asarray([1, 1, positions])}


def test_a_concept_of_the_b14_preset_is_under_a_megabyte(tmp_path: Path) -> None:
    image, mask = scene(480, 640)
    concept = SavedMemory("cat", "0" * 16, big_memory(37 * 37), thumbnail(image, mask))
    path = save_memory(concept, tmp_path / "cat.fsmem")
    assert 900_000 < path.stat().st_size <= 1_000_000
    kept = load_memory(path).arrays
    assert kept["tokens"].shape[2] == kept["fg"].shape[1] == int(kept["grid"].prod()) > 300
    positional = save_memory(concept, tmp_path / "all.fsmem", positional=True)
    assert load_memory(positional).arrays["tokens"].shape[2] == 37 * 37


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


def test_wrong_concepts_are_named(concept: SavedMemory, tmp_path: Path) -> None:
    path = save_memory(concept, tmp_path / "box.fsmem")
    with pytest.raises(ValueError, match=f"remembered by model {concept.fingerprint}, this is model 0000"):
        load_memory(path, "0000")
    with pytest.raises(FileNotFoundError, match="does not exist; make it with `fsdino remember`"):
        load_memory(tmp_path / "none.fsmem")
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    with pytest.raises(ValueError, match="cannot be read"):
        load_memory(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged"):
        load_memory(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.fsmem")
    with pytest.raises(ValueError, match="no saved memory, though in safetensors form"):
        load_memory(tmp_path / "other.fsmem")
    newer = {"format": "fsmem", "format_version": "9", "fingerprint": "", "class_name": "", "thumbnail": ""}
    save_file({"a": torch.zeros(1)}, tmp_path / "new.fsmem", metadata=newer)
    with pytest.raises(ValueError, match="format version 9"):
        load_memory(tmp_path / "new.fsmem")
