"""`fsdino predict` and `fsdino remember`: layouts, image kinds, outputs, continuing, and one sentence per mistake."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from fsdino.base.registry import build, save
from fsdino.base.storage import save
from fsdino.cli import main
from fsdino.predict import Annotated, Engine, Finding, predict, read_support, remember, resolve
from fsdino.predict.engine import segment_tiled, tiles
from fsdino.predict.engines.torch import TorchEngine
from fsdino.predict.formats import annotation, instances, polygons, yolo_lines
from fsdino.predict.images import find_images, read_ahead
from fsdino.predict.memory_file import load_memory
from fsdino.predict.outputs import Outputs
from tests.small import annotated, scene, small_segmenter, write_references


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(small_segmenter(), tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def support_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_references(tmp_path_factory.mktemp("refs"), {"cat": 2, "dog": 1})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.jpg", "b.png", "deep/c.jpg")):
        Image.fromarray(scene(50 + i, 70, seed=20 + i)[0]).save(folder / name)
    return folder


# ---- several classes in one label map


def finding(probs: Any, score: float = 1.0, present: bool = True) -> Finding:
    return Finding(np.asarray(probs, np.float32), score, present)


def test_overlaps_go_to_the_more_probable_class() -> None:
    found = [finding([[0.9, 0.6, 0.4]]), finding([[0.2, 0.8, 0.45]]), finding([[1.0, 1.0, 1.0]], present=False)]
    together = resolve(iter(found), (1, 3), 0.5)
    assert together.labels.tolist() == [[1, 2, 0]] and together.scores == [1.0, 1.0, 0.0]
    np.testing.assert_allclose(together.probs, [[0.9, 0.8, 0.0]], atol=1e-3)


def test_low_scores_count_as_absent() -> None:
    found = resolve(iter([finding([[0.9]], score=0.2)]), (1, 1), 0.5, min_score=0.3)
    assert found.labels.tolist() == [[0]] and found.scores == [0.0]


@pytest.mark.parametrize("overrides", [{}, {"variant": "compact"}, {"dense_source": "adapter"}, {"reader": "pivot"}])
def test_classes_at_once_equal_single_calls(overrides: dict[str, Any]) -> None:
    engine = TorchEngine(small_segmenter(**overrides))
    memories = [engine.remember(annotated(k, seed=k)) for k in (1, 3, 2)]
    image = scene(41, 77, seed=30)[0]
    together = list(engine.segment(memories, image))
    for memory, other in zip(memories, together):
        alone = next(engine.segment([memory], image))
        assert np.abs(alone.probs - other.probs).max() < 1e-4 and alone.score == pytest.approx(other.score, abs=1e-5)


# ---- tiles


class Whiteness(Engine):
    """Calls the image's brightness its probability: what a tiled run must put together again."""

    fingerprint, threshold, positional = "white", 0.5, False

    def remember(self, references: Sequence[Annotated]) -> Any:
        return None

    def segment(self, memories: Sequence[Any], image: np.ndarray) -> Iterator[Finding]:
        for _ in memories:
            probs = image[..., 0].astype(np.float32) / 255
            yield Finding(probs, float(probs.max()), bool(probs.max() > 0.5))

    def pack(self, memory: Any) -> dict[str, np.ndarray]:
        return {}

    def unpack(self, arrays: dict[str, np.ndarray]) -> Any:
        return None


@pytest.mark.parametrize("size", [(100, 100), (64, 200), (65, 64), (257, 130)])
def test_tiles_cover_the_image_and_overlap(size: tuple[int, int]) -> None:
    seen = np.zeros(size, int)
    windows = tiles(size, 64)
    for top, left, bottom, right in windows:
        assert bottom - top == 64 and right - left == 64
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    rows = sorted({top for top, _, _, _ in windows})
    assert all(b - a <= 48 for a, b in pairwise(rows)), "neighbours share a quarter"


def test_tiled_probabilities_are_put_together_again() -> None:
    image = np.zeros((150, 90, 3), np.uint8)
    image[:, :] = np.linspace(0, 255, 150)[:, None, None]
    found = segment_tiled(Whiteness(), [None], image, 64)[0]
    expected = image[..., 0] / 255
    lower = slice(90, None)  # above, whole windows are dark, so absent there
    assert found.present and found.score == pytest.approx(1.0)
    np.testing.assert_allclose(found.probs[lower], expected[lower], atol=1e-6)


# ---- what to look for


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


def write_coco(folder: Path) -> Path:
    (folder / "images").mkdir()
    images, annotations = [], []
    for i, reference in enumerate(annotated(2)):
        Image.fromarray(reference.image).save(folder / "images" / f"{i}.png")
        height, width = reference.mask.shape
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        annotations.append({"id": i, "image_id": i, **annotation(reference.mask, 7, 1.0)})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "box"}]}
    (folder / "refs.json").write_text(json.dumps(content))
    return folder / "refs.json"


def test_a_coco_file(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    found = read_support(path).references["box"]
    for reference, expected in zip(found, annotated(2)):
        assert np.array_equal(reference.image, expected.image) and np.array_equal(reference.mask, expected.mask)
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    assert names_and_counts(path, images=tmp_path / "elsewhere") == {"box": 2}


# ---- which images


def test_images_are_found_by_folder_glob_and_name(photos: Path) -> None:
    (photos / "notes.txt").write_text("no image")
    (photos / "._a.jpg").write_bytes(b"a Mac's companion file")
    everything = ["a.jpg", "b.png", "deep/c.jpg"]
    assert [item.name for item in find_images(str(photos))] == everything
    assert [item.name for item in find_images(f"{photos}/**/*.*")] == everything
    assert [item.name for item in find_images(f"{photos}/*.jpg")] == ["a.jpg"]
    assert [item.name for item in find_images(str(photos / "b.png"))] == ["b.png"]
    assert [item.name for item in find_images(str(photos), exclude=photos / "deep")] == everything[:2]


def write_video(path: Path, frames: int = 5) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))  # type: ignore[attr-defined]
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return path


def test_video_frames_come_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi")
    items = find_images(str(tmp_path), frame_step=2)
    assert [item.name for item in items] == ["clip.avi/000000", "clip.avi/000002", "clip.avi/000004"]
    brightness = [float(np.mean(image)) for _, image in read_ahead(items)]  # type: ignore[arg-type]
    np.testing.assert_allclose(brightness, [0, 80, 160], atol=4)
    assert float(items[0].read().mean()) < 4, "going back works too"


def test_reading_ahead_keeps_order_and_hands_errors_on(photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"nothing")
    results = list(read_ahead(find_images(str(photos)), ahead=1))
    assert [item.name for item, _ in results] == ["a.jpg", "b.png", "broken.jpg", "deep/c.jpg"]
    assert [isinstance(image, Exception) for _, image in results] == [False, False, True, False]


# ---- output formats


def ring() -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    mask[5:50, 10:60], mask[15:25, 20:30], mask[30:40, 40:50] = 1, 0, 0
    mask[52:58, 70:79], mask[0, 0] = 1, 1
    return mask


def test_polygons_fill_to_the_same_mask() -> None:
    filled = np.zeros((60, 80), np.uint8)
    for polygon in polygons(ring()):
        cv2.fillPoly(filled, [polygon.astype(np.int32)], 1)
    expected = ring()
    expected[0, 0] = 0  # one pixel has no area
    assert np.array_equal(filled, expected)


def test_yolo_lines_read_back_to_the_same_mask() -> None:
    labels = ring() * 2
    filled = np.zeros((60, 80), np.uint8)
    for line in yolo_lines(labels, ["cat", "dog"]).splitlines():
        kind, *values = line.split()
        assert kind == "1"
        points = np.asarray(values, float).reshape(-1, 2) * (80, 60)
        cv2.fillPoly(filled, [points.astype(np.int32)], 1)  # as YOLO's own loaders do
    assert (filled != ring()).sum() <= 1


def test_coco_annotations_hold_the_mask_exactly() -> None:
    entry = annotation(ring(), 3, 0.75)
    assert np.array_equal(rle_tools.decode(entry["segmentation"]), ring())
    assert entry["area"] == ring().sum() and entry["bbox"] == [0, 0, 79, 58] and entry["category_id"] == 3
    parts = instances(ring())
    assert np.array_equal(np.sum(parts, axis=0), ring()) and len(parts) == 3
    assert [int(part.sum()) for part in parts] == sorted((int(part.sum()) for part in parts), reverse=True)


# ---- the whole


def test_predict_writes_every_format(model_dir: str, support_dir: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    formats = ["labels", "overlays", "coco", "yolo"]
    assert predict(str(support_dir), str(photos), str(out), model_dir, formats=formats) == 0  # type: ignore[arg-type]
    coco = json.loads((out / "predictions.json").read_text())
    assert [entry["name"] for entry in coco["categories"]] == ["cat", "dog"]
    assert json.loads((out / "classes.json").read_text()) == {"1": "cat", "2": "dog"}
    for image in coco["images"]:
        stem = os.path.splitext(image["file_name"])[0]
        shown = np.asarray(Image.open(photos / image["file_name"]))
        labels = np.asarray(Image.open(out / "labels" / f"{stem}.png"))
        assert labels.shape == shown.shape[:2] == (image["height"], image["width"])
        drawn = np.asarray(Image.open(out / "overlays" / f"{stem}.jpg"))
        assert drawn.shape == (6 * shown.shape[0], 6 * shown.shape[1], 3), "small images are enlarged for the eye"
        assert (out / "yolo" / f"{stem}.txt").exists()
        rebuilt = np.zeros_like(labels)
        for entry in coco["annotations"]:
            if entry["image_id"] == image["id"]:
                rebuilt[rle_tools.decode(entry["segmentation"]) == 1] = entry["category_id"]
        assert np.array_equal(rebuilt, labels), "masks of one image do not overlap"
    assert (out / "scores.csv").read_text().count("\n") == 1 + 3 * 2


def test_a_second_run_continues(
    model_dir: str, support_dir: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []
    original = TorchEngine.segment

    def counted(self: TorchEngine, memories: Sequence[Any], image: np.ndarray) -> Iterator[Finding]:
        seen.append(image.shape)
        return original(self, memories, image)

    monkeypatch.setattr(TorchEngine, "segment", counted)
    run = lambda **options: predict(str(support_dir), str(photos), str(out), model_dir, **options)  # noqa: E731
    run()
    record = (out / "progress.jsonl").read_text().splitlines(keepends=True)
    (out / "progress.jsonl").write_text("".join(record[:2]) + record[2][:10])  # killed while it wrote a line
    assert len(seen) == 3
    run()
    assert len(seen) == 5, "one image was done, the other two are made again"
    assert sorted((out / "progress.jsonl").read_text().splitlines(True)[1:]) == sorted(record[1:])
    run()
    assert len(seen) == 5
    with pytest.raises(ValueError, match=r"results of another min_score \(0.0, now 0.5\).*--overwrite"):
        run(min_score=0.5)
    run(min_score=0.5, overwrite=True)
    assert len(seen) == 8


def test_unreadable_images_are_listed_at_the_end(
    model_dir: str, support_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "a.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "film.mp4").write_bytes(b"no film")
    out = tmp_path / "out"
    assert predict(str(support_dir), str(photos), str(out), model_dir) == 1
    listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not read: ")]
    assert [line.split(": ")[1] for line in listed] == ["cut.jpg", "empty.png", "film.mp4/000000"]
    assert len(list((out / "labels").rglob("*.png"))) == 3
    for name in ("cut.jpg", "empty.png", "film.mp4"):
        (photos / name).unlink()
    assert predict(str(support_dir), str(photos), str(out), model_dir) == 0


def odd_images(folder: Path) -> dict[str, tuple[int, int]]:
    """Images of every mode that cameras and tools write, and their sizes as a viewer shows them."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 60), dtype=np.uint8)
    rgb = np.stack([grey] * 3, axis=-1)
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    folder.mkdir()
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(np.dstack([rgb, grey])).save(folder / "alpha.png")
    Image.fromarray(grey.astype(np.uint16) * 256).save(folder / "deep.png")
    Image.fromarray(rgb).convert("P").save(folder / "palette.png")
    Image.fromarray(rgb).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(grey > 128).save(folder / "bits.png")
    Image.fromarray(rgb).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(rgb[:1, :1]).save(folder / "pixel.png")
    Image.fromarray(rgb[:3]).save(folder / "strip.webp")
    sizes = {path.stem: (40, 60) for path in folder.iterdir()}
    return {**sizes, "turned": (60, 40), "pixel": (1, 1), "strip": (3, 60)}


def test_every_mode_of_image_at_its_own_size(model_dir: str, support_dir: Path, tmp_path: Path) -> None:
    sizes = odd_images(tmp_path / "odd")
    assert predict(str(support_dir), str(tmp_path / "odd"), str(tmp_path / "out"), model_dir) == 0
    found = {path.stem: np.asarray(Image.open(path)).shape for path in (tmp_path / "out" / "labels").iterdir()}
    assert found == sizes


def test_outputs_among_the_images_are_not_images(model_dir: str, support_dir: Path, photos: Path) -> None:
    for _ in range(2):
        assert predict(str(support_dir), str(photos), str(photos / "masks"), model_dir) == 0
    assert len(list((photos / "masks" / "labels").rglob("*.png"))) == 3


def test_images_of_one_name_get_outputs_of_their_own(model_dir: str, support_dir: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("a.jpg", "a.png")):
        Image.fromarray(scene(30 + i, 40)[0]).save(tmp_path / name)
    predict(str(support_dir), str(tmp_path), str(tmp_path / "out"), model_dir)
    assert sorted(path.name for path in (tmp_path / "out" / "labels").iterdir()) == ["a.jpg.png", "a.png.png"]


def test_tiles_and_video_through_predict(model_dir: str, support_dir: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.avi", frames=2)
    assert predict(str(support_dir), str(video), str(tmp_path / "out"), model_dir, tile=40) == 0
    assert len(list((tmp_path / "out" / "labels" / "clip.avi").iterdir())) == 2


def test_remembered_classes_give_the_same(model_dir: str, support_dir: Path, photos: Path, tmp_path: Path) -> None:
    files = remember(str(support_dir), str(tmp_path / "memory"), model_dir)
    assert [path.name for path in files] == ["cat.fsmem", "dog.fsmem"]
    one = tmp_path / "mine.fsmem"
    assert main(["remember", str(support_dir / "cat"), "--out", str(one), "--model", model_dir]) == 0
    assert load_memory(one).class_name == "cat" and load_memory(one).thumbnail.shape[2] == 3
    for name, support in (("a", support_dir), ("b", tmp_path / "memory")):
        predict(str(support), str(photos), str(tmp_path / name), model_dir)
    for path in (tmp_path / "a" / "labels").rglob("*.png"):
        twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert (np.asarray(Image.open(path)) != np.asarray(Image.open(twin))).mean() < 0.02


# ---- mistakes


def damaged(change: Callable[[Path], object]) -> Callable[[Path], str]:
    """A support folder of one class with something wrong in it."""

    def build(folder: Path) -> str:
        change(write_references(folder / "refs", {"cat": 1}) / "cat")
        return str(folder / "refs")

    return build


def empty_coco(folder: Path) -> str:
    path = write_coco(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    return str(path)


def save_mask(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(path)


WRONG_SUPPORT = {
    "no such folder": (lambda f: str(f / "none"), "support .* does not exist; expected one of"),
    "an empty folder": (lambda f: str(f), "holds no images with masks; expected one of"),
    "a single image": (lambda f: write_coco(f) and str(f / "images" / "0.png"), "is a single file"),
    "an image without mask": (damaged(lambda c: (c / "0.png").unlink()), "has no mask"),
    "a mask without image": (damaged(lambda c: save_mask(c / "7.png", np.ones((9, 9)))), "has no image"),
    "an empty mask": (damaged(lambda c: save_mask(c / "0.png", np.zeros((60, 80)))), "has no foreground pixel"),
    "a mask of another size": (damaged(lambda c: save_mask(c / "0.png", np.ones((9, 9)))), "is 9x9 pixels"),
    "a damaged mask": (damaged(lambda c: (c / "0.png").write_bytes(b"x")), "cannot be read"),
    "a damaged image": (damaged(lambda c: (c / "0.jpg").write_bytes(b"x")), "cannot be read"),
    "a COCO file without masks": (empty_coco, "no class with an image"),
    "a file that is no JSON": (lambda f: str((f / "a.json").write_text("{") and f / "a.json"), "is no JSON file"),
    "a JSON of another kind": (lambda f: str((f / "a.json").write_text("{}") and f / "a.json"), "has no 'images'"),
    "a damaged memory": (lambda f: str((f / "a.fsmem").write_bytes(b"x") and f / "a.fsmem"), "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG_SUPPORT)
def test_wrong_support_is_one_sentence(model_dir: str, photos: Path, tmp_path: Path, case: str) -> None:
    build, message = WRONG_SUPPORT[case]
    (tmp_path / "case").mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        predict(build(tmp_path / "case"), str(photos), str(tmp_path / "out"), model_dir)
    assert "\n" not in str(caught.value)


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"images": "/nowhere/*.jpg"}, "no images at '/nowhere/\\*.jpg'"),
    "no model": ({"model": "nothing"}, "no model 'nothing'"),
    "format": ({"formats": ["gif"]}, "output format 'gif' is unknown; use one or more of labels"),
    "no format": ({"formats": []}, "output format 'nothing' is unknown"),
    "min_score": ({"min_score": 2.0}, "min_score 2.0 is no score"),
    "threshold": ({"threshold": 0.0}, "threshold 0.0 is no probability"),
    "tile": ({"tile": 5}, "tile 5 is too small"),
    "frame_step": ({"frame_step": 0}, "frame_step 0 is not positive"),
    "runtime": ({"runtime": "tpu"}, "runtime 'tpu' is unknown"),
    "device": ({"device": "cuda:99"}, "is not available here"),
    "onnx device": ({"runtime": "onnx", "device": "cuda"}, "onnx runtime runs on the CPU, not on 'cuda'"),
    "onnx graphs": ({"runtime": "onnx"}, "remember.onnx' does not exist"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options_are_one_sentence(
    model_dir: str, support_dir: Path, photos: Path, tmp_path: Path, case: str
) -> None:
    options, message = WRONG_OPTIONS[case]
    given = {"support": str(support_dir), "images": str(photos), "out": str(tmp_path / "out"), "model": model_dir}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        predict(**{**given, **options})
    assert "\n" not in str(caught.value)


def test_memories_of_another_model_are_refused(model_dir: str, support_dir: Path, photos: Path, tmp_path: Path) -> None:
    remember(str(support_dir), str(tmp_path / "memory"), model_dir)
    other = save(small_segmenter(seed=1), tmp_path / "other")
    with pytest.raises(ValueError, match="was remembered by model"):
        predict(str(tmp_path / "memory"), str(photos), str(tmp_path / "out"), str(other))
    with pytest.raises(ValueError, match="is a saved memory already"):
        remember(str(tmp_path / "memory"), str(tmp_path / "again"), model_dir)
    with pytest.raises(ValueError, match=r"one file for 2 classes \(cat, dog\); name a folder"):
        remember(str(support_dir), str(tmp_path / "all.fsmem"), model_dir)


def test_too_many_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="255 classes at once; a label map holds 254"):
        Outputs(tmp_path, [str(i) for i in range(255)], ["labels"], {}, {})


def test_other_methods_of_the_package_predict_too(support_dir: Path, photos: Path, tmp_path: Path) -> None:
    save(build("all_foreground", img_size=56), tmp_path / "all")
    assert predict(str(support_dir / "cat"), str(photos), str(tmp_path / "out"), str(tmp_path / "all")) == 0
    assert np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png")).min() == 1
