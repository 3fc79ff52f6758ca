"""The model of a command: by name, by its weights, or the best that is there."""

from pathlib import Path
from typing import Any

import pytest

from fsdino.base.bundled import bundled_fingerprint
from fsdino.cli import main
from fsdino.predict.engines.choice import EngineChoice
from tests.base.test_encoder_file import in_hub_cache
from tests.small import refuses


def test_auto_says_what_it_takes(capsys: Any) -> None:
    assert EngineChoice().open().fingerprint() == bundled_fingerprint("tiny")
    assert capsys.readouterr().err.splitlines() == [
        "model tiny (bundled; no encoder of `fsdino models` is on this disk)"
    ]
    EngineChoice("tiny").open()
    assert capsys.readouterr().err == ""


def test_auto_takes_an_encoder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    in_hub_cache(tmp_path, "timm/vit_small_patch14_dinov2.lvd142m")
    assert EngineChoice().settled().model == "dinov2-s14"
    refuses("model.safetensors' cannot be read: the file is cut", EngineChoice().open)


def test_graphs_are_named(tmp_path: Path) -> None:
    for runtime in ("onnx", "openvino"):
        refuses(f"the {runtime} runtime has no model of its own; give --model", EngineChoice(runtime=runtime).open)  # type: ignore[arg-type]
        given = EngineChoice(str(tmp_path), runtime, encoder_weights="a.pth")  # type: ignore[arg-type]
        refuses("graphs bring their weights along; leave --encoder-weights out", given.open)


def test_weights_from_a_file_by_the_command_line(
    vit_file: Path, support_dir: Path, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    kept, out = str(tmp_path / "cat.fsmem"), str(tmp_path / "out")
    model = ["--model", "test_vit", "--encoder-weights", str(vit_file)]
    assert main(["remember", str(support_dir / "cat"), "--out", kept, *model]) == 0
    command = ["predict", "--support", kept, "--images", str(photos), "--out", out, "--formats", "labels"]
    assert main([*command, *model]) == 0
    assert main([*command, *model]) == 0  # goes on: the same model
    capsys.readouterr()
    assert main(command) == 2
    assert "was remembered by model" in capsys.readouterr().err
    assert main([*command, "--encoder-weights", str(vit_file)]) == 2
    assert "does not tell which encoder its weights are of; add --model" in capsys.readouterr().err
    assert main([*command, "--model", "dinov2-b14"]) == 2
    assert "by hand (about 346 MB, apache-2.0" in capsys.readouterr().err
    assert main([*command, "--model", "dinov2-b14", "--encoder-weights", str(vit_file)]) == 2
    assert "are not those of vit_base_patch14_dinov2.lvd142m (" in capsys.readouterr().err
