"""Several images in one pass, and several devices: the same results, one record, every broken image named once."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.base.registry import build
from fsdino.base.storage import load
from fsdino.predict import EngineChoice, predict
from fsdino.predict.outputs import Outputs
from fsdino.predict.run import run_all
from tests.small import METHOD_ARGS, references, refuses, scene, write_image

SIZES = [(60, 80), (33, 20), (56, 56), (90, 40)]


@pytest.mark.parametrize("name", ["fsdino", "prototype"])
def test_a_batch_finds_what_one_at_a_time_finds(name: str) -> None:
    method = build(name, **METHOD_ARGS[name]).eval()
    joined = method.join([method.remember(references(1 + k, seed=k)) for k in range(3)])
    images = [scene(*size, seed=i)[0] for i, size in enumerate(SIZES)]
    for image, found in zip(images, method.find_batch(joined, images), strict=True):
        for one, alone in zip(found, method.find(joined, image), strict=True):
            assert one.probs.shape == image.shape[:2]
            np.testing.assert_allclose(one.probs, alone.probs, atol=1e-5)
            assert one.present == alone.present and one.score == pytest.approx(alone.score, abs=1e-5)


def folder(root: Path, number: int = 7) -> Path:
    for i in range(number):
        write_image(root / f"{i}.png", 40 + i, 60, seed=i)
    (root / "2.png").write_bytes(b"no image")
    return root


def results(out: Path) -> tuple[dict[str, bytes], str]:
    return {p.name: p.read_bytes() for p in (out / "labels").iterdir()}, (out / "scores.csv").read_text()


@pytest.mark.parametrize("more", [{"batch": 3}, {"devices": 2}, {"batch": 2, "devices": 3, "tile": 50}])
def test_batches_and_devices_write_the_same(model_dir, support_dir, tmp_path: Path, capsys, more: Any) -> None:
    photos, choice = folder(tmp_path / "photos"), EngineChoice(model_dir, device="cpu")
    plain = {"formats": "labels", "tile": more.get("tile", 0)}
    for out, options in (("one", plain), ("many", plain | more)):
        assert predict(str(support_dir), str(photos), str(tmp_path / out), choice, **options) == 1
        assert capsys.readouterr().err.count("not read: 2.png") == 1
    one, many = results(tmp_path / "one"), results(tmp_path / "many")
    assert len(one[0]) == 6 and one[0].keys() == many[0].keys()
    # The last bits differ between batches, so a pixel at the threshold may fall the other way.
    for name in one[0]:
        a, b = (np.asarray(Image.open(tmp_path / out / "labels" / name)) for out in ("one", "many"))
        assert (a != b).mean() < 0.01
    assert one[1] == many[1] or "batch" in more


def test_several_devices_go_on_where_they_were_stopped(model_dir, support_dir, tmp_path: Path, monkeypatch) -> None:
    photos, out, choice = folder(tmp_path / "photos"), tmp_path / "out", EngineChoice(model_dir, device="cpu")
    written, write = [], Outputs.write

    def stop_after_three(self: Outputs, name: str, *rest: Any) -> None:
        if len(written) == 3:
            raise OSError("the disk is full")
        written.append(name)
        write(self, name, *rest)

    monkeypatch.setattr(Outputs, "write", stop_after_three)
    again = lambda: predict(str(support_dir), str(photos), str(out), choice, formats="labels", devices=2)  # noqa: E731
    refuses("the disk is full", again, kind=OSError)
    monkeypatch.setattr(Outputs, "write", lambda self, name, *rest: written.append(name) or write(self, name, *rest))
    assert again() == 1
    assert sorted(written) == sorted(f"{i}.png" for i in range(7) if i != 2), "no image twice, none left out"


def test_all_devices_take_part_and_stop_together(tmp_path: Path) -> None:
    class Items(list):
        done: set[str] = set()

    seen: set[int] = set()
    both = threading.Barrier(2, timeout=30)

    def find(images: Any) -> Any:
        seen.add(threading.get_ident())
        both.wait()
        raise ValueError("this device is gone")

    items = [type("One", (), {"name": str(i), "read": lambda self: np.zeros((4, 4, 3), np.uint8)})() for i in range(50)]
    refuses("this device is gone", run_all, items, Items(), [find, find])
    assert len(seen) == 2


def test_each_device_of_a_choice() -> None:
    choice = EngineChoice("m", runtime="onnx", device="cuda")
    assert [one.device for one in choice.each(2)] == ["cuda:0", "cuda:1"]
    assert [one.device for one in EngineChoice("m", runtime="openvino").each(3)] == ["auto"] * 3
    refuses("add --device cuda or cpu", EngineChoice("m", runtime="onnx").each, 2)
    assert EngineChoice("m").each(1) == [EngineChoice("m")]
    refuses("names one device", EngineChoice("m", device="cuda:1").each, 2)
    refuses("devices 0 is too few", choice.each, 0)


def test_what_pays_on_a_cpu_is_one_image(model_dir: str) -> None:
    assert load(model_dir, device="cpu").batch == 1
