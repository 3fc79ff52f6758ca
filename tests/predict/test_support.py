"""What `fsdino predict` looks for: one rule for images from Python and from files, class names, how much is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino import load
from fsdino.base.reference import Reference, image_array, reference_arrays
from fsdino.data.images import read_image, read_mask
from fsdino.predict import hints, predict, read_support, remember
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.formats import annotation
from fsdino.predict.memory_file import load_memory
from tests.small import references, refuses, scene, write_references


def odd_images(folder: Path) -> dict[str, Path]:
    """Images of every mode that cameras and tools write."""
    folder.mkdir()
    rgb, _ = scene(40, 60, seed=3)
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, :30] = 0
    Image.fromarray(rgb).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(folder / "alpha.png")
    Image.fromarray(rgb).convert("P").save(folder / "palette.png")
    Image.fromarray(rgb).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(rgb[..., 0]).save(folder / "grey.png")
    Image.fromarray(rgb[..., 0] > 60).save(folder / "bits.png")
    Image.fromarray(rgb[:1, :1]).save(folder / "pixel.png")
    Image.fromarray(rgb[:3]).save(folder / "strip.webp")
    return {path.stem: path for path in folder.iterdir()}


def test_images_are_the_same_from_python_and_from_files(model_dir: str, tmp_path: Path) -> None:
    files = odd_images(tmp_path / "photos")
    refs = write_references(tmp_path / "refs", {"cat": 1})
    model = load(model_dir)
    predict(str(refs), str(tmp_path / "photos"), str(tmp_path / "out"), EngineChoice(model_dir))
    image, mask = (Image.open(refs / "cat" / name) for name in ("0.jpg", "0.png"))
    memory = model.remember([Reference(image, mask=mask)])
    arrays = {name: image_array(Image.open(path), name) for name, path in files.items()}
    for name, path in files.items():
        assert np.array_equal(arrays[name], read_image(path))
        found = model.segment(memory, Image.open(path)).mask
        labels = np.asarray(Image.open(tmp_path / "out" / "labels" / f"{name}.png"))
        assert found.shape == labels.shape and np.array_equal(found, labels == 1), name
    sizes = {name: array.shape[:2] for name, array in arrays.items()}
    assert {sizes.pop("turned"), sizes.pop("pixel"), sizes.pop("strip")} == {(60, 40), (1, 1), (3, 60)}
    assert set(sizes.values()) == {(40, 60)}
    assert (arrays["alpha"][:, :30] == 255).all(), "laid on white"
    assert len(np.unique(arrays["deep"])) > 9, "not cut off at 255"


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
        found = reference_arrays(Reference(image, mask=Image.open(path)))[1]
        assert np.array_equal(found, read_mask(path) == 1), path.name
        assert (found != mask).mean() < 0.01, path.name


def names_and_counts(path: Path, **options: Any) -> dict[str, int]:
    return {name: len(references) for name, references in read_support(path, **options).references.items()}


def test_a_folder_per_class(support_dir: Path) -> None:
    assert names_and_counts(support_dir) == {"cat": 2, "dog": 1}
    assert names_and_counts(support_dir, max_references=1) == {"cat": 1, "dog": 1}
    assert names_and_counts(support_dir / "cat") == {"cat": 2}, "the folder of one class will do"


def test_trees_of_images_and_masks(support_dir: Path, tmp_path: Path) -> None:
    for file in support_dir.glob("*/*"):
        tree = tmp_path / ("images" if file.suffix == ".jpg" else "masks") / file.parent.name
        tree.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tree)
    assert names_and_counts(tmp_path) == {"cat": 2, "dog": 1}
    assert read_support(tmp_path).digest() == read_support(support_dir).digest()


def write_coco(folder: Path, names: tuple[str, ...] = ("box",)) -> Path:
    """A COCO file with two images; the second one's mask is of the last class."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for i, reference in enumerate(references(2)):
        Image.fromarray(reference.image).save(folder / "images" / f"{i}.png")
        height, width = reference.mask.shape
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        category = min(i + 1, len(names))
        annotations.append({"id": i, "image_id": i, **annotation(reference.mask, category, 1.0)})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "refs.json").write_text(json.dumps(content))
    return folder / "refs.json"


def test_a_coco_file(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    found = read_support(path).references["box"]
    for reference, expected in zip(found, references(2)):
        assert np.array_equal(reference.image, expected.image) and np.array_equal(reference.mask, expected.mask)
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    assert names_and_counts(path, images=tmp_path / "elsewhere") == {"box": 2}


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    refuses("'refs' has two classes of the name 'cup'; rename one", read_support, write_coco(tmp_path, ("cup", "cup")))


def test_memories_of_like_names_stay_apart_and_keep_their_names(model_dir: str, tmp_path: Path) -> None:
    support = write_coco(tmp_path, ("cup/big", "cup:big"))
    files = remember(str(support), str(tmp_path / "memory"), EngineChoice(model_dir))
    assert [path.name for path in files] == ["cup_big.fsmem", "cup_big-2.fsmem"]
    assert read_support(tmp_path / "memory").memory_files == {"cup/big": files[0], "cup:big": files[1]}
    renamed = shutil.copy(files[0], tmp_path / "mine.fsmem")
    assert read_support(renamed).class_names() == [load_memory(renamed).class_name] == ["cup/big"]
    shutil.copy(files[0], tmp_path / "memory" / "again.fsmem")
    with pytest.raises(ValueError, match=r"again\.fsmem' and .*cup_big\.fsmem' both remember class 'cup/big'; take"):
        read_support(tmp_path / "memory")


def hinted(folder: Path, count: int = 3) -> Path:
    write_references(folder, {"cat": count})
    (folder / "cat" / "0.json").write_text('{"negative": true}')
    return folder


def test_no_more_is_read_than_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def reading(path: Path) -> np.ndarray:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(hints, "read_image", reading)
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
    (file,) = remember(str(refs), str(tmp_path / "memory"), EngineChoice(model_dir))
    (tmp_path / "memory" / "._cat.fsmem").write_bytes(b"a Mac's companion file")
    assert read_support(tmp_path / "memory").memory_files == {"cat": file}


def test_the_engine_says_how_probable_the_class_is(model_dir: str, support_dir: Path) -> None:
    engine, image = EngineChoice(model_dir, device="cpu").open(), scene(seed=2)[0]
    memory = engine.remember(read_support(support_dir).references["cat"])
    (found,) = engine.find(engine.join([memory]), image)
    alone = load(model_dir).segment(memory, image)
    assert found.presence == pytest.approx(alone.presence, abs=1e-4) and found.presence is not None


def test_saved_memories_by_a_glob(model_dir: str, support_dir: Path, tmp_path: Path) -> None:
    files = remember(str(support_dir), str(tmp_path / "mems"), EngineChoice(model_dir))
    assert sorted(read_support(f"{tmp_path}/mems/*.fsmem").memory_files.values()) == sorted(files)
    refuses("matches other files than saved memories, or none", read_support, f"{tmp_path}/mems/*.txt")
