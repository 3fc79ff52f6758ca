"""Which model is taken where none is named."""

from pathlib import Path

import pytest

from fsdino.base.auto import chosen_model
from fsdino.base.catalog import CATALOG
from tests.small import refuses


def on_disk(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    there = {CATALOG[name].timm: Path("weights") for name in names}
    monkeypatch.setattr("fsdino.base.auto.file_on_disk", lambda timm, repository: there.get(timm))


def test_with_nothing_on_disk_it_is_the_bundled_one() -> None:
    assert chosen_model()[0] == "tiny"


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("dinov2-s14", "dinov2-b14"), "dinov2-b14"),
        (("dinov2-l14", "dinov3-s16"), "dinov3-s16"),
        (("dinov3-7b16", "dinov2-s14"), "dinov2-s14"),
        (("dinov3-7b16", "eupe-b16"), "tiny"),
    ],
)
def test_the_best_on_disk_that_is_neither_slow_nor_restricted(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], taken: str
) -> None:
    on_disk(monkeypatch, *names)
    assert chosen_model()[0] == taken


@pytest.mark.parametrize(
    ("file", "taken"),
    [
        ("downloads/dinov2_vitb14_reg4_pretrain.pth", "dinov2-b14-reg"),
        ("dinov2-s14.safetensors", "dinov2-s14"),
        ("vit_small_patch16_dinov3.lvd1689m.safetensors", "dinov3-s16"),
        ("vit_tiny_patch16_224.safetensors", "vit_tiny_patch16_224"),
    ],
)
def test_a_file_of_weights_decides_by_its_name(monkeypatch: pytest.MonkeyPatch, file: str, taken: str) -> None:
    on_disk(monkeypatch, "dinov3-l16")
    assert chosen_model(file)[0] == taken


def test_a_file_that_does_not_tell() -> None:
    refuses(
        "the name of 'model.safetensors' does not tell which encoder .* add --model", chosen_model, "model.safetensors"
    )
