"""Whether the package still computes what it did: digests of counts, weights, graphs and masks against a recorded file.

Run it with --record before a change of structure and without after it, on one machine and one torch. Everything goes
through the command line and the public names, so that the code below may be moved at will:
`python -m benchmarks.accuracy.unchanged --what api predictions`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "results" / "unchanged.json"
LIST = str(ROOT / "fsdino" / "data" / "lists" / "synthetic_fold0_1shot.json")
SMALL_RUN = [
    "--trainer.enable_progress_bar", "false", "--log.wandb", "off", "--data.test_list", "null",
    "--data.test_episodes", "24", "--data.val_episodes", "16", "--evaluate.strips", "0",
    "--train.epochs", "2", "--train.epoch_length", "48", "--train.batch_size", "8", "--seed", "3",
]  # fmt: skip
FS_DINO_RUN = ["--distill.epochs", "3", "--distill.epoch_length", "64", "--presence.episodes", "48"]


# What was changed on purpose since the record was made -> why.
MEANT: dict[str, str] = {}


def digest(*parts: Any) -> str:
    """Sixteen digits of arrays and texts."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        else:
            found.update(str(part).encode())
    return found.hexdigest()[:16]


def fsdino(*arguments: str, folder: Path) -> str:
    """Run a command of this checkout's package in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-m", "fsdino.cli", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"fsdino {' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def counts(path: Path) -> str:
    """Digest of the integer counts of every episode of a table, in order."""
    with path.open(encoding="utf-8") as file:
        names = ("inter_bg", "inter_fg", "union_bg", "union_fg")
        rows = [[row[name] for name in names] for row in csv.DictReader(file)]
    return digest(json.dumps(rows))


def raw_counts(folder: Path) -> str:
    """Digest of the counts that a run's own evaluation wrote, in the order of the episodes."""
    rows = []
    for path in sorted(folder.glob("rows.*.csv")):
        with path.open(encoding="utf-8") as file:
            rows += [(int(row[0]), *(int(n) for n in row[4:8])) for row in csv.reader(file)]
    return digest(sorted(rows))


def tensors(path: Path) -> str:
    """Digest of all tensors of a safetensors file."""
    from safetensors.numpy import load_file

    found = load_file(path)
    return digest(*(part for name in sorted(found) for part in (name, found[name])))


def draw(folder: Path) -> None:
    """References and photographs of a drawn world: textured shapes on noise, from a seed."""
    rng = np.random.default_rng(5)
    names = [f"class{i:02d}" for i in range(19)]
    for number, name in enumerate(names):
        for shot in range(2 if number < 4 else 1):
            image, mask = scene(rng, number)
            place = folder / "refs" / name
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{shot}.png")
            (folder / "masks" / name).mkdir(parents=True, exist_ok=True)
            mask.save(place / f"{shot}_mask.png")
    hinted = folder / "hinted" / "thing"
    hinted.mkdir(parents=True)
    for shot, said in enumerate((
        {"points": [[60, 60], [5, 5]], "labels": [1, 0]}, {"box": [20, 20, 100, 100]},
        {"scribble": [[40, 40], [60, 64], [80, 80]]}, {"box": [30, 30, 90, 90], "negative": True},
    )):  # fmt: skip
        scene(rng, shot)[0].save(hinted / f"{shot}.png")
        (hinted / f"{shot}.json").write_text(json.dumps(said))
    (folder / "photos").mkdir()
    for number in range(6):
        scene(rng, number, size=(150 + 20 * number, 200))[0].save(folder / "photos" / f"{number}.png")


def scene(rng: np.random.Generator, kind: int, size: tuple[int, int] = (128, 120)) -> tuple[Image.Image, Image.Image]:
    """One striped shape on noise, and its mask."""
    width, height = size
    noise = rng.integers(0, 90, (height, width, 3)).astype(np.uint8)
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    x, y, side = int(rng.integers(10, width // 2)), int(rng.integers(10, height // 2)), 44 + 4 * (kind % 4)
    box = (x, y, x + side, y + side)
    if kind % 3 == 0:
        pen.ellipse(box, fill=255)
    elif kind % 3 == 1:
        pen.rectangle(box, fill=255)
    else:
        pen.polygon([(x, y + side), (x + side // 2, y), (x + side, y + side)], fill=255)
    rows, cols = np.mgrid[:height, :width]
    stripes = ((rows * (1 + kind % 5) + cols * (1 + kind // 5)) // 6 % 2)[..., None] * np.array([120, 90, 60]) + 100
    inside = np.asarray(mask)[..., None] > 0
    return Image.fromarray(np.where(inside, stripes, noise).astype(np.uint8)), mask


def outputs(folder: Path) -> str:
    """Digest of what predict wrote: label maps, and the numbers of its tables."""
    maps = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("labels/**/*.png"))]
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    coco = [
        (one["bbox"], one["score"], one["segmentation"])
        for path in sorted(folder.glob("*coco*.json"))
        for one in json.loads(path.read_text())["annotations"]
    ]
    yolo = [path.read_text() for path in sorted(folder.rglob("*.txt"))]
    if not maps:
        raise SystemExit(f"no label map in {folder}: {sorted(folder.rglob('*'))[:9]}")
    return digest(*maps, json.dumps(rows), json.dumps(coco), *yolo)


def lists_of_counts(folder: Path) -> Iterator[tuple[str, str]]:
    """Counts of training-free and trained methods on fixed lists."""
    for name, extra in {
        "tiny": ["--list", LIST], "prototype": ["--list", LIST], "all_foreground": ["--list", LIST],
        "persam": ["--episodes", "12", "--options.checkpoint", "TINY_SAM"],
    }.items():  # fmt: skip
        extra = [str(ROOT / "fsdino/assets/tiny_sam.safetensors") if x == "TINY_SAM" else x for x in extra]
        data = ["--data_options.images_per_class", "20"]
        fsdino("evaluate", name, *data, *extra, "--strips", "0", "--out", f"counts-{name}", folder=folder)
        yield f"counts: {name}", counts(folder / f"counts-{name}" / "episodes.csv")


def small_runs(folder: Path) -> Iterator[tuple[str, str]]:
    """Weights and counts after seeded small runs of the three systems."""
    for name, extra in {"tiny": FS_DINO_RUN, "sansa_tiny": [], "fssam_tiny": []}.items():
        path = ROOT / "recipes" / (name.removesuffix("tiny").rstrip("_") or "fsdino") / "tiny.yaml"
        fsdino("run", "--config", str(path), *SMALL_RUN, *extra, "--name", name, folder=folder)
        run = next((folder / "runs" / name).iterdir())
        yield f"weights: {name}", tensors(run / "export" / "model.safetensors")
        measured = [path for path in sorted((run / "evaluate").iterdir()) if path.is_dir()]
        yield f"run's counts: {name}", digest(*map(raw_counts, measured))


def predictions(folder: Path) -> Iterator[tuple[str, str]]:
    """Masks of predict in both runtimes, with many classes, hints, tiles and every format; and exported graphs."""
    draw(folder)
    fsdino("export", "--model", "tiny", "--formats", "safetensors,onnx", "--out", "graphs", folder=folder)
    every = ["--formats", "labels,coco,yolo", "--images", "photos"]
    for name, extra in {
        "19 classes": ["--support", "refs"],
        "19 classes, onnx": ["--support", "refs", "--runtime", "onnx", "--model", "graphs"],
        "hints": ["--support", "hinted"],
        "tiles": ["--support", "refs/class00", "--tile", "96", "--split_instances", "true"],
    }.items():
        fsdino("predict", *every, *extra, "--out", f"out {name}", folder=folder)
        yield f"masks: {name}", outputs(folder / f"out {name}")
    fsdino("remember", "--support", "refs", "--out", "memories", folder=folder)
    fsdino("predict", *every, "--support", "memories", "--out", "out memories", folder=folder)
    yield "masks: saved memories", outputs(folder / "out memories")
    yield "graphs", graphs(folder / "graphs")


def graphs(folder: Path) -> str:
    """Digest of both exported graphs' outputs on seeded inputs."""
    import onnxruntime as ort

    rng = np.random.default_rng(1)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    found: list[np.ndarray] = []
    held: dict[str, np.ndarray] = {}
    for name in ("remember", "segment"):
        session = ort.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        feeds = {}
        for wanted in session.get_inputs():
            shape = [n if isinstance(n, int) else (2 if i else 1) for i, n in enumerate(wanted.shape)]
            match = [value for key, value in held.items() if key == wanted.name]
            feeds[wanted.name] = match[0] if match else rng.random(shape, dtype=np.float32)
        results = session.run(None, feeds)
        held |= {out.name: value for out, value in zip(session.get_outputs(), results)}
        found += results
    return digest(*found)


def api(folder: Path) -> Iterator[tuple[str, str]]:
    """The public names: mask, probabilities, score, presence, several classes, a correction."""
    import torch

    import fsdino as package

    torch.set_num_threads(1)
    model = package.load("tiny")
    rng = np.random.default_rng(9)
    shown = [package.Reference(image, mask=mask) for image, mask in (scene(rng, 0), scene(rng, 0))]
    memory, other = model.remember(shown), model.remember([package.Reference(*scene(rng, 1))])
    photo = scene(rng, 0, (180, 140))[0]
    results = {"segment": model.segment(memory, photo), "refine": model.refine(memory, photo, [[40, 40]])}
    for name, result in results.items():
        plain = [np.asarray(result.mask), np.asarray(result.probs), result.score, result.presence, result.present]
        yield f"api: {name}", digest(*plain)
    labels = model.segment({"a": memory, "b": other}, photo)
    parts = [(one.name, one.box, one.score) for one in labels.instances()]
    yield "api: classes", digest(np.asarray(labels.labels).astype(np.int64), parts)


def main() -> None:
    """Record the digests, or compare with those that were recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--what", nargs="*", default=["api", "predictions", "small_runs", "lists_of_counts"])
    options = parser.parse_args()
    steps: dict[str, Callable[[Path], Iterator[tuple[str, str]]]] = {
        step.__name__: step for step in (api, predictions, small_runs, lists_of_counts)
    }
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    changed = 0
    for name in options.what:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            for what, found in steps[name](Path(folder)):
                if options.record:
                    known[what] = found
                same = known.get(what) == found
                meant = "" if same else MEANT.get(what, "")
                changed += not same and not meant
                verdict = "same" if same else f"changed: {meant}" if meant else f"CHANGED, was {known.get(what)}"
                print(f"{what:<28} {found}  {verdict}  ({time.perf_counter() - started:.0f} s)", flush=True)
    if options.record:
        RECORD.write_text(json.dumps(known, indent=2) + "\n")
    print(f"{changed} changed")
    sys.exit(changed > 0)


if __name__ == "__main__":
    main()
