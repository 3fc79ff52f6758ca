"""A service of small models, its client, and files to send. Run as a script it serves a colour, without torch."""

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fsdino.base.reference import Reference, reference_arrays
from fsdino.base.result import Segmentation
from fsdino.serve.command import listening, run
from fsdino.serve.limits import Limits
from fsdino.serve.service import Service
from fsdino.serve.store import MemoryStore

KEY = "a-key-of-tests-only"
LIMITS = Limits(
    max_upload_mb=1, max_megapixels=1, max_references=5, max_images=3, max_classes=2, max_memories=4, max_loaded=1
)


class Colour:
    """An engine that remembers the mean colour of the object and finds what is near it."""

    threshold = 0.5
    name = "colours"

    def __init__(self, print_: str = "c" * 16) -> None:
        self._print = print_

    def fingerprint(self) -> str:
        return self._print

    def remember(self, references: Sequence[Reference]) -> Any:
        return np.mean([image[mask].mean(0) for image, mask in map(reference_arrays, references)], axis=0)

    def join(self, memories: Sequence[Any]) -> Sequence[Any]:
        return list(memories)

    def find(self, joined: Sequence[Any], image: np.ndarray) -> Iterator[Segmentation]:
        for colour in joined:
            probs = 1 - np.abs(image - colour).max(-1).astype(np.float32) / 255
            yield Segmentation(probs > self.threshold, probs, float(probs.max()), bool(probs.max() > 0.5), 0.75)

    def pack(self, memory: Any) -> dict[str, np.ndarray]:
        return {"colour": memory[None].astype(np.float32)}

    def unpack(self, arrays: dict[str, np.ndarray]) -> Any:
        return arrays["colour"][0]


def png(array: np.ndarray) -> bytes:
    """An image or a mask (255 on the object) as a file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def square(side: int = 40, top: int = 8, colour: tuple[int, int, int] = (250, 10, 10)) -> tuple[bytes, bytes]:
    """An image with a coloured square and its mask, as files."""
    image, mask = np.full((side, side + 10, 3), 90, np.uint8), np.zeros((side, side + 10), np.uint8)
    image[top : top + 12, 5:20], mask[top : top + 12, 5:20] = colour, 255
    return png(image), png(mask)


def files(**parts: Any) -> list[tuple[str, tuple[str, bytes]]]:
    """Parts of a form: field to bytes or a list of them, each with a file's name."""
    lists = {name: [part] if isinstance(part, bytes) else part for name, part in parts.items()}
    return [(name, (f"{name} {i}.png", data)) for name, part in lists.items() for i, data in enumerate(part)]


def taught(client: Any, class_name: str = "square", **form: Any) -> str:
    """The id of a new memory of the coloured square."""
    image, mask = square()
    answer = client.post("/v1/memories", files=files(images=image, masks=mask), data={"class_name": class_name, **form})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["memories"][0]["id"])


if __name__ == "__main__":
    service = Service({"colour": Colour()}, MemoryStore(Path(sys.argv[1]), 10), Limits())
    run(service, listening("127.0.0.1", int(sys.argv[2])), "127.0.0.1", None, quiet=False)
