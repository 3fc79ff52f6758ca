"""Time and memory with the bare encoder beside: `python -m benchmarks.cost.speed --what [SECTION,...]`.

Weights are random, arithmetic is float32, one image at a time. What is compared is timed in turn in one process, and
a ratio is the median over the rounds of the ratio within a round. Sections:

    reader    what comes after the encoder as a share of the bare encoder, and memory above it at twice the size
    methods   every method at its published configuration: remember, segment, whole one-shot episode
    classes   ten classes at once against one
    distill   a step of stage 1 with cached embeddings against a live SAM
    onnx      the exported graphs in onnxruntime, float32 and 8 bit, against torch
    start     the package's import and the command line's help
    job       `make distill` from nothing: seconds and peak memory

Memory is the peak of a process of its own above what Python and the libraries take, weights included. Rows of sections
that are not run are kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, ROOT, Row, provenance, run_script, update_rows
from benchmarks.cost.subjects import bare_encoder, build, noise, reference, segmenter
from benchmarks.cost.timing import Timings, apart, interleaved, resident_mb, verdict
from fsdino.base.memory import image_tensor
from fsdino.cache.cache import EmbeddingCache, cache_recipe
from fsdino.cache.image_list import ImageList
from fsdino.cache.store import ShardStore
from fsdino.export.command import export_graphs
from fsdino.models.config import preset
from fsdino.predict.engines import Engine
from fsdino.predict.engines.onnx import OnnxEngine
from fsdino.teachers.sam import SamTeacher
from fsdino.training.distill import DistillModule
from fsdino.training.distill_data import DistillImages
from fsdino.training.optim import build_optimizer

ORDER = ("section", "method", "preset", "img_size", "step", "ms", "per_s", "base", "ratio", "ratio_b14", "bar", "met",
         "peak_mb")  # fmt: skip
READER_BARS = {
    "b14": {"after the encoder": "<= 0.10", "segment": "<= 1.10", "remember": "<= 1.05"},
    "s14": {"segment": "<= 1.20"},
}
MAIN = {False: "b14", True: "tiny"}  # by --small
METHODS = {
    False: (("FS-DINO full", "b14"), ("FS-DINO compact", "b14"), ("FS-DINO full", "s14"), ("SANSA", "tiny"),
            ("SANSA", "large"), ("FSSAM", "small + b14"), ("PerSAM", "vit_b"), ("prototype", "b14")),
    True: (("FS-DINO full", "tiny"), ("SANSA", "mini"), ("FSSAM", "mini + tiny"), ("prototype", "tiny")),
}  # fmt: skip


def reader(small: bool, repetitions: int) -> list[Row]:
    """With a remembered reference: everything after the encoder, and the calls that users make."""
    rows = []
    for name in (MAIN[small],) if small else ("b14", "s14"):
        model, bars = segmenter(name), READER_BARS.get(name, {})
        memory, image = model.remember([reference()]), noise()
        square = model.resize.image(image_tensor(image))[None]
        feats = model.encoder(square)
        timings = interleaved(
            {
                "bare encoder": bare_encoder(model),
                "encoder with taps": lambda model=model, square=square: model.encoder(square),
                "after the encoder": lambda model=model, memory=memory, feats=feats: model.decode_query_feats(
                    memory, feats
                ),
                "segment": lambda model=model, memory=memory, image=image: model.segment(memory, image),
                "remember": lambda model=model: model.remember([reference()]),
            },
            repetitions,
        )
        head = {"method": "FS-DINO full", "preset": name, "img_size": model.img_size}
        rows += [head | timings.row(step, "bare encoder", bars.get(step, "")) for step in timings.seconds]
    return [*rows, *reader_memory(small)]


def reader_memory(small: bool) -> list[Row]:
    """Peak memory at twice the size, of the encoder alone and of the whole model."""
    name = MAIN[small]
    size = 2 * preset(name).img_size
    peaks = {case: apart(peak_mb, case, name, size) for case in ("encoder", "segment")}
    head = {"method": "FS-DINO full", "preset": name, "img_size": size}
    rows = [head | {"step": f"peak memory, {case}", "peak_mb": peak} for case, peak in peaks.items()]
    if None not in peaks.values():
        above = peaks["segment"] - peaks["encoder"]
        row = head | {"step": "peak memory above the encoder", "peak_mb": round(above, 1)}
        rows.append(row if small else row | verdict(above, "<= 2048"))
    return rows


def methods(small: bool, repetitions: int) -> list[Row]:
    """Every method at its published configuration, each beside its own bare encoder(s)."""
    actions: dict[str, Callable[[], Any]] = {}
    sizes = {}
    for key in METHODS[small]:
        method = build(*key)
        memory, label = method.remember([reference()]), "|".join(key)
        sizes[key] = method.img_size
        actions[f"{label}|bare encoder"] = bare_encoder(method)
        actions[f"{label}|remember"] = lambda method=method: method.remember([reference()])
        actions[f"{label}|segment"] = lambda method=method, memory=memory: method.segment(memory, noise())
    timings = interleaved(actions, repetitions)
    common = "|".join((*METHODS[small][0], "bare encoder"))
    rows = []
    for key, size in sizes.items():
        label, peak = "|".join(key), apart(peak_mb, "method", *key)
        base = f"{label}|bare encoder"
        for step, parts in {"bare encoder": ("bare encoder",), "remember": ("remember",), "segment": ("segment",),
                            "one-shot episode": ("remember", "segment")}.items():  # fmt: skip
            names = tuple(f"{label}|{part}" for part in parts)
            row = {"method": key[0], "preset": key[1], "img_size": size} | timings.row(names, base) | {"step": step}
            row["ratio_b14"] = round(timings.ratio(names, common), 3)
            row["peak_mb"] = "" if step == "bare encoder" else peak
            rows.append(row)
    return rows


def classes(small: bool, repetitions: int) -> list[Row]:
    """Ten classes in one image against one."""
    engine = segmenter(MAIN[small])
    memories = [engine.remember([reference(seed)]) for seed in range(10)]
    one, ten = engine.join(memories[:1]), engine.join(memories)
    image = noise()
    timings = interleaved(
        {
            "one class": lambda: list(engine.find(one, image)),
            "ten classes": lambda: list(engine.find(ten, image)),
        },
        repetitions,
    )
    head = {"method": "FS-DINO full", "preset": MAIN[small], "img_size": engine.img_size}
    bars = {} if small else {"ten classes": "<= 1.50"}
    return [head | timings.row(step, "one class", bars.get(step, "")) for step in timings.seconds]


def distill(small: bool, repetitions: int) -> list[Row]:
    """A step of stage 1, its image and its target loaded, from a cache or through a live teacher."""
    teacher = SamTeacher.random("tiny" if small else "vit_b")
    module = DistillModule(segmenter(MAIN[small]), teacher=teacher)
    images = ImageList("noise", tuple(str(i) for i in range(4)), lambda name: noise(int(name), (768, 1024)))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = cache_recipe(teacher, images)
        store, generator = ShardStore(folder, recipe), np.random.default_rng(0)
        places = store.claim() or range(0)
        store.put([*places], generator.standard_normal((4, *recipe.entry_shape), dtype=np.float32))
        store.close()
        cache = EmbeddingCache(folder)
        for size in (56, 112) if small else (126, 252, 518):
            cached, live = distill_step(module, images, size, cache), distill_step(module, images, size, None)
            timings = interleaved({"cached step": cached, "live step": live}, repetitions)
            head = {"method": "distillation", "preset": MAIN[small], "img_size": size}
            rows.append(head | timings.row("cached step", "cached step"))
            rows.append(head | timings.row("live step", "cached step", "" if small else ">= 8"))
    return rows


def distill_step(
    module: DistillModule, images: ImageList, size: int, cache: EmbeddingCache | None
) -> Callable[[], None]:
    """One optimiser step on one image, from reading it on."""
    assert module.teacher is not None
    resize = type(module.model.resize)
    live = None if cache is not None else resize(module.teacher.img_size)
    places = list(range(len(images)))
    data = DistillImages(images, places, [False] * len(places), resize(size), cache=cache, teacher_resize=live)
    optimizer, turn = build_optimizer(module.model, "adamw", 1e-3, 0.05), iter(range(10**9))

    def step() -> None:
        batch = {key: value[None] for key, value in data[next(turn) % len(data)].items()}
        with torch.enable_grad():
            loss = module.embedding_loss(module.model.embed(batch["image"]), module.target(batch))
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()

    return step


def onnx(small: bool, repetitions: int) -> list[Row]:
    """The exported graphs against torch, one class in one image."""
    model, image = segmenter(MAIN[small]), noise()
    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, Engine] = {"torch": model}
        with torch.enable_grad():  # the exporter's own checks switch it off
            export_graphs(model, Path(folder), ("onnx", "int8"))
        threads = torch.get_num_threads()
        engines |= {"onnx": OnnxEngine(folder, threads), "onnx int8": OnnxEngine(Path(folder) / "int8", threads)}
        actions = {}
        for name, engine in engines.items():
            memory = engine.join([engine.remember([reference()])])
            actions[name] = lambda engine=engine, memory=memory: list(engine.find(memory, image))
        timings = interleaved(actions, repetitions)
    head = {"method": "FS-DINO full", "preset": MAIN[small], "img_size": model.img_size}
    bars = {} if small else {"onnx": "<= 1.00", "onnx int8": "<= 0.65"}
    return [head | timings.row(name, "torch", bars.get(name, "")) for name in timings.seconds]


def start(small: bool, repetitions: int) -> list[Row]:
    """Seconds until the package is imported, and until the command line has shown its help."""
    inside = "import time; t = time.perf_counter(); import fsdino; print(time.perf_counter() - t)"
    script = Path(sys.executable).parent / "fsdino"
    imports, helps = [], []
    for _ in range(1 + repetitions):
        ran = subprocess.run([sys.executable, "-c", inside], capture_output=True, text=True, check=True)
        imports.append(float(ran.stdout))
        started = time.perf_counter()
        subprocess.run([str(script), "--help"], capture_output=True, check=True)
        helps.append(time.perf_counter() - started)
    timings = Timings({"import fsdino": imports[1:], "fsdino --help": helps[1:]})
    rows = []
    for step, bar in (("import fsdino", 100), ("fsdino --help", 500)):
        ms = timings.ms(step)
        rows.append({"method": "start", "step": step, "ms": round(ms, 1)} | verdict(ms, f"<= {bar} ms"))
    return rows


def job(small: bool, repetitions: int) -> list[Row]:
    """The main job once, with caches of its own: seconds and peak memory of the whole process."""
    recipe = ROOT / "recipes" / "fsdino" / "tiny.yaml"
    short = ["--train.epochs=1", "--distill.epochs=1", "--draw.epochs=1"] if small else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fsdino.cli", "run", "--config", str(recipe), "--log.wandb=off"]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--name=measured", f"--cache.dir={folder}", *short])
        _, status, used = os.wait4(process.pid, 0)  # of this process alone, not of other sections' children
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"the main job ended with exit code {process.returncode}; its messages stand above.")
    peak = used.ru_maxrss / 1024  # mapped caches included
    head = {"method": "make distill", "preset": "tiny", "img_size": 112}
    return [
        head | {"step": "the whole job, s", "ms": round(1000 * seconds, 1)} | verdict(seconds, "<= 480 s"),
        head | {"step": "its peak memory", "peak_mb": round(peak, 1)} | verdict(peak, "<= 4096"),
    ]


SECTIONS: dict[str, Callable[[bool, int], list[Row]]] = {
    f.__name__: f for f in (reader, methods, classes, distill, onnx, start, job)
}


# ---- memory, in a process of its own


@torch.no_grad()
def peak_mb(kind: str, name: str, detail: str | int) -> float | None:
    """Peak memory of one case above what Python and the libraries take; None where the kernel does not tell.

    Args:
        kind: "encoder" or "segment" for FS-DINO of the preset `name` at `detail` pixels; "method" for any other, of
            the preset `detail`.
        name: preset or method.
        detail: pixels or preset.
    """
    floor = resident_mb()
    if kind == "method":
        method = build(name, str(detail))
        method.segment(method.remember([reference()]), noise())
    else:
        model = segmenter(name, img_size=int(detail))
        square = torch.rand(1, 3, model.img_size, model.img_size, generator=torch.Generator().manual_seed(0))
        if kind == "encoder":
            model.encoder(square)
        else:
            model.segment(model.remember([reference()]), square[0])
    peak = resident_mb("VmHWM")
    return None if peak is None or floor is None else round(peak - floor, 1)


@torch.no_grad()
def main(
    what: list[str] | None = None, repetitions: int = 3, small: bool = False, csv: Path = RESULTS / "speed.csv"
) -> None:
    """Measure sections (all when left out) and write the CSV; `small` takes tiny models, to try the script."""
    about = provenance(seed=0, protocol=f"batch 1, random weights, medians of {repetitions} rounds in turn")
    for name in what or SECTIONS:
        empty = dict.fromkeys(ORDER, "")
        found = [empty | {"section": name} | row for row in SECTIONS[name](small, repetitions)]
        for row in found:
            print("  ".join(str(value) for value in row.values() if value != ""), flush=True)
        update_rows(csv, [row | about for row in found], ("section",))


if __name__ == "__main__":
    run_script(main)
