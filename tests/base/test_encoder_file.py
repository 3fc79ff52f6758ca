"""Weights in the caches of this disk, and clear words where they are nowhere."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from fsdino.base.catalog import CATALOG
from fsdino.base.encoder_file import encoder_file, file_on_disk, given_file
from tests.small import refuses

SMALL = CATALOG["dinov2-s14"]
WHERE = (SMALL.timm, SMALL.repository)
ADDRESS = r"https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors"


def in_hub_cache(cache: Path, repository: str, content: bytes = b"weights") -> Path:
    """A file as the Hub's client keeps it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    file = folder / "snapshots" / "0a1b" / "model.safetensors"
    for path, text in ((folder / "refs" / "main", b"0a1b"), (file, content)):
        path.parent.mkdir(parents=True)
        path.write_bytes(text)
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


def test_found_in_either_cache_without_asking(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsdino.base.encoder_file.get_hf_file_metadata", None)
    assert file_on_disk(*WHERE) is None
    kept = tmp_path / "torch" / "hub" / "checkpoints" / "dinov2_vits14_pretrain.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    assert file_on_disk(*WHERE) == encoder_file(*WHERE) == kept
    assert file_on_disk("vit_small_patch16_dinov3.lvd1689m", "timm/vit_small_patch16_dinov3.lvd1689m") is None
    file = in_hub_cache(cache, SMALL.repository)
    assert encoder_file(*WHERE) == file


def test_offline_says_what_to_fetch_and_where_to_put_it(cache: Path) -> None:
    words = rf"HF_HUB_OFFLINE is set; .*fetch {ADDRESS} by hand \(about 88 MB, apache-2.0; .*--encoder-weights FILE"
    with pytest.raises(FileNotFoundError, match=words):
        encoder_file(*WHERE, licence="apache-2.0")


def test_without_an_answer_it_does_not_try_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class ConnectError(Exception):
        """As of a library of HTTP, which is no OSError."""

    def unreachable(address: str, timeout: float) -> None:
        asked.append((address, timeout))
        raise ConnectError("no route")

    monkeypatch.setattr("fsdino.base.encoder_file.get_hf_file_metadata", unreachable)
    refuses(rf"could not be had from the Hub \(ConnectError\); fetch {ADDRESS}", encoder_file, *WHERE, kind=OSError)
    assert len(asked) == 1 and asked[0][1] <= 5


@pytest.mark.parametrize(
    ("kind", "words"), [(GatedRepoError, "accepted the licence"), (RepositoryNotFoundError, f"there is no {ADDRESS}")]
)
def test_what_the_hub_refuses(cache: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, words: str) -> None:
    def refused(*_: Any, **__: Any) -> None:
        error = kind.__new__(kind)
        raise error

    monkeypatch.setattr("fsdino.base.encoder_file.get_hf_file_metadata", refused)
    refuses(words, encoder_file, *WHERE, kind=FileNotFoundError)


def test_a_fetch_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("fsdino.base.encoder_file.get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(
        "fsdino.base.encoder_file.hf_hub_download", lambda repository, name: in_hub_cache(cache, repository)
    )
    assert encoder_file(*WHERE, licence="apache-2.0").read_bytes() == b"weights"
    assert f"fetching {ADDRESS} (about 88 MB, apache-2.0)" in capsys.readouterr().err


def test_a_given_file_must_be_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.pth"):
        refuses("do not exist, or are not a file", given_file, str(path), kind=FileNotFoundError)
