"""What `benchmarks.cost.gpu` runs as a whole: the tests of the models, masks of CPU and GPU, JPEG to PNG, graphs."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import ROOT, Row
from benchmarks.cost.gpu_timing import PRECISIONS, Bench, Case, told
from benchmarks.cost.speed import METHODS
from benchmarks.cost.subjects import bare_encoder, build, noise, reference, segmenter
from fsdino.base import registry, storage
from fsdino.base.method import FewShotMethod
from fsdino.base.reference import Reference
from fsdino.data.world.index import SyntheticWorld
from fsdino.export.command import export_graphs
from fsdino.predict.command import predict as predict_files
from fsdino.predict.engines import Engine
from fsdino.predict.engines.choice import EngineChoice
from tests.small import METHOD_ARGS

SHOWN = "FS-DINO full"
PHOTOS = ROOT / "docs" / "photos"
PHOTO_SIZE = (1500, 1000)


def tests(bench: Bench) -> Iterator[Row]:
    """`pytest tests/models --device DEVICE` in a process of its own; those in bfloat16 counted by themselves."""
    what = ["tests/models/test_segmenter.py", "-k", "bfloat16"] if bench.small else ["tests/models"]
    spread = ["-n", "8"] if bench.on_gpu and importlib.util.find_spec("xdist") else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["--device", str(bench.device), f"--junitxml={report}", *spread]
        command, pipes = [sys.executable, "-m", "pytest", *what, *options], {"stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.STDOUT, **pipes) as process:  # type: ignore[call-overload]
            try:
                said, _ = process.communicate()
            finally:  # the section's time may be up
                process.kill()
        if not report.is_file():
            raise RuntimeError(f"pytest wrote no report: {said[-300:]}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    for precision in ("float32", "bf16"):
        chosen = [case for case in cases if ("bfloat16" in str(case.get("name"))) == (precision == "bf16")]
        if not chosen:
            continue
        wrong = [str(case.get("name")) for case in chosen if {part.tag for part in case} & {"failure", "error"}]
        left = sum(case.find("skipped") is not None for case in chosen)
        counts = f"{len(chosen) - len(wrong) - left} passed, {len(wrong)} failed, {left} skipped"
        row = {"method": "tests/models", "precision": precision, "step": counts}
        yield row | ({"error": f"failed: {', '.join(wrong[:8])}"} if wrong else {})


def agree(bench: Bench) -> Iterator[Row]:
    """Share of equal pixels of the CPU's masks in float32 and the device's in every precision.

    Small methods of the whole registry, the bundled model on the embedded world, and large ones of random weights.
    Where the CPU's own probabilities hardly spread, as those of some random weights, equal pixels say little.
    """
    for name, arguments in METHOD_ARGS.items():
        torch.manual_seed(0)
        yield from agreement(bench, registry.build(name, **arguments).eval(), {"method": name, "preset": "small"}, 4)
    bundled, count = storage.load("tiny"), 4 if bench.small else 24
    yield from agreement(bench, bundled, {"method": "FS-DINO", "preset": "bundled"}, count)
    for key in () if bench.small else METHODS[False]:
        yield from agreement(bench, build(*key), {"method": key[0], "preset": key[1]}, 2)


@torch.no_grad()
def agreement(bench: Bench, method: FewShotMethod, head: Row, count: int) -> Iterator[Row]:
    """A row for each precision: equal pixels over `count` scenes of the embedded world, and the largest difference."""
    world = SyntheticWorld("novel", 2)
    shown = [(i, world.images(i)) for i in range(count)]
    pairs = [
        (Reference(world.load_image(names[0]), mask=world.load_mask(names[0], i) == 1), world.load_image(names[1]))
        for i, names in shown
    ]
    expected = [method.segment(method.remember([one]), image) for one, image in pairs]
    for precision in PRECISIONS:
        row = head | {"img_size": method.img_size, "step": "masks of CPU and device", "precision": precision}
        try:
            dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
            other = copy.deepcopy(method).to(bench.device, dtype)
            with bench.precisely(precision):
                found = [other.segment(other.remember([one]), image) for one, image in pairs]
            equal = np.mean([np.mean(a.mask == b.mask) for a, b in zip(expected, found)])
            most = max(float(np.abs(a.probs - b.probs).max()) for a, b in zip(expected, found))
            spread = np.mean([float(np.ptp(one.probs)) for one in expected])
            yield row | {"equal": round(float(equal), 6), "largest": f"{most:.1e}", "spread": f"{spread:.1e}"}
        except Exception as error:  # a precision that a method does not take is a finding
            yield row | {"error": told(error)}
        bench.clear()


def predict(bench: Bench) -> Iterator[Row]:
    """`fsdino predict` from JPEG to PNG, by the images that go through the network together."""
    name, few, many = ("tiny", 2, 4) if bench.small else ("b14", 8, 104)
    width, height = (90, 60) if bench.small else PHOTO_SIZE
    method = segmenter(name)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = str(storage.save(method, root / "model"))
        (root / "refs" / "dog").mkdir(parents=True)
        for file in PHOTOS.glob("dogs/reference.*"):
            (root / "refs" / "dog" / file.name).write_bytes(file.read_bytes())
        photos = sorted(PHOTOS.glob("*/[12].jpg"))
        for count in (few, many):
            (root / f"{count}").mkdir()
            for i in range(count):
                image = Image.open(photos[i % len(photos)]).convert("RGB").resize((width, height))
                image.save(root / f"{count}" / f"{i}.jpg", quality=90)
        alone = beside(bench, method.to(bench.device))
        yield alone | {"method": SHOWN, "preset": name, "img_size": method.img_size}
        for batch in (1,) if bench.small else (1, 8, 32):
            seconds = []
            for count in (few, many):  # their difference leaves out the start
                out = root / f"out-{batch}-{count}"
                started = time.perf_counter()
                engine = EngineChoice(model, device=str(bench.device))
                places = (str(root / "refs"), str(root / f"{count}"), str(out))
                predict_files(*places, engine=engine, formats="labels", batch=batch)
                seconds.append(time.perf_counter() - started)
            ms = 1000 * (seconds[1] - seconds[0]) / (many - few)
            yield {
                "method": SHOWN, "preset": name, "img_size": method.img_size, "batch": batch, "precision": "float32",
                "step": f"JPEG to PNG, {width} x {height}", "ms": round(ms, 3), "per_s": round(1000 / ms, 2),
                "base": "bare encoder", "ratio": round(ms / alone["ms"], 3),
            }  # fmt: skip


def beside(bench: Bench, method: FewShotMethod) -> Row:
    """The bare encoder's row, one image at a time in float32."""
    run = bare_encoder(method)

    @torch.no_grad()
    def encode() -> None:
        run()

    (row,) = bench.rows({}, [Case({"step": "bare encoder", "precision": "float32", "batch": 1}, encode)])
    return row


def onnx(bench: Bench) -> Iterator[Row]:
    """The exported graphs on onnxruntime's CUDA provider, beside torch."""
    # Optional: a machine may have torch alone.
    import onnxruntime

    if bench.on_gpu and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError("this onnxruntime has no CUDA provider; install onnxruntime-gpu in its place")
    name, image = "tiny" if bench.small else "b14", noise()
    method = segmenter(name)
    with tempfile.TemporaryDirectory() as folder:
        export_graphs(method, Path(folder), ("onnx",))
        engines: dict[str, Any] = {
            "torch": method.to(bench.device), "onnx": EngineChoice(folder, "onnx", str(bench.device)).open()
        }  # fmt: skip
        cases = []
        for kind, engine in engines.items():
            joined = engine.join([engine.remember([reference()])])
            about = {"step": f"segment, {kind}", "precision": "float32", "batch": 1}
            cases.append(Case(about, partial(found_by, engine, joined, image), flops=False))
        yield from bench.rows({"method": SHOWN, "preset": name, "img_size": method.img_size}, cases)


def found_by(engine: Engine, joined: Sequence[Any], image: np.ndarray) -> list[Any]:
    """All classes in one image."""
    with torch.no_grad():
        return list(engine.find(joined, image))
