"""What it costs the CPU to bring images to the network, before and after: `python -m benchmarks.cost.input`.

Photographs of 2250 x 1500 pixels, the size of SA-1B's, as JPEGs with one outline each. "Whole" decodes every pixel and
resizes floats (`data.reduce: false`), "reduced" decodes no more than the network's side asks for. Both take turns on
the same images and draws; what counts is the processor's time of this process, which other programs do not lengthen.
`--annotations` measures in their place what the reader of a COCO-format file of so many annotations takes in memory,
beside one that holds the whole file.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.common import RESULTS, Row, provenance, run_script, update_rows
from benchmarks.cost.timing import apart, resident_mb, verdict
from fsdino.base.resize import Resize
from fsdino.cache.image_list import ImageList
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode import TrainEpisodes
from fsdino.data.readers.coco import CocoIndex, coco_folder
from fsdino.data.splits import TrainSet
from fsdino.training.episode_data import EpisodeDataModule
from fsdino.training.episodes import TrainPart

KEY, LEAST, MOST = ("what", "side", "annotations"), ">= 5", "<= 0.5"
Action = Callable[[int], object]


def photographs(folder: Path, count: int, size: tuple[int, int], source: Path | None) -> ClassIndex:
    """So many JPEGs of a size (H, W): enlarged photographs where there are some, else clouds of noise; one class."""
    (folder / "images").mkdir(parents=True)
    files = sorted(source.glob("*.jpg")) if source is not None and source.is_dir() else []
    height, width = size
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    outline = (
        np.stack([width * (0.5 + 0.3 * np.cos(angles)), height * (0.5 + 0.3 * np.sin(angles))], 1).ravel().tolist()
    )
    images, annotations = [], []
    for i in range(count):
        rng = np.random.default_rng(i)
        if files:
            base = np.asarray(
                Image.open(files[i * len(files) // count]).convert("RGB").resize((width, height)), np.float32
            )
        else:
            octaves = [rng.uniform(0, 255 / k, (2 * k, 3 * k, 3)).astype(np.float32) for k in (2, 4, 8, 32, 128)]
            base = sum((cv2.resize(o, (width, height)) for o in octaves), np.zeros((height, width, 3), np.float32))
        # The grain of a sensor, which an enlarged photograph has lost, and which makes a JPEG slow to decode.
        grainy = (base + rng.normal(0, 4, base.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(folder / "images" / f"{i}.jpg", quality=90)
        images.append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "segmentation": [outline], "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ellipse"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    return coco_folder(folder)


def distilled(index: ClassIndex, side: int, reduce: bool) -> Action:
    """An image of stage 1, as a tensor of the network's side."""
    load_reduced = index.load_reduced if reduce else None
    images = ImageList(index.name, tuple(index.all_images()), index.load_image, load_reduced)
    return lambda i: images.squares(i % len(images), Resize(side))


def episode(index: ClassIndex, side: int, reduce: bool) -> Action:
    """A one-shot training episode with crops and colours."""
    images = ImageList(index.name, tuple(index.all_images()), index.load_image)
    none: dict = {"val_index": index, "val_classes": [], "val_episodes": None, "ignore_classes": []}
    chosen = TrainSet(index, [1], annotated=images, images=images, reduce=reduce, **none)
    return EpisodeDataModule(chosen, TrainPart(augment=True), Resize(side)).train_dataset(0).__getitem__


def masks_alone(index: ClassIndex, side: int, reduce: bool) -> Action:
    """A one-shot training episode whose maps are cached: before, its images were read all the same."""
    return TrainEpisodes(index, [1], Resize(side), pixels=not reduce).__getitem__


WHATS = {"stage 1, an image": distilled, "episode, crops": episode, "episode, cached maps": masks_alone}


def written(file: Path, annotations: int) -> None:
    """A COCO-format file of outlines of 28 corners, seven an image."""
    images, rng = -(-annotations // 7), np.random.default_rng(0)
    outlines = [json.dumps([rng.uniform(0, 480, 56).round(2).tolist()]) for _ in range(100)]
    with file.open("w") as out:
        entries = ({"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640} for i in range(images))
        out.write(f'{{"images": [{", ".join(map(json.dumps, entries))}], "annotations": [')
        for i in range(annotations):
            fields = f'"id": {i}, "image_id": {i % images}, "category_id": {1 + i % 80}, "iscrowd": 0'
            out.write(f'{", " if i else ""}{{{fields}, "segmentation": {outlines[i % 100]}}}')
        out.write(f'], "categories": {json.dumps([{"id": c, "name": f"class {c}"} for c in range(1, 81)])}}}')


def by_place(file: Path) -> CocoIndex:
    """The package's reader, which keeps an outline's place in the file."""
    return CocoIndex(file, file.parent)


def whole_file(file: Path) -> dict[int, list[Any]]:
    """What a reader holds that parses the file at once and keeps its outlines as arrays."""
    held: dict[int, list[Any]] = {}
    for entry in json.loads(file.read_text())["annotations"]:
        outline = [np.array(polygon) for polygon in entry["segmentation"]]
        held.setdefault(entry["image_id"], []).append((entry["category_id"], False, outline))
    return held


def memory(read: Callable[[Path], object], file: Path) -> tuple[float, float, float]:
    """Megabytes more than before: afterwards and at the peak; and CPU seconds."""
    before, started = resident_mb() or float("nan"), time.process_time()
    kept = read(file)
    seconds, after = time.process_time() - started, resident_mb() or float("nan")
    del kept
    return after - before, (resident_mb("VmHWM") or float("nan")) - before, seconds


def annotation_rows(folder: Path, annotations: int) -> list[Row]:
    """Both ways to read a file, each in a process of its own."""
    written(folder / "instances.json", annotations)
    rows: list[Row] = []
    for what, read in {"annotations, whole file": whole_file, "annotations, by place": by_place}.items():
        held, peak, seconds = apart(memory, read, folder / "instances.json")
        row = {"what": what, "side": "", "annotations": annotations, "cpu_s": round(seconds, 1)}
        rows.append(
            row | {"held_bytes": round(held * 2**20 / annotations), "peak_bytes": round(peak * 2**20 / annotations)}
        )
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def cpu_ms(action: Action, count: int) -> float:
    """Processor's milliseconds of one call, the mean of so many."""
    started = time.process_time()
    for i in range(count):
        action(i)
    return 1e3 * (time.process_time() - started) / count


def measure(index: ClassIndex, sides: list[int], rounds: int) -> list[Row]:
    """A row for each kind and side; ratios are taken within a round."""
    rows: list[Row] = []
    for what, make in WHATS.items():
        for side in sides:
            count, ways = len(index.all_images()), [make(index, side, reduce) for reduce in (False, True)]
            times = np.array([[cpu_ms(way, count) for way in ways] for _ in range(rounds + 1)][1:])
            is_stage = make is distilled
            ratio = median((times[:, 0] / times[:, 1] if is_stage else times[:, 1] / times[:, 0]).tolist())
            row = {"what": what, "side": side, "whole_ms": median(times[:, 0]), "reduced_ms": median(times[:, 1])}
            row |= {"images_per_cpu_s": 1e3 / median(times[:, 1])} if is_stage else {}
            row |= {"ratio": ratio} | verdict(ratio, LEAST if is_stage else MOST)
            rows.append({name: round(v, 2) if isinstance(v, float) else v for name, v in row.items()})
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def main(
    count: int = 6,
    size: tuple[int, int] = (1500, 2250),
    sides: list[int] = [126, 252, 518],  # noqa: B006 - never changed
    rounds: int = 3,
    source: Path | None = Path("../shared/data/coco386/images"),
    annotations: int = 0,
    csv: Path = RESULTS / "input.csv",
) -> None:
    """Measure images of stage 1 and training episodes at each side.

    Args:
        count: images.
        size: of the images (H, W).
        sides: of the network.
        rounds: in which both ways take turns.
        source: folder of photographs that are enlarged; clouds of noise where it is missing.
        annotations: measure the reader of so many in place of images.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        if annotations:
            about = provenance(seed=0, protocol="bytes of memory an annotation, each way in a process of its own")
            update_rows(csv, [row | about for row in annotation_rows(Path(folder), annotations)], KEY)
            return
        rows = measure(photographs(Path(folder) / "made", count, size, source), sides, rounds)
    said = "photographs" if source is not None and source.is_dir() else "clouds of noise"
    about = provenance(seed=0, protocol=f"{count} JPEGs of {size[1]} x {size[0]} pixels ({said}), CPU time, one thread")
    update_rows(csv, [row | about for row in rows], KEY)


if __name__ == "__main__":
    run_script(main)
