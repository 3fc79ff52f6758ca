"""Saved memories: what a model remembers of one class, as a small file (.fsmem) that only that model reads."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fsdino.base.digest import steady, told_sha256
from fsdino.base.reference import Reference
from fsdino.data.images import UNREADABLE
from fsdino.predict.cut import cut_of
from fsdino.predict.engines import Engine
from fsdino.visualize.overlay import overlay

FORMAT_VERSION = 3
MEMORY_SUFFIX = ".fsmem"
THUMBNAIL_SIDE, MAX_THUMBNAIL_SIDE = 96, 1024  # pixels of what is written, and of what is read
_HEADER_BYTES = 2_000  # names, shapes and offsets in front of the arrays


@dataclass
class SavedMemory:
    """A remembered class.

    Args:
        arrays: as `Engine.pack` gives them.
        thumbnail: a reference (h, w, 3) uint8 with its mask.
        cut: of its own, see `fsdino.predict.cut`; None: the model's.
    """

    class_name: str
    fingerprint: str
    arrays: dict[str, np.ndarray]
    thumbnail: np.ndarray
    cut: float | None = None


def save_memory(memory: SavedMemory, path: str | Path, *, max_bytes: int = 1_000_000) -> Path:
    """Write a memory in the most exact form that fits into `max_bytes`, its image and names included.

    The forms: half precision, 8 bits, 8 bits of fewer positions.
    """
    image = _to_text(memory.thumbnail)
    # Everything but the tokens is small: only they are rounded, and only they are thinned out.
    budget = max_bytes - len(image) - _HEADER_BYTES
    arrays = {name: _half(array) for name, array in memory.arrays.items()}
    if _bytes(arrays) > budget and "tokens" in arrays:
        arrays = _eight_bits(arrays)
        if _bytes(arrays) > budget:
            # The size of what grows with the positions tells how many of them the budget has room for.
            growing = _bytes({name: arrays[name] for name in ("tokens", "tokens_scale", "fg", "bg")})
            room = budget - (_bytes(arrays) - growing)
            arrays = _eight_bits(thin_out(memory.arrays, max(1, room * arrays["fg"].shape[-1] // growing)))
    metadata = {
        "format": "fsmem",
        "format_version": str(FORMAT_VERSION),
        "class_name": memory.class_name,
        "fingerprint": memory.fingerprint,
        "thumbnail": image,
    }
    if memory.cut is not None:
        metadata["cut"] = repr(memory.cut)
    metadata["sha256"] = _digest(arrays, metadata)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and moved: the file is whole or not there, also where the run is killed.
    partial = target.with_name(f".{target.name}.part")
    partial.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))
    steady(partial)
    partial.replace(target)
    return target


def load_memory(path: str | Path, fingerprint: str | None = None) -> SavedMemory:
    """Read a memory, its arrays in float32; `fingerprint` names the model that will use it, None reads any.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is not a saved memory, damaged, too new, or of another model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"saved memory '{path}' does not exist; make it with `fsdino remember`.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dictionary
    except (SafetensorError, OSError) as error:
        raise ValueError(f"saved memory '{path}' cannot be read ({error}); remember the class again.") from error
    if metadata.get("format") != "fsmem":
        raise ValueError(
            f"'{path}' is not a saved memory, though in safetensors form; make one with `fsdino remember`."
        )
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise ValueError(
            f"'{path}' has format version {metadata.get('format_version')}, this fsdino reads {FORMAT_VERSION}; "
            "remember the class again with this version."
        )
    if metadata.get("sha256") != _digest(arrays, metadata):
        raise ValueError(f"saved memory '{path}' is damaged (its sha256 is another); remember the class again.")
    if missing := {"class_name", "fingerprint", "thumbnail"} - metadata.keys():
        raise ValueError(f"saved memory '{path}' is damaged (no {min(missing)}); remember the class again.")
    if fingerprint is not None and metadata["fingerprint"] != fingerprint:
        raise ValueError(
            f"'{path}' was remembered by model {metadata['fingerprint']}, this is model {fingerprint}, whose features "
            "differ; remember the class again with this model."
        )
    try:
        image, whole = _from_text(metadata["thumbnail"]), _whole(arrays)
        cut = _share(metadata.get("cut"))
    except UNREADABLE as error:
        raise ValueError(f"saved memory '{path}' is damaged ({error}); remember the class again.") from error
    return SavedMemory(metadata["class_name"], metadata["fingerprint"], whole, image, cut)


def remembered(
    engine: Engine, class_name: str, references: Sequence[Reference], fingerprint: str, own_cut: bool = False
) -> SavedMemory:
    """What an engine of that fingerprint remembers of a class, ready to be saved; images and masks are arrays."""
    arrays = engine.pack(engine.remember(references))
    # The thumbnail shows the object, where possible by a mask.
    shown = next((one for one in references if one.mask is not None and not one.negative), references[0])
    image = np.asarray(shown.image)
    mask = np.zeros(image.shape[:2], np.uint8) if shown.mask is None else np.asarray(shown.mask)
    cut = cut_of(engine, references) if own_cut else None
    return SavedMemory(class_name, fingerprint, arrays, thumbnail(image, mask), cut)


def thin_out(arrays: dict[str, np.ndarray], count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Keep fewer support positions so that weighted means over the object and over the rest stay right on average.

    Args:
        arrays: a packed memory of batch 1 with tokens (1, L, M, C), fg (1, M), bg (1, M).
        count: the most positions to keep, the object's first: up to half, or more when the rest needs less.
        seed: of the choice.
    """
    fg, bg = arrays["fg"][0], arrays["bg"][0]
    if len(fg) <= count:
        return arrays
    rng = np.random.default_rng(seed)
    # The object is small and decides the masks, so its positions are kept first; the rest samples the background.
    groups = [np.flatnonzero(fg > 0), np.flatnonzero((fg == 0) & (bg > 0))]
    num_object = min(len(groups[0]), max(count // 2, count - len(groups[1])))
    wanted = (num_object, min(len(groups[1]), count - num_object))
    kept = [np.sort(rng.permutation(group)[:n]) for group, n in zip(groups, wanted)]
    rates = [n / max(1, len(group)) for group, n in zip(groups, wanted)]
    weights = bg.copy()
    # In the background's mean a position stands for 1 / rate others, and those on the border, which were thinned out
    # with the object, count there too. The larger weight stays 1: weights are shares of a position.
    if min(rates) > 0:
        weights[groups[0]] *= min(1.0, rates[1] / rates[0])
        weights[groups[1]] *= min(1.0, rates[0] / rates[1])
    chosen = np.concatenate(kept)
    thinned = {"tokens": arrays["tokens"][:, :, chosen], "fg": fg[None, chosen], "bg": weights[None, chosen]}
    return {**arrays, **thinned}


def thumbnail(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A small image (h, w, 3) uint8 of a reference with its mask drawn over it."""
    scale = THUMBNAIL_SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    return overlay(small, np.asarray(Image.fromarray(mask * np.uint8(255)).resize(size, Image.Resampling.BOX)) > 127)


def _digest(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    """Over the arrays and everything that is said of them: class name, model, image."""
    digest = hashlib.sha256(told_sha256(metadata).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _share(text: str | None) -> float | None:
    value = None if text is None else float(text)
    if value is not None and not 0 < value < 1:
        raise ValueError(f"its cut is {text}")
    return value


def _half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16) if np.issubdtype(array.dtype, np.floating) else array


def _eight_bits(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tokens as signed bytes with a scale per token; the cosines change by about a ten-thousandth."""
    tokens = arrays["tokens"].astype(np.float32)
    scale = np.maximum(np.abs(tokens).max(-1, keepdims=True), 1e-6) / 127
    small = {name: _half(array) for name, array in arrays.items()}
    return {**small, "tokens": np.rint(tokens / scale).astype(np.int8), "tokens_scale": scale.astype(np.float16)}


def _whole(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    whole = {n: a.astype(np.float32) if np.issubdtype(a.dtype, np.floating) else a for n, a in arrays.items()}
    if "tokens_scale" in whole:
        # A product of other shapes could be far larger than the file.
        if "tokens" not in whole or whole["tokens_scale"].shape != (*whole["tokens"].shape[:-1], 1):
            raise ValueError("tokens_scale is not one number a token")
        tokens = whole["tokens"].astype(np.float32) * whole.pop("tokens_scale")
        # Rounding has changed the lengths, and the reader takes products of tokens for cosines.
        length = np.linalg.norm(tokens, axis=-1, keepdims=True)
        whole["tokens"] = tokens / np.maximum(length, 1e-6)
    return whole


def _bytes(arrays: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _to_text(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _from_text(text: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",))
    # Looked at before it is decoded: a few bytes can say that they are gigapixels.
    if max(image.size) > MAX_THUMBNAIL_SIDE:
        raise ValueError(f"its image is larger than {MAX_THUMBNAIL_SIDE} pixels")
    return np.asarray(image.convert("RGB"))
