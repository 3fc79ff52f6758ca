"""`fsdino predict` and `fsdino remember` as plain functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fsdino.base.digest import file_sha256
from fsdino.base.drawn import ENOUGH, caution
from fsdino.base.ranges import Count, Devices, Images, Number, Probability, Share, within_ranges
from fsdino.base.result import ONE_HALF
from fsdino.predict.cut import LEAST, check_cuts, cut_of
from fsdino.predict.engines import Engine
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.engines.onnx import REMEMBER_FILE, SEGMENT_FILE
from fsdino.predict.finish import AS_MEASURED, Finish
from fsdino.predict.formats import listed
from fsdino.predict.images import Item, find_images, read_ahead
from fsdino.predict.memory_file import MEMORY_SUFFIX, load_memory, remembered, save_memory
from fsdino.predict.outputs import Outputs
from fsdino.predict.run import finder, run_all
from fsdino.predict.support import Support, read_support
from fsdino.predict.tiles import check_tile

AS_ASKED = EngineChoice()


def remember_all(engine: Engine, support: Support, own_cuts: bool = False) -> tuple[dict[str, Any], list[float | None]]:
    """Memory and own cut of every class, in the order of the labels; memories of other models are refused.

    Saved memories know their cut, that of references is found where `own_cuts` asks for it.
    """
    memories, cuts, fingerprint = {}, list[float | None](), engine.fingerprint()
    for name in support.class_names():
        if name in support.references:
            given = support.references[name]
            memories[name] = engine.remember(given)
            cuts.append(cut_of(engine, given) if own_cuts else None)
            warn(_too_few(name) if own_cuts and cuts[-1] is None else None)
        else:
            saved = load_memory(support.memory_files[name], fingerprint)
            memories[name] = engine.unpack(saved.arrays)
            cuts.append(saved.cut)
    return memories, cuts


@within_ranges
def predict(
    support: str,
    images: str,
    out: str,
    engine: EngineChoice = AS_ASKED,
    finish: Finish = AS_MEASURED,
    formats: Sequence[str] | str = ("labels", "overlays"),
    support_images: str | None = None,
    max_references: Number = 10,
    min_score: Share = 0.0,
    threshold: Probability | Literal["references"] | None = None,
    tile: Number = 0,
    split_instances: bool = False,
    frame_step: Count = 1,
    batch: Images = 0,
    devices: Devices = 1,
    overwrite: bool = False,
) -> int:
    """Segment images after a few annotated ones; a second run continues where the first stopped.

    Args:
        support: what to look for: a folder per class with image and mask of one name side by side,
            `images/<class>/` and `masks/<class>/`, a COCO JSON, a folder for YOLO, or saved memories (.fsmem, a folder
            or a glob of them). A mask is white on the object; grey counts from half brightness (128 of 255) on.
        images: images to segment: a folder, a glob, an image or a video.
        out: folder for the results.
        engine: the model, and what runs it.
        finish: what becomes of an answer before it is a mask.
        formats: labels (PNG label maps), overlays (images with masks), coco (JSON with RLE), yolo, comma-separated.
        support_images: folder of the images of a COCO JSON, when it is not beside it.
        max_references: references used per class; 0 takes all.
        min_score: classes whose score in an image is below, in [0, 1], count as absent.
        threshold: probability above which a pixel belongs to a class; the model's own when left out. references: for
            the training-free chain, cut each class where its references (three or more) find each other best; a saved
            memory that has such a cut keeps it.
        tile: side in pixels of windows to cut large images into, for small objects; 0 takes images as a whole.
        split_instances: one COCO annotation per connected part; its score is the class's times its mean probability.
        frame_step: every how many frames of a video count.
        batch: images that go through the network together; 0 takes what pays: 1 on a CPU, 8 on a GPU.
        devices: how many GPUs share the images, or engines on the CPU; all write into one record.
        overwrite: start over instead of continuing; the earlier results are removed.

    Returns:
        Exit code: 0, or 1 when images could not be read (they are listed on standard error).
    """
    # What can be wrong is looked at before the model is loaded, which is what takes time.
    check_tile(tile)
    items = find_images(images, exclude=out, frame_step=frame_step)
    wanted = read_support(support, images=support_images, max_references=max_references)
    choices = engine.each(devices)
    opened = choices[0].open()
    asked = threshold if isinstance(threshold, float) else None
    limit = opened.threshold if asked is None else asked
    if threshold == "references":
        check_cuts(opened)
    kinds, fingerprint = listed(formats), opened.fingerprint()
    # Results of other settings are not continued, so whatever changes a pixel is named here.
    settings: dict[str, Any] = {
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
    names = wanted.class_names()
    warn(caution(fingerprint, _first(items)))
    least, sharp = finish.least(opened, fingerprint, names, _first(items)), finish.refines(opened)
    # Named only then: results from before there were these settings are continued.
    if sharp:
        settings["refine_edges"] = True
    if set(least) != {ONE_HALF}:
        settings["min_presence"] = dict(zip(names, least))
    memories, cuts = remember_all(opened, wanted, threshold == "references")
    if asked is None and any(cuts):
        settings["cuts"] = {name: cut for name, cut in zip(names, cuts) if cut is not None}
        print("cuts: " + ", ".join(f"{name} {cut:.2f}" for name, cut in settings["cuts"].items()))
    sources = {item.name: item.source for item in items}
    options = {"split_instances": split_instances, "overwrite": overwrite}
    outputs = Outputs(out, names, kinds, settings, sources, **options)

    how: dict[str, Any] = {"threshold": limit, "min_score": min_score, "tile": tile}
    how |= {"least": least, "refine_edges": sharp, "cuts": cuts if asked is None else ()}
    # Remembered once and packed for the other devices.
    finders = []
    for other in [opened, *(choice.open() for choice in choices[1:])]:
        own = memories if other is opened else {n: other.unpack(opened.pack(memory)) for n, memory in memories.items()}
        joined = other.join(list(own.values()))
        finders.append(finder(other, joined, names, **how))
    failed = run_all(items, outputs, finders, batch or opened.batch)
    done = outputs.finish()
    for name, reason in failed.items():
        print(f"not read: {name}: {reason}", file=sys.stderr)
    print(f"{done} of {done + len(failed)} images, {', '.join(kinds)} and scores.csv in {out}")
    return 1 if failed else 0


def _first(items: Sequence[Item]) -> Iterator[np.ndarray]:
    """The first images that can be read, one at a time."""
    return (image for _, image in read_ahead(items[:ENOUGH]) if isinstance(image, np.ndarray))


def warn(text: str | None) -> None:
    """Say something on standard error, where there is something to say."""
    if text is not None:
        print(f"careful: {text}", file=sys.stderr)


def _too_few(name: str) -> str:
    return f"{name} has fewer than {LEAST} references with masks, so it has no cut of its own; the model's counts."


def _graph_digest(folder: Path) -> str:
    """Name the files of exported graphs: a model's graphs of float32 and of eight bits have one fingerprint."""
    return " ".join(file_sha256(folder / name)[:16] for name in (REMEMBER_FILE, SEGMENT_FILE))


@within_ranges
def remember(
    support: str,
    out: str,
    engine: EngineChoice = AS_ASKED,
    support_images: str | None = None,
    max_references: Number = 10,
    threshold: Literal["references"] | None = None,
) -> list[Path]:
    """Save what a model remembers of the references, for later use with `fsdino predict --support`.

    Args:
        support: as for predict: the folder of one class, folders of several, or a COCO JSON.
        out: for one class the .fsmem file to write; for several a folder, which gets a file per class.
        engine: the model, and what runs it.
        support_images: folder of the images of a COCO JSON, when it is not beside it.
        max_references: references used per class; 0 takes all.
        threshold: references: keep with each class the cut at which its references find each other best, as predict's
            option of this name does; left out: the model's counts.

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
    if threshold == "references":
        check_cuts(opened)
    written, files, fingerprint = [], _file_names(names), opened.fingerprint()
    warn(caution(fingerprint, (np.asarray(one.image) for name in names for one in wanted.references[name])))
    for name in names:
        references = wanted.references[name]
        memory = remembered(opened, name, references, fingerprint, threshold == "references")
        path = Path(out) if is_file else Path(out) / f"{files[name]}{MEMORY_SUFFIX}"
        written.append(save_memory(memory, path))
        kept = "" if memory.cut is None else f", cut {memory.cut:.2f}"
        print(f"{name}: {len(references)} reference{'s' * (len(references) > 1)} in {written[-1]}{kept}")
        warn(_too_few(name) if threshold == "references" and memory.cut is None else None)
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
