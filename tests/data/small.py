"""An index in memory, and the files that small data sets on disk are made of."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from fsdino.data.class_index import ClassIndex

REPOSITORY = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 80, 100


def shared_data(folder: str) -> Path:
    """A folder of real photographs; skips the test where they are not at hand."""
    base = Path(os.environ.get("FSDINO_SHARED", REPOSITORY.parent / "shared" / "data"))
    if not (base / folder).is_dir():
        pytest.skip(f"real photographs '{base / folder}' are not here; set FSDINO_SHARED to the folder that holds them")
    return base / folder


class MemoryIndex(ClassIndex):
    """Classes with images made of squares: class c is a square of value 40 c + 50 in an image named `c_k`."""

    def __init__(self, num_classes: int = 8, per_class: int = 5, name: str = "memory", side: int = 32) -> None:
        self.name, self.side = name, side
        self.class_names = {c: f"square{c}" for c in range(num_classes)}
        self.folds = [list(range(f, num_classes, 4)) for f in range(4)]
        self._images = {c: [f"{c}_{k}" for k in range(per_class)] for c in self.class_names}

    def images(self, class_id: int) -> list[str]:
        return list(self._images[class_id])

    def _place(self, image_id: str) -> dict[int, tuple[int, int]]:
        """Top left corner of each square: the class's own, and the next class's in every other image."""
        class_id, k = map(int, image_id.split("_"))
        places = {class_id: (2 + k % 3, 3 + k % 4)}
        if k % 2:
            places[(class_id + 1) % len(self.class_names)] = (18, 16)
        return places

    def load_image(self, image_id: str) -> np.ndarray:
        image = np.full((self.side, self.side + 8, 3), 20, np.uint8)
        for c, (y, x) in self._place(image_id).items():
            image[y : y + 12, x : x + 12] = (40 * c + 50) % 256
        return image

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        mask = np.zeros((self.side, self.side + 8), np.uint8)
        if class_id in self._place(image_id):
            y, x = self._place(image_id)[class_id]
            mask[y : y + 12, x : x + 12] = 1
        return mask

    def classes_in(self, image_id: str) -> set[int]:
        return set(self._place(image_id))


def photo(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH), value: int = 120) -> Path:
    """A noisy image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 60, (*size, 3))
    Image.fromarray((value + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def labels(path: Path, array: np.ndarray, palette: bool = False) -> Path:
    """A label map as grey or palette image, or a coloured mask (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array.astype(np.uint8))
    if palette:
        image = image.convert("P")
        image.putdata(array.astype(np.uint8).ravel().tolist())
        image.putpalette([(37 * i) % 256 for i in range(768)])
    image.save(path)
    return path


def block(
    value: int, top: int = 10, left: int = 10, side: int = 50, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> np.ndarray:
    """A map with one square."""
    array = np.zeros(size, np.int64)
    array[top : top + side, left : left + side] = value
    return array


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    return text(path, json.dumps(content))


def square(left: float, top: float, side: float) -> list[float]:
    """A polygon."""
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def rle(mask: np.ndarray, compressed: bool = True) -> dict[str, Any]:
    """RLE of a mask: compressed with text counts, or the plain lists of COCO's crowds."""
    if compressed:
        found = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": found["size"], "counts": found["counts"].decode()}
    runs, last, count = [], 0, 0
    for value in mask.astype(np.uint8).ravel(order="F"):
        if value != last:
            runs.append(count)
            last, count = value, 0
        count += 1
    return {"size": list(mask.shape), "counts": [*runs, count]}


def instance(number: int, image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd,
        "bbox": [10.0, 10.0, 40.0, 40.0], "area": 1.0,
    }  # fmt: skip
