"""Broken input of every kind through the real command line: one sentence, an exit code, never a traceback."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from fsdino.base.digest import told_sha256
from fsdino.base.registry import build
from fsdino.base.storage import save
from fsdino.cli import main
from tests.small import scene, small_segmenter, write_references


@dataclass
class Place:
    """A folder of a test with a good model, good references and good images, to be broken."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def cat(self) -> Path:
        return self.root / "refs" / "cat"

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def predict(self, *options: object, **changed: object) -> list[str]:
        """A command line that would work, but for what is changed."""
        given = {"support": self.root / "refs", "images": self.root / "photos", "out": self.root / "out",
                 "model": self.model} | changed  # fmt: skip
        named = [text for key, value in given.items() for text in (f"--{key}", str(value))]
        return ["predict", *named, *map(str, options)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    save(small_segmenter(), root / "model")
    write_references(root / "refs", {"cat": 1})
    (root / "photos").mkdir()
    Image.fromarray(scene(50, 70, seed=4)[0]).save(root / "photos" / "a.jpg")
    return root


@pytest.fixture
def place(good: Path, tmp_path: Path) -> Place:
    shutil.copytree(good, tmp_path / "place")
    return Place(tmp_path / "place")


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says that it has ten gigapixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def coco(place: Place, **changed: object) -> Path:
    Image.fromarray(scene()[0]).save(place.root / "0.png")
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": 60, "width": 80}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 7, "segmentation": [[5, 5, 40, 5, 40, 40]],
                         "area": 600, "bbox": [5, 5, 35, 35], "iscrowd": 0}],
        "categories": [{"id": 7, "name": "box"}],
    }  # fmt: skip
    return place.write("refs.json", json.dumps(content | changed))


def annotated_with(segmentation: object, image_id: int = 0) -> dict[str, object]:
    entry = {"id": 0, "image_id": image_id, "category_id": 7, "segmentation": segmentation, "area": 9, "iscrowd": 0}
    return {"annotations": [entry | {"bbox": [1, 1, 3, 3]}]}


def changed_config(place: Place, **values: object) -> None:
    path = place.model / "config.json"
    info = json.loads(path.read_text())
    info["args"] |= values
    path.write_text(json.dumps({**info, "sha256": told_sha256(info)}))


def other_memory(place: Place) -> Path:
    save(small_segmenter(seed=1), place.root / "other")
    path = place.root / "cat.fsmem"
    arguments = ["remember", "--support", str(place.cat), "--out", str(path), "--model", str(place.root / "other")]
    assert main(arguments) == 0
    return path


def foreign_memory(place: Place) -> Path:
    save_file({"x": np.zeros(3, np.float32)}, place.root / "cat.fsmem")
    return place.root / "cat.fsmem"


def broken_graphs(place: Place) -> Path:
    for name in ("remember", "segment"):
        place.write(f"graphs/{name}.onnx", "no graph")
    return place.root / "graphs"


def code_checkpoint(place: Place) -> Path:
    torch.save({"state_dict": print}, place.root / "evil.ckpt")
    return place.root / "evil.ckpt"


def floor_method(place: Place) -> Path:
    return save(build("all_foreground", img_size=56), place.root / "floor")


def after(change: Callable[[Place], object], *options: object, **changed: object) -> Callable[[Place], list[str]]:
    """The command line of `Place.predict` once something has been broken."""

    def build(place: Place) -> list[str]:
        change(place)
        return place.predict(*options, **changed)

    return build


def save_mask(mask: np.ndarray) -> Callable[[Place], object]:
    return lambda place: Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(place.cat / "0.png")


# what is broken -> command line, part of the one sentence
BROKEN: dict[str, tuple[Callable[[Place], list[str]], str]] = {
    # references
    "support is not there": (lambda p: p.predict(support=p.root / "none"), "does not exist; expected one of"),
    "support is an empty folder": (lambda p: p.predict(support=(p.root / "e").mkdir() or p.root / "e"), "expected one"),
    "support is a text file": (lambda p: p.predict(support=p.write("a.txt", "x")), "is a single file"),
    "a reference without mask": (after(lambda p: (p.cat / "0.png").unlink()), "has no mask"),
    "a mask without image": (after(lambda p: (p.cat / "0.jpg").unlink()), "holds no images with masks"),
    "an empty mask": (after(save_mask(np.zeros((60, 80)))), "has no foreground pixel"),
    "a mask of another size": (after(save_mask(np.ones((9, 9)))), "is 9x9 pixels"),
    "a mask that is text": (after(lambda p: (p.cat / "0.png").write_text("x")), "cannot be read"),
    "a mask cut short": (after(lambda p: cut(p.cat / "0.png")), "cannot be read"),
    "a reference cut short": (after(lambda p: cut(p.cat / "0.jpg")), "cannot be read"),
    "a reference of no bytes": (after(lambda p: (p.cat / "0.jpg").write_bytes(b"")), "cannot be read"),
    "a reference of ten gigapixels": (after(lambda p: bomb(p.cat / "0.jpg")), "cannot be read"),
    "a COCO file cut short": (lambda p: (path := coco(p), cut(path), p.predict(support=path))[2], "is no JSON file"),
    "a COCO file that is a list": (lambda p: p.predict(support=p.write("a.json", "[]")), "is no JSON file"),
    "a COCO file without masks": (lambda p: p.predict(support=coco(p, annotations=[])), "no class with an image"),
    "a COCO file of numbers": (lambda p: p.predict(support=coco(p, images=[1, 2])), "refs.json'"),
    "a COCO mask of an unknown image": (lambda p: p.predict(support=coco(p, **annotated_with([[1] * 6], 9))),
                                          "which 'images' does not list"),
    "a COCO mask of two corners": (lambda p: p.predict(support=coco(p, **annotated_with([[1, 1, 5, 1]]))),
                                   "has no foreground pixel"),
    "a COCO mask of text": (lambda p: p.predict(support=coco(p, **annotated_with("x"))), "refs.json'"),
    "a COCO image that is not there": (lambda p: (path := coco(p), (p.root / "0.png").unlink(),
                                                    p.predict(support=path))[2], "0.png"),
    "fewer than no references": (lambda p: [*p.predict(), "--max_references", "-1"], "max_references: expected"),
    "a memory cut short": (lambda p: p.predict(support=p.write("cat.fsmem", "x" * 99)), "cannot be read"),
    "a memory of another model": (lambda p: p.predict(support=other_memory(p)), "was remembered by model"),
    "a memory that is none": (lambda p: p.predict(support=foreign_memory(p)), "is not a saved memory, though in"),
    # images and outputs
    "no images": (lambda p: p.predict(images=p.root / "none"), "no images at"),
    "a glob without hits": (lambda p: p.predict(images=f"{p.root}/*.webp"), "no images at"),
    "out is a file": (lambda p: p.predict(out=p.write("out.txt", "x")), "out.txt"),
    "out cannot be made": (lambda p: p.predict(out="/proc/none"), "/proc/none"),
    "out holds other results": (after(lambda p: p.write("out/progress.jsonl", '{"settings": {"tile": 7}}\n')),
                                "holds results of another"),
    "out holds a damaged record": (after(lambda p: p.write("out/progress.jsonl", "x\n")), "progress.jsonl"),
    # models
    "no such model": (lambda p: p.predict(model="nothing"), "no model 'nothing'"),
    "a preset without weights": (lambda p: p.predict(model="b14"), "fsdino models"),
    "a model folder without weights": (after(lambda p: (p.model / "model.safetensors").unlink()), "has no model.safe"),
    "a config that is no JSON": (after(lambda p: (p.model / "config.json").write_text("{")), "is not JSON"),
    "a config with an unknown key": (after(lambda p: changed_config(p, colour=3)), "colour"),
    "a config of other sizes": (after(lambda p: changed_config(p, prompt_dim=64)), "prompt_dim|shape"),
    "a config with an impossible size": (after(lambda p: changed_config(p, img_size=57)), "57"),
    "weights cut short": (after(lambda p: cut(p.model / "model.safetensors")), "cut or damaged"),
    "a checkpoint that is text": (lambda p: p.predict(model=p.write("a.ckpt", "x")), "cannot be read"),
    "a checkpoint with code in it": (lambda p: p.predict(model=code_checkpoint(p)), "cannot be read"),
    "a graph as the model": (lambda p: p.predict(model=p.write("a.onnx", "x")), "--runtime onnx"),
    "graphs that are not there": (lambda p: p.predict("--runtime", "onnx"), "remember.onnx' does not exist; the"),
    "graphs that are damaged": (lambda p: p.predict("--runtime", "onnx", model=broken_graphs(p)), "cut or damaged"),
    # options
    "an option that is missing": (lambda p: ["predict", "--support", "x"], "required: images, out"),
    "an option misspelt": (lambda p: p.predict("--treshold", "0.5"), "--treshold"),
    "an option without value": (lambda p: p.predict("--tile"), "--tile: expected one argument"),
    "text for a number": (lambda p: p.predict("--min_score", "high"), "--min_score: Expected a float"),
    "a score above one": (lambda p: p.predict("--min_score", "2"), "min_score: expected less than or equal to 1"),
    "a threshold of nothing": (lambda p: p.predict("--threshold", "0"), "threshold: expected greater than 0"),
    "a tile of few pixels": (lambda p: p.predict("--tile", "5"), "tile 5 is too small"),
    "no frame of a video": (lambda p: p.predict("--frame_step", "0"), "frame_step: expected greater"),
    "no format": (lambda p: p.predict("--formats", "[]"), "output format 'nothing' is unknown"),
    "openvino on a GPU": (lambda p: p.predict("--runtime", "openvino", "--device", "cuda"), "runs on the CPU, not"),
    "a graph on no device": (lambda p: p.predict("--runtime", "onnx", "--device", "cuda:x"), "unknown to the onnx"),
    "an unknown provider": (lambda p: p.predict("--runtime", "onnx", "--providers", "npu"), "provider 'npu' is unk"),
    "a provider twice": (lambda p: p.predict("--runtime", "onnx", "--providers", "cpu,cpu"), "names one twice"),
    "a provider on another device": (lambda p: p.predict("--runtime", "onnx", "--providers", "cpu", "--device", "cuda"),
                                     "contradict each other"),
    "providers of torch": (lambda p: p.predict("--providers", "cpu"), "--providers are onnxruntime's"),
    "a GPU that is not there": (lambda p: p.predict("--device", "cuda:7"), "'cuda:7' is not available here, where"),
    "a batch below zero": (lambda p: p.predict("--batch", "-1"), "batch: expected greater"),
    "no device": (lambda p: p.predict("--devices", "0"), "devices: expected greater"),
    "one device and two": (lambda p: p.predict("--device", "cuda:1", "--devices", "2"), "names one device"),
    "an unknown format": (lambda p: p.predict("--formats", "labels,gif"), "output format 'gif' is unknown"),
    "an unknown runtime": (lambda p: p.predict("--runtime", "tpu"), "--runtime: Expected a Literal"),
    "an unknown device": (lambda p: p.predict("--device", "abacus"), "is not available here"),
    # the other commands
    "a memory for two classes": (lambda p: (shutil.copytree(p.cat, p.root / "refs" / "dog"),
                                            ["remember", "--support", str(p.root / "refs"), "--out",
                                             str(p.root / "a.fsmem"), "--model", str(p.model)])[1], "one file for 2"),
    "an unknown export format": (lambda p: ["export", "--model", str(p.model), "--out", str(p.root / "o"), "--formats",
                                            "coreml"], "export format 'coreml' is unknown; use safetensors"),
    "an export of no format": (lambda p: ["export", "--model", str(p.model), "--out", str(p.root / "o"), "--formats",
                                          "[]"], "export format 'nothing' is unknown"),
    "an export of another method": (lambda p: ["export", "--model", str(floor_method(p)), "--out", str(p.root / "o")],
                                    "which has no graphs"),
    "a run without recipe": (lambda p: ["run"], "give a recipe to run: --config tiny"),
    "a recipe that is not there": (lambda p: ["run", "--config", str(p.root / "none.yaml")], "none.yaml"),
    "a recipe that is no YAML": (lambda p: ["run", "--config", str(p.write("a.yaml", "{[: x"))], "is not plain YAML"),
    "a recipe with an unknown key": (lambda p: ["run", "--config", str(p.write("a.yaml", "colour: red"))], "colour"),
    "a recipe with text for a number": (lambda p: ["run", "--config", str(p.write("a.yaml", "seed: x"))], "seed"),
    "an unknown data set": (lambda p: ["data", "imagenet9"], "imagenet9"),
    "a data set without its folder": (lambda p: ["episodes", "folder", "--root", str(p.root / "none")], "none"),
    "an episode list that is no JSON": (lambda p: ["episodes", "synthetic", "--verify", str(p.write("a.json", "x"))],
                                        "a.json"),
    "a page without room for images": (lambda p: ["demo", "--max_upload_mb", "0"], "max_upload_mb: expected greater"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_one_sentence(place: Place, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, message = BROKEN[case]
    arguments = build(place)
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"fsdino {arguments[0]}: ") and said.endswith("."), said
    assert "\n" not in said and "Traceback" not in said, said
    assert any(part in said for part in message.split("|")), said


UNREADABLE: dict[str, Callable[[Place], object]] = {
    "cut.jpg": lambda p: (shutil.copy(p.root / "photos" / "a.jpg", p.root / "photos" / "cut.jpg"),
                          cut(p.root / "photos" / "cut.jpg")),
    "text.png": lambda p: p.write("photos/text.png", "no image"),
    "empty.webp": lambda p: p.write("photos/empty.webp", b""),
    "bomb.png": lambda p: bomb(p.root / "photos" / "bomb.png"),
    "film.mp4": lambda p: p.write("photos/film.mp4", b"\x00\x00\x00\x18ftypmp42" + bytes(500)),
    "gone.jpg": lambda p: (p.root / "photos" / "gone.jpg").symlink_to(p.root / "nowhere.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_one_unreadable_image_stops_nothing(place: Place, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    UNREADABLE[name](place)
    code = main(place.predict())
    said = capsys.readouterr().err
    listed = [line for line in said.splitlines() if line.startswith("not read: ")]
    assert code == 1 and len(listed) == 1 and name in listed[0] and "Traceback" not in said
    assert (place.root / "out" / "labels" / "a.png").is_file()


def test_a_folder_of_unreadable_images_still_ends_in_order(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for damage in UNREADABLE.values():
        damage(place)
    place.write("photos/a.jpg", b"x")
    assert main(place.predict()) == 1
    listed = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines() if line.startswith("not read: ")]
    assert listed == sorted(["a.jpg", *(f"{n}/000000" if n == "film.mp4" else n for n in UNREADABLE)])
    shutil.rmtree(place.root / "photos")
    shutil.copytree(place.root / "refs" / "cat", place.root / "photos")
    assert main(place.predict()) == 0, "a second run needs none of them"
