"""`fsdino predict` and `fsdino remember` as plain functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fsdino.base.digest import file_sha256
from fsdino.base.result import LabelMap, resolve
from fsdino.predict.drawn import ENOUGH, caution
from fsdino.predict.engines import Engine
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.engines.onnx import REMEMBER_FILE, SEGMENT_FILE
from fsdino.predict.formats import listed
from fsdino.predict.images import EndOfVideo, Item, find_images, read_ahead
from fsdino.predict.memory_file import MEMORY_SUFFIX, load_memory, remembered, save_memory
from fsdino.predict.outputs import Outputs
from fsdino.predict.support import Support, read_support
from fsdino.predict.tiles import segment_tiled

AS_ASKED = EngineChoice()
# Results that may wait for the disk, and pixels of all of them (each is 8 bytes): bounds the memory when the disk is
# slower than the model.
WRITES_WAITING, PIXELS_WAITING = 8, 24_000_000


def remember_all(engine: Engine, support: Support) -> dict[str, Any]:
    """Remember every class of a support, by name in the order of the labels; memories of other models are refused."""
    memories, fingerprint = {}, engine.fingerprint()
    for name in support.class_names():
        if name in support.references:
            memories[name] = engine.remember(support.references[name])
        else:
            memories[name] = engine.unpack(load_memory(support.memory_files[name], fingerprint).arrays)
    return memories


def predict(
    support: str,
    images: str,
    out: str,
    engine: EngineChoice = AS_ASKED,
    formats: Sequence[str] | str = ("labels", "overlays"),
    support_images: str | None = None,
    max_references: int = 10,
    min_score: float = 0.0,
    threshold: float | None = None,
    tile: int = 0,
    split_instances: bool = False,
    frame_step: int = 1,
    overwrite: bool = False,
) -> int:
    """Segment images after a few annotated ones; a second run continues where the first stopped.

    Args:
        support: what to look for: a folder per class with image and mask of one name side by side, images/<class>/
            and masks/<class>/, a COCO JSON, a folder for YOLO, or saved memories (.fsmem, a folder or a glob of them).
        images: images to segment: a folder, a glob, an image or a video.
        out: folder for the results.
        engine: the model, and what runs it.
        formats: labels (PNG label maps), overlays (images with masks), coco (JSON with RLE), yolo, comma-separated.
        support_images: folder of the images of a COCO JSON, when it is not beside it.
        max_references: references used per class; 0 takes all.
        min_score: classes whose score in an image is below, in [0, 1], count as absent.
        threshold: probability above which a pixel belongs to a class; the model's own when left out.
        tile: side in pixels of windows to cut large images into, for small objects; 0 takes images as a whole.
        split_instances: one COCO annotation per connected part; its score is the class's times its mean probability.
        frame_step: every how many frames of a video count.
        overwrite: start over instead of continuing; the earlier results are removed.

    Returns:
        Exit code: 0, or 1 when images could not be read (they are listed on standard error).
    """
    # What can be wrong is looked at before the model is loaded, which is what takes time.
    _check_options(min_score, threshold, tile)
    items = find_images(images, exclude=out, frame_step=frame_step)
    wanted = read_support(support, images=support_images, max_references=max_references)
    opened = engine.open()
    limit = opened.threshold if threshold is None else threshold
    kinds, fingerprint = listed(formats), opened.fingerprint()
    # Results of other settings are not continued, so whatever changes a pixel is named here.
    settings = {
        "model": fingerprint,
        "runtime": engine.runtime,
        "graph": None if engine.runtime == "torch" else _graph_digest(Path(engine.model)),
        "support": wanted.digest(),
        "formats": sorted(kinds),
        "min_score": min_score,
        "threshold": limit,
        "tile": tile,
        "split_instances": split_instances,
    }
    first = (image for _, image in read_ahead(items[:ENOUGH]) if isinstance(image, np.ndarray))
    warn(caution(fingerprint, first))
    joined, names = opened.join(list(remember_all(opened, wanted).values())), wanted.class_names()
    sources = {item.name: item.source for item in items}
    options = {"split_instances": split_instances, "overwrite": overwrite}
    outputs = Outputs(out, names, kinds, settings, sources, **options)

    def find(image: np.ndarray) -> LabelMap:
        if tile > 0 and max(image.shape[:2]) > tile:
            return segment_tiled(opened, joined, names, image, tile, threshold=limit, min_score=min_score)
        return resolve(zip(names, opened.find(joined, image)), (image.shape[0], image.shape[1]), limit, min_score)

    failed = run_all(items, outputs, find)
    done = outputs.finish()
    for name, reason in failed.items():
        print(f"not read: {name}: {reason}", file=sys.stderr)
    print(f"{done} of {done + len(failed)} images, {', '.join(kinds)} and scores.csv in {out}")
    return 1 if failed else 0


def warn(text: str | None) -> None:
    """Say something on standard error, where there is something to say."""
    if text is not None:
        print(f"careful: {text}", file=sys.stderr)


def _check_options(min_score: float, threshold: float | None, tile: int) -> None:
    if not 0.0 <= min_score <= 1.0:
        raise ValueError(f"min_score {min_score} is not a score; use a value from 0 to 1.")
    if threshold is not None and not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold {threshold} is not a probability; use a value above 0 and below 1.")
    if tile < 0 or 0 < tile < 32:
        raise ValueError(f"tile {tile} is too small; use at least 32 pixels, or 0 for no tiles.")


def _graph_digest(folder: Path) -> str:
    """Name the files of exported graphs: a model's graphs of float32 and of eight bits have one fingerprint."""
    return " ".join(file_sha256(folder / name)[:16] for name in (REMEMBER_FILE, SEGMENT_FILE))


def run_all(items: Sequence[Item], outputs: Outputs, find: Callable[[np.ndarray], LabelMap]) -> dict[str, str]:
    """Segment the images that are not done yet; gives the reasons of those that could not be read, by name."""
    # The model runs in this thread alone; decoding and writing, which release the GIL, fill the time beside it.
    failed: dict[str, str] = {}
    todo = [item for item in items if item.name not in outputs.done]
    writes: list[Future[None]] = []
    waiting: list[int] = []  # pixels of each
    with (
        ThreadPoolExecutor(2, thread_name_prefix="write") as writers,
        tqdm(total=len(items), initial=len(items) - len(todo), unit="image", desc="predict") as bar,
    ):
        for item, image in read_ahead(todo):
            if isinstance(image, np.ndarray):
                writes.append(writers.submit(outputs.write, item.name, image, find(image)))
                waiting.append(image.shape[0] * image.shape[1])
            # Headers of videos often promise more frames than there are: that is not a failure.
            elif not isinstance(image, EndOfVideo):
                failed[item.name] = str(image).splitlines()[0] if str(image) else type(image).__name__
            # `result` raises here what went wrong in the writing thread, where it would be lost.
            while len(writes) > WRITES_WAITING or sum(waiting) > PIXELS_WAITING:
                writes.pop(0).result()
                waiting.pop(0)
            bar.update()
        for write in writes:
            write.result()
    return failed


def remember(
    support: str,
    out: str,
    engine: EngineChoice = AS_ASKED,
    support_images: str | None = None,
    max_references: int = 10,
) -> list[Path]:
    """Save what a model remembers of the references, for later use with `fsdino predict --support`.

    Args:
        support: as for predict: the folder of one class, folders of several, or a COCO JSON.
        out: for one class the .fsmem file to write; for several a folder, which gets a file per class.
        engine: the model, and what runs it.
        support_images: folder of the images of a COCO JSON, when it is not beside it.
        max_references: references used per class; 0 takes all.

    Returns:
        The files written.
    """
    wanted = read_support(support, images=support_images, max_references=max_references)
    if wanted.memory_files:
        raise ValueError(f"'{support}' is a saved memory already; give images with masks.")
    names = wanted.class_names()
    is_file = Path(out).suffix == MEMORY_SUFFIX
    if is_file and len(names) > 1:
        raise ValueError(f"'{out}' is one file for {len(names)} classes ({', '.join(names[:5])}); name a folder.")
    opened = engine.open()
    written, files, fingerprint = [], _file_names(names), opened.fingerprint()
    warn(caution(fingerprint, (np.asarray(one.image) for name in names for one in wanted.references[name])))
    for name in names:
        references = wanted.references[name]
        memory = remembered(opened, name, references, fingerprint)
        path = Path(out) if is_file else Path(out) / f"{files[name]}{MEMORY_SUFFIX}"
        written.append(save_memory(memory, path))
        print(f"{name}: {len(references)} reference{'s' * (len(references) > 1)} in {written[-1]}")
    return written


def _file_names(class_names: Sequence[str]) -> dict[str, str]:
    """Class names as file names of any system; of names that look alike there, all but the first get a number."""
    # Compared in lower case: "Cat" and "cat" are one file on Windows and macOS.
    files: dict[str, str] = {}
    taken: set[str] = set()
    for name in class_names:
        plain = "".join(char if char.isalnum() or char in " -_." else "_" for char in name).strip(" .") or "class"
        choices = chain([plain], (f"{plain}-{number}" for number in count(2)))
        files[name] = next(choice for choice in choices if choice.lower() not in taken)
        taken.add(files[name].lower())
    return files
