"""`fsdino models`: bundled, trained and known models, with what is on this disk."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fsdino.base.catalog import CATALOG
from fsdino.base.storage import load, save
from fsdino.cli import main
from fsdino.pipeline.models import listed
from tests.base.test_encoder_file import in_hub_cache
from tests.small import small_segmenter


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An exported run, one with a checkpoint alone, a damaged one and one that has nothing yet."""
    root = tmp_path / "runs"
    for name in ("a/2026-01-04", "a/2026-01-03", "b/2026-01-02", "b/2026-01-01"):
        (root / name).mkdir(parents=True)
        (root / name / "config.yaml").write_text("name: a")
    save(small_segmenter(), root / "a/2026-01-04/export", results={"novel mIoU": 41.2})
    (root / "a/2026-01-03/train/checkpoints").mkdir(parents=True)
    (root / "a/2026-01-03/train/checkpoints/last.ckpt").write_bytes(b"x" * 2_000_000)
    (root / "b/2026-01-02/export").mkdir()
    (root / "b/2026-01-02/export/model.safetensors").write_bytes(b"cut")
    return root


def test_every_model_with_what_is_known_of_it(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    file = in_hub_cache(tmp_path / "hub", "timm/vit_base_patch14_dinov2.lvd142m", b"x" * 3_000_000)
    found = {one.name: one for one in listed(runs)}
    tiny = found["tiny"]
    assert tiny.kind == "bundled" and tiny.licence == "apache-2.0" and tiny.measured and tiny.file is not None
    assert tiny.parameters == sum(value.numel() for value in load("tiny").state_dict().values())
    exported, checkpoint, damaged = (found[str(runs / n)] for n in ("a/2026-01-04", "a/2026-01-03", "b/2026-01-02"))
    assert exported.measured == {"novel mIoU": 41.2} and exported.licence is None
    assert exported.parameters == sum(value.numel() for value in small_segmenter().state_dict().values())
    assert checkpoint.parameters is None and checkpoint.megabytes == 2.0 and damaged.parameters is None
    assert str(runs / "b/2026-01-01") not in found and found.keys() >= CATALOG.keys()
    assert (found["dinov2-b14"].file, found["dinov2-b14"].megabytes) == (str(file), 3.0)
    assert (found["dinov2-s14"].file, found["dinov2-s14"].megabytes) == (None, 88)


def test_as_text_and_as_json(runs: Path, capsys: Any) -> None:
    assert main(["models", "--runs", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "parameters", "licence", "weights", "measured"]
    (row,) = (line for line in lines if line.startswith("dinov2-s14 "))
    assert row.split("  ")[0] == "dinov2-s14" and "22.1 M" in row and "88 MB, to be fetched" in row
    assert any("novel mIoU 41.2" in line for line in lines) and "--model auto takes tiny" in "\n".join(lines)
    assert main(["models", "--json", "--runs", str(runs)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["auto"] == "tiny" and len(told["models"]) == 1 + 3 + len(CATALOG)


def test_it_needs_neither_torch_nor_timm() -> None:
    code = "import sys, fsdino.cli; fsdino.cli.main(['models']); assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
