"""What `fsdino predict` looks for: one rule for images from Python and from files, class names, how much is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsdino import load
from fsdino.base.reference import Reference, image_tensor, reference_tensors
from fsdino.base.storage import save
from fsdino.data.images import read_image, read_mask
from fsdino.predict import hints as annotated
from fsdino.predict import predict, read_support, remember
from fsdino.predict.command import open_engine
from fsdino.predict.memory_file import load_memory
from tests.small import scene, small_segmenter, write_references


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(small_segmenter(), tmp_path_factory.mktemp("model")))


# ---- Python and the command see the same


def odd_images(folder: Path) -> dict[str, Path]:
    """An image held upright, one of 16 bits, one with a see-through half, one of 256 colours."""
    folder.mkdir()
    rgb, _ = scene(40, 60, seed=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, :30] = 0
    images = {
        "turned": (Image.fromarray(rgb), "jpg", {"exif": exif}),
        "deep": (Image.fromarray(rgb[..., 0].astype(np.uint16) * 257), "png", {}),
        "alpha": (Image.fromarray(np.dstack([rgb, alpha])), "png", {}),
        "palette": (Image.fromarray(rgb).convert("P"), "png", {}),
    }
    for name, (image, kind, options) in images.items():
        image.save(folder / f"{name}.{kind}", **options)  # type: ignore[arg-type]
    return {path.stem: path for path in folder.iterdir()}


def test_images_are_the_same_from_python_and_from_files(model_dir: str, tmp_path: Path) -> None:
    files = odd_images(tmp_path / "photos")
    refs = write_references(tmp_path / "refs", {"cat": 1})
    model = load(model_dir)
    predict(str(refs), str(tmp_path / "photos"), str(tmp_path / "out"), model_dir, threshold=model.threshold)
    image, mask = (Image.open(refs / "cat" / name) for name in ("0.jpg", "0.png"))
    memory = model.remember([Reference(image, mask=mask)])
    for name, path in files.items():
        assert torch.equal(image_tensor(Image.open(path), name), image_tensor(read_image(path), name))
        found = model.segment(memory, Image.open(path)).mask.numpy()
        labels = np.asarray(Image.open(tmp_path / "out" / "labels" / f"{name}.png"))
        assert found.shape == labels.shape and (found != (labels == 1)).mean() < 0.01
    assert image_tensor(Image.open(files["turned"]), "x").shape == (3, 60, 40)
    assert float(image_tensor(Image.open(files["alpha"]), "x")[:, :, :30].min()) == 1.0, "laid on white"
    assert len(image_tensor(Image.open(files["deep"]), "x").unique()) > 9, "not cut off at 255"


def test_masks_are_the_same_from_python_and_from_files(tmp_path: Path) -> None:
    image, mask = scene()
    ignored = mask.copy()
    ignored[0] = 255
    bright = Image.fromarray(mask * np.uint8(255))
    bright.save(tmp_path / "noisy.jpg", quality=30)
    bright.convert("RGB").save(tmp_path / "colours.png")
    Image.fromarray(ignored).save(tmp_path / "labels.png")
    Image.fromarray(mask.astype(np.uint16) * 65535).save(tmp_path / "deep.png")
    Image.fromarray(mask > 0).save(tmp_path / "bits.png")
    for path in tmp_path.iterdir():
        found = reference_tensors(Reference(image, mask=Image.open(path)))[1].numpy()
        assert np.array_equal(found, read_mask(path) == 1), path.name
        assert (found != mask).mean() < 0.01, path.name


# ---- names of classes


def two_classes(folder: Path, names: tuple[str, str]) -> Path:
    """A COCO file with an image and a mask for each of two categories."""
    image, mask = scene()
    Image.fromarray(image).save(folder / "0.png")
    rows, cols = np.nonzero(mask)
    left, top, right, bottom = (int(n) for n in (cols.min(), rows.min(), cols.max(), rows.max()))
    box = [left, top, right, top, right, bottom, left, bottom]
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": image.shape[0], "width": image.shape[1]}],
        "annotations": [{"id": i, "image_id": 0, "category_id": i, "segmentation": [box]} for i in (1, 2)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }
    (folder / "refs.json").write_text(json.dumps(content))
    return folder / "refs.json"


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'refs' has two classes of the name 'cup'; rename one"):
        read_support(two_classes(tmp_path, ("cup", "cup")))


def test_memories_of_like_names_stay_apart_and_keep_their_names(model_dir: str, tmp_path: Path) -> None:
    files = remember(str(two_classes(tmp_path, ("cup/big", "cup:big"))), str(tmp_path / "memory"), model_dir)
    assert [path.name for path in files] == ["cup_big.fsmem", "cup_big-2.fsmem"]
    assert read_support(tmp_path / "memory").memory_files == {"cup/big": files[0], "cup:big": files[1]}
    renamed = shutil.copy(files[0], tmp_path / "mine.fsmem")
    assert read_support(renamed).class_names() == [load_memory(renamed).class_name] == ["cup/big"]
    shutil.copy(files[0], tmp_path / "memory" / "again.fsmem")
    with pytest.raises(ValueError, match=r"again\.fsmem' and .*cup_big\.fsmem' both remember class 'cup/big'; take"):
        read_support(tmp_path / "memory")


# ---- what is read


def hinted(folder: Path, count: int = 3) -> Path:
    write_references(folder, {"cat": count})
    (folder / "cat" / "0.json").write_text('{"negative": true}')
    return folder


def test_no_more_is_read_than_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def reading(path: Path) -> np.ndarray:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(annotated, "read_image", reading)
    assert len(read_support(hinted(tmp_path / "refs"), max_references=2).references["cat"]) == 2
    assert [path.name for path in read] == ["0.jpg", "1.jpg"]
    assert len(read_support(tmp_path / "refs", max_references=0).references["cat"]) == 3


@pytest.mark.parametrize("write", [hinted, lambda folder, count: write_references(folder, {"cat": count})])
def test_what_is_hidden_among_references_is_left_out(model_dir: str, tmp_path: Path, write: Any) -> None:
    refs = write(tmp_path / "refs", 1)
    before = read_support(refs)
    shutil.copytree(refs / "cat", refs / ".ipynb_checkpoints")
    for name in ("._0.jpg", "._0.json", "._0.png"):
        (refs / "cat" / name).write_bytes(b"a Mac's companion file")
    assert read_support(refs).digest() == before.digest() and read_support(refs).class_names() == ["cat"]
    shutil.rmtree(refs)
    write_references(refs, {"cat": 1})
    (file,) = remember(str(refs), str(tmp_path / "memory"), model_dir)
    (tmp_path / "memory" / "._cat.fsmem").write_bytes(b"a Mac's companion file")
    assert read_support(tmp_path / "memory").memory_files == {"cat": file}


def test_findings_say_how_probable_the_class_is(model_dir: str, tmp_path: Path) -> None:
    engine, image = open_engine(model_dir, device="cpu"), scene(seed=2)[0]
    references = read_support(write_references(tmp_path / "refs", {"cat": 1})).references["cat"]
    found = next(engine.segment([engine.remember(references)], image))
    model = load(model_dir)
    memory = model.remember([Reference(references[0].image, mask=references[0].mask)])
    assert found.presence == pytest.approx(model.segment(memory, image).presence, abs=1e-4)
