"""Methods on disk and on the Hub: what is written is what is read, and nothing else is taken."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

import fsdino
from fsdino.base import bundled
from fsdino.base.checkpoint import CHECKPOINT_KEY
from fsdino.base.digest import told_sha256
from fsdino.base.registry import METHODS, build
from fsdino.base.storage import describe, fingerprint, load, save
from fsdino.models.segmenter import FewShotSegmenter
from tests.contract import assert_same, episodes
from tests.small import METHOD_ARGS, references, refuses, scene, small_segmenter


@pytest.fixture(scope="module")
def model() -> FewShotSegmenter:
    return small_segmenter()


@pytest.fixture
def folder(model: FewShotSegmenter, tmp_path: Path) -> Path:
    return save(model, tmp_path / "model", results={"novel mIoU": 41.2})


def probs(model: FewShotSegmenter) -> np.ndarray:
    return model.segment(model.remember(references()), scene(seed=5)[0]).probs


def prefixed(model: FewShotSegmenter) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def test_a_saved_model_is_the_same_model(model: FewShotSegmenter, folder: Path) -> None:
    loaded = fsdino.load(str(folder))
    assert np.array_equal(probs(loaded), probs(model))
    assert not loaded.training and fingerprint(loaded) == fingerprint(model)
    assert loaded.config.to_dict() == {**model.config.to_dict(), "encoder_weights": None}
    assert not any(p.requires_grad for p in loaded.encoder.parameters())
    assert np.array_equal(probs(load(folder / "model.safetensors")), probs(model))


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_every_method_survives_disk_and_refuses_the_weights_of_another(name: str, tmp_path: Path) -> None:
    method, other = (build(name, **METHOD_ARGS[name]) for _ in range(2))
    method.threshold = 0.35
    place = save(method, tmp_path / "one")
    loaded = load(place)
    assert type(loaded) is type(method) and loaded.threshold == 0.35 and not loaded.training
    inputs = episodes(method, 1, 2)
    assert_same(loaded(*inputs), method(*inputs), 0.0)
    assert json.dumps(describe(loaded)) == json.dumps(describe(method))  # a tuple is a list on disk
    if method.state_dict():
        shutil.copy(save(other, tmp_path / "two") / "model.safetensors", place / "model.safetensors")
        refuses("mixes two models", load, place)


@pytest.mark.parametrize("name", ["sansa", "fssam"])
def test_a_model_of_older_arithmetic_is_refused(name: str, tmp_path: Path) -> None:
    """Equal weights and arguments that mean other masks now must not pass for what was measured."""
    method = build(name, **METHOD_ARGS[name])
    place, now = save(method, tmp_path), method.fingerprint()
    assert json.loads((place / "config.json").read_text())["arithmetic"] == 2
    rewrite(place, arithmetic=1)
    title = type(method).title
    refuses(f"made for arithmetic 1 of {title}, and this fsdino computes 2, which .* train it again", load, place)
    rewrite(place, arithmetic=9)
    refuses("made for arithmetic 9 of .*; update fsdino", load, place)
    older = type(name, (type(method),), {"arithmetic": 1})
    method.__class__ = older
    assert method.fingerprint() != now and "arithmetic" not in describe(method)


def test_a_model_of_another_method_is_refused_where_one_is_wanted(folder: Path, tmp_path: Path) -> None:
    floor = save(build("all_foreground", img_size=56), tmp_path / "floor")
    refuses("holds AllForeground, expected FS-DINO; give a model of that kind", load, floor, method="fsdino")
    assert load(folder, method="fsdino").name == "fsdino"
    with pytest.raises(ValueError, match=r"holds AllForeground, expected FewShotSegmenter; use fsdino\.load"):
        FewShotSegmenter.from_pretrained(floor)


def test_half_precision_is_half_the_size_and_the_same_fingerprint(model: FewShotSegmenter, tmp_path: Path) -> None:
    whole, half = save(model, tmp_path / "a"), save(model, tmp_path / "b", half=True)
    sizes = [(path / "model.safetensors").stat().st_size for path in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load(half)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert fingerprint(loaded) == fingerprint(model)
    assert np.abs(probs(loaded) - probs(model)).max() < 0.01


def test_a_write_that_breaks_leaves_the_older_model(model, folder, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("no space left")

    for step in ("fsdino.base.storage.save_file", "fsdino.base.storage.model_card"):
        with monkeypatch.context() as broken:
            broken.setattr(step, refuse)
            refuses("no space left", save, small_segmenter(seed=1), folder, kind=OSError)
        assert fingerprint(load(folder)) == fingerprint(model)


def test_processes_may_write_the_same_model(model, tmp_path, monkeypatch) -> None:
    def save_beside_another(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        with monkeypatch.context() as other:
            other.setattr("fsdino.base.storage.save_file", save_file)
            other.setattr("fsdino.base.storage.os.getpid", lambda: 0)
            save(model, tmp_path)

    monkeypatch.setattr("fsdino.base.storage.save_file", save_beside_another)
    save(model, tmp_path)
    assert fingerprint(load(tmp_path)) == fingerprint(model)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert set(modes) == {"model.safetensors", "config.json", "README.md"}
    assert len(set(modes.values())) == 1, "files are as readable as others"


def test_other_weights_or_sizes_have_other_fingerprints(model: FewShotSegmenter) -> None:
    assert fingerprint(small_segmenter(seed=1)) != fingerprint(model)
    assert fingerprint(small_segmenter(skip=False)) != fingerprint(model)
    same = small_segmenter()
    same.threshold = 0.35
    assert fingerprint(same) == fingerprint(model), "memories stay valid when only the threshold moves"


def test_the_same_bytes_in_another_shape_are_other_weights() -> None:
    told = {"name": "made", "silent_args": (), "arithmetic": 1, "arguments": dict}
    shapes = ((2, 3), (3, 2))
    found = [SimpleNamespace(**told, state_dict=lambda s=s: {"w": torch.ones(s)}) for s in shapes]
    assert fingerprint(found[0]) != fingerprint(found[1])


def test_lightning_checkpoints_open(model: FewShotSegmenter, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {**prefixed(model), "other": torch.zeros(1)}, CHECKPOINT_KEY: describe(model)}, path)
    assert np.array_equal(probs(load(path)), probs(model))


def test_a_run_folder_opens_its_best_model(model: FewShotSegmenter, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1")
    refuses("has no checkpoint of episode training yet", load, tmp_path, kind=FileNotFoundError)
    places = ["train/checkpoints/last.ckpt", "train/checkpoints/best.ckpt", "presence/best.ckpt"]
    for threshold, name in enumerate(places, start=1):  # each is preferred to the ones before it
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        content = {**describe(model), "threshold": threshold / 10}
        torch.save({"state_dict": prefixed(model), CHECKPOINT_KEY: content}, tmp_path / name)
        assert load(tmp_path).threshold == pytest.approx(threshold / 10)
    save(model, tmp_path / "export")
    assert load(tmp_path).threshold == 0.5


def test_distilled_weights_are_not_taken_for_trained_ones(model: FewShotSegmenter, tmp_path: Path) -> None:
    saved = save(model, tmp_path / "m", stage="distilled")
    refuses(r"is a distill checkpoint.*Run the train stage", load, saved)
    assert np.array_equal(probs(load(saved, stage="distilled")), probs(model))


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    info = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**info, "sha256": told_sha256(info)}))


def reweigh(folder: Path, **changed: torch.Tensor | None) -> None:
    """Puts other weights in; None takes one out."""
    tensors = {**load_file(folder / "model.safetensors"), **changed}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def flip(path: Path, place: int = -2) -> None:
    """Turns one bit of a file round; the last bytes of weights are a float's."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def hand_edit(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threshold": 0.7}))


def mix(folder: Path) -> None:
    shutil.copy(save(small_segmenter(1), folder / "b") / "model.safetensors", folder / "model.safetensors")


TOKEN = "decoder.iou_token.weight"
BROKEN = {
    "missing weight": (lambda f: reweigh(f, **{TOKEN: None}), ValueError, r"1 missing \(decoder.iou_token.weight\)"),
    "unknown weight": (lambda f: reweigh(f, extra=torch.zeros(1)), ValueError, r"1 unknown \(extra\)"),
    "other shape": (lambda f: reweigh(f, **{TOKEN: torch.zeros(1, 7)}), ValueError,
                    r"decoder.iou_token.weight has shape \(1, 7\), its configuration needs"),
    "two models": (mix, ValueError, "mixes two models"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"12345678900"), ValueError, "cut or damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "has no model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "has no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), ValueError, "is not JSON"),
    "config of another kind": (lambda f: (f / "config.json").write_text("{}"), ValueError, "another kind of model"),
    "too new": (lambda f: rewrite(f, format_version=99), ValueError, "version 99, this fsdino reads 3; update fsdino"),
    "too old": (lambda f: rewrite(f, format_version=1), ValueError, "version 1, this fsdino reads 3; export it again"),
    "no number as the version": (lambda f: rewrite(f, format_version="x"), ValueError, "format version x, this fsdino"),
    "a bit of the weights": (lambda f: flip(f / "model.safetensors", -4), ValueError, "was changed"),
    "a value changed by hand": (hand_edit, ValueError, "was changed after it was written .* save it"),
    "no number among the weights": (lambda f: reweigh(f, **{TOKEN: torch.full((1, 32), torch.nan)}), ValueError,
                                    "iou_token.weight holds NaN or infinity"),
    "unknown method": (lambda f: rewrite(f, method="matcher"), ValueError, "unknown method 'matcher'; use one of"),
    "unknown setting": (lambda f: rewrite(f, args={"colour": 1}), ValueError, "SegmenterConfig has no colour"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_named(folder: Path, case: str) -> None:
    damage, kind, message = BROKEN[case]
    damage(folder)
    refuses(message, load, folder, kind=kind)


def test_wrong_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, more in (("a.onnx", ".*--runtime onnx"), ("a.fsmem", ".*saved memory"), ("a.txt", "")):
        (tmp_path / name).write_bytes(b"x")
        refuses(f"is not a model{more}", load, tmp_path / name)
    (tmp_path / "cut.ckpt").write_bytes(b"x")
    refuses("cannot be read", load, tmp_path / "cut.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    refuses("no state_dict", load, tmp_path / "other.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    refuses("not written by `fsdino run`", load, tmp_path / "foreign.ckpt")
    for name in ("nowhere", "b14"):
        refuses(
            f"no model '{name}': give a name of `fsdino models` .tiny., a folder", load, name, kind=FileNotFoundError
        )
    monkeypatch.setitem(bundled.BUNDLED, "tiny", "absent")
    refuses("bundled weights of 'tiny' are missing", load, "tiny", kind=FileNotFoundError)


def test_an_encoder_that_is_bundled_is_not_stored_twice(tmp_path: Path) -> None:
    tiny = load("tiny")
    folder = save(tiny, tmp_path / "again", half=True, encoder="tiny_encoder")
    stored = load_file(folder / "model.safetensors")
    assert stored and not any(key.startswith("encoder.") for key in stored)
    assert fingerprint(load(folder)) == fingerprint(tiny)
    with torch.no_grad():
        tiny.encoder.backbone.norm.weight.add_(1)
    refuses("another encoder than this model's", save, tiny, tmp_path / "other", encoder="tiny_encoder")


def test_hub_methods_use_the_same_folder(model: FewShotSegmenter, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    assert np.array_equal(probs(FewShotSegmenter.from_pretrained(tmp_path / "m")), probs(model))


def test_hub_ids_are_downloaded(model: FewShotSegmenter, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("fsdino.base.hub.snapshot_download", fetch)
    assert np.array_equal(probs(load("someone/some-model")), probs(model))
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
