"""Runs exported graphs with onnxruntime, on a machine that need not have torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.base.gate import class_names
from fsdino.base.reference import Reference, image_array, reference_arrays
from fsdino.base.result import GPU_BATCH, MAX_CLASSES_AT_ONCE, Segmentation
from fsdino.base.texts import plain_json
from fsdino.predict.engines.array_resize import ArrayResize
from fsdino.predict.engines.providers import ON_GPU, Hardware

FORMAT_VERSION = 1
METADATA_KEY = "fsdino"
NO_SHA256 = "sha256-of-this-file".ljust(64, "-")  # where a graph's digest will stand
REMEMBER_FILE, SEGMENT_FILE = "remember.onnx", "segment.onnx"
# Axes of the memory's arrays that grow with the references, for files that were written before these were noted.
GROWING = {"tokens": 2, "fg": 1, "bg": 1}
Memory = dict[str, np.ndarray]
Answer = tuple[np.ndarray, np.ndarray, np.ndarray]  # what the segment graph gives


class OnnxEngine:
    """Runs `remember.onnx` and `segment.onnx`, as `fsdino export` writes them.

    Args:
        folder: where both lie.
        threads: of the runtime; 0 takes all cores.
        hardware: what onnxruntime computes on; the CPU when left out.
    """

    def __init__(self, folder: str | Path, threads: int = 0, hardware: Hardware | None = None) -> None:
        self._hardware = hardware or Hardware()
        self._remember, info = self._open(Path(folder) / REMEMBER_FILE, threads)
        self._segment, other = self._open(Path(folder) / SEGMENT_FILE, threads)
        # Graphs of two models fit together in shape, and would find nonsense without a word.
        if info["fingerprint"] != other["fingerprint"]:
            raise ValueError(
                f"'{folder}' mixes two models: {REMEMBER_FILE} is of {info['fingerprint']}, {SEGMENT_FILE} of "
                f"{other['fingerprint']}; export both again."
            )
        self.info = info
        self.threshold = float(info["threshold"])
        self.name = str(info.get("method", ""))
        self.missed_classes = class_names(info.get("missed_classes"), str(folder))
        self.resize = ArrayResize(int(info["img_size"]), str(info["resize_mode"]))
        self.batch = GPU_BATCH if self._segment.get_providers()[0] in ON_GPU else 1
        self._memory_names = [output.name for output in self._remember.get_outputs()]

    def open_graph(self, path: Path, threads: int) -> Any:
        """Open one graph; what comes back has onnxruntime's `run`, `get_outputs` and `get_modelmeta`."""
        return self._hardware.open(path, threads)

    def _open(self, path: Path, threads: int) -> tuple[Any, dict[str, Any]]:
        """Open a graph and read what the export noted in it."""
        if not path.is_file():
            raise FileNotFoundError(
                f"'{path}' does not exist; the runtime needs a folder with {REMEMBER_FILE} and {SEGMENT_FILE}, made "
                "by `fsdino export` with the format onnx."
            )
        session = self.open_graph(path, threads)
        noted = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if noted is None:
            raise ValueError(f"'{path}' is an ONNX graph, but not one that `fsdino export` wrote.")
        return session, _checked(noted, path)

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        return str(self.info["fingerprint"])

    def remember(self, references: Sequence[Reference]) -> Memory:
        """See `Engine.remember`."""
        for one in references:
            if one.mask is None or one.negative:
                raise ValueError(
                    f"{one.name}: an exported graph takes masks of the object alone; use --runtime torch for the rest."
                )
        pairs = [reference_arrays(one) for one in references]
        masks = np.stack([self.resize.soft_mask(mask) for _, mask in pairs])
        return self.encode(np.stack([self.resize.image(image) for image, _ in pairs]), masks)

    def join(self, memories: Sequence[Memory]) -> list[Memory]:
        """See `Engine.join`."""
        starts = range(0, len(memories), MAX_CLASSES_AT_ONCE)
        growing = self.info.get("growing", GROWING)
        return [stack_arrays(memories[start : start + MAX_CLASSES_AT_ONCE], growing) for start in starts]

    def find(self, joined: Sequence[Memory], image: np.ndarray) -> Iterator[Segmentation]:
        """See `Engine.find`."""
        array = image_array(image, "image")
        images, size = self.resize.image(array)[None], (array.shape[0], array.shape[1])
        for memory in joined:
            yield from self._segmentations([part[0] for part in self.decode(memory, images)], size)

    def find_batch(self, joined: Sequence[Memory], images: Sequence[np.ndarray]) -> list[Iterator[Segmentation]]:
        """See `Engine.find_batch`."""
        arrays = [image_array(image, f"image {i}") for i, image in enumerate(images)]
        squares = np.stack([self.resize.image(array) for array in arrays])
        # The network's small answers of all images are kept; what is of the images' own size is made one by one.
        answers = [self.decode(memory, squares) for memory in joined]
        return [self._of_image(answers, i, array.shape[:2]) for i, array in enumerate(arrays)]

    def _of_image(self, answers: Sequence[Answer], number: int, size: tuple[int, ...]) -> Iterator[Segmentation]:
        for answer in answers:
            yield from self._segmentations([part[number] for part in answer], (size[0], size[1]))

    def _segmentations(self, answer: Sequence[np.ndarray], size: tuple[int, int]) -> Iterator[Segmentation]:
        """One image's mask logits (N, s, s), predicted IoU (N,) and presence logits (N,) at the image's own size."""
        for logits, iou, presence in zip(*answer):
            probs = 1 / (1 + np.exp(-self.resize.invert(logits, size)))
            present = bool(presence > 0)
            # Compared in float32, as torch does: a pixel exactly at the threshold falls the same way in both.
            mask = (probs > np.float32(self.threshold)) & present
            likely = float(1 / (1 + np.exp(-presence)))
            yield Segmentation(mask, probs, float(iou.clip(0.0, 1.0)), present, likely)

    def encode(self, images: np.ndarray, masks: np.ndarray) -> Memory:
        """Images (K, 3, S, S) and masks (K, S, S), float32 in [0, 1], to a memory of batch 1."""
        outputs = self._remember.run(None, {"support_images": images, "support_masks": masks})
        return dict(zip(self._memory_names, outputs))

    def decode(self, memory: Memory, images: np.ndarray) -> Answer:
        """A memory of batch N and images (B, 3, S, S), float32 in [0, 1], to what the segment graph gives.

        Returns:
            Mask logits (B, N, s, s), predicted IoU (B, N), presence logits (B, N).
        """
        logits, iou, presence = self._segment.run(None, {"images": images, **memory})
        return logits, iou, presence

    def pack(self, memory: Memory) -> dict[str, np.ndarray]:
        """See `Engine.pack`."""
        return dict(memory)

    def unpack(self, arrays: dict[str, np.ndarray]) -> Memory:
        """See `Engine.unpack`."""
        return {name: arrays[name] for name in self._memory_names}


def _checked(noted: str, path: Path) -> dict[str, Any]:
    """What the export noted in a graph's file, once it is known to be that of the file."""
    try:
        info = dict(plain_json(noted))
        version = int(info["format_version"])
        # Before the rest, which another version may have under other names.
        if version <= FORMAT_VERSION:
            whole = (
                int(info["img_size"]) > 0 and 0 < float(info["threshold"]) < 1 and isinstance(info["fingerprint"], str)
            )
            # Files of earlier versions have no digest.
            told = str(info.get("sha256", ""))
            whole &= told in ("", graph_sha256(path.read_bytes(), told))
    except (ValueError, KeyError, TypeError, OverflowError):
        version, whole = 0, False
    if version > FORMAT_VERSION:
        said = f"'{path}' has format version {version}"
        raise ValueError(f"{said}, this fsdino reads up to {FORMAT_VERSION}; update fsdino.")
    if not whole:
        raise ValueError(f"'{path}' is cut or damaged (its notes or its sha256 are others); export it again.")
    return info


def graph_sha256(data: bytes, noted: str = NO_SHA256) -> str:
    """Sha256 of a graph's file as it was before its own digest was noted in it."""
    # Of equal length, so that taking one for the other moves nothing, and no reader of ONNX is needed here.
    return hashlib.sha256(data.replace(noted.encode(), NO_SHA256.encode(), 1)).hexdigest()


def stack_arrays(memories: Sequence[Memory], growing: Mapping[str, int]) -> Memory:
    """One memory of batch N of N classes' of batch 1, whatever their numbers of references.

    `growing` has the axes of arrays that grow with the references; they are filled up with zeros.
    """
    stacked = {}
    for name in memories[0]:
        parts = [memory[name] for memory in memories]
        if axis := growing.get(name):
            longest = max(part.shape[axis] for part in parts)
            parts = [_fill(part, longest, axis) for part in parts]
        stacked[name] = np.concatenate(parts)
    return stacked


def _fill(array: np.ndarray, length: int, axis: int) -> np.ndarray:
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    # With zeros, also in the weights: a position of weight 0 changes nothing.
    return np.pad(array, widths)


def open_session(path: Path, threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` of a file, on the CPU; 0 threads takes all cores."""
    return Hardware().open(path, threads)
