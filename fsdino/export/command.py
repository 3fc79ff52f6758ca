"""`fsdino export` as a plain function: a model as safetensors, torch.export programs and ONNX graphs, each checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fsdino.base.method import FewShotMethod
from fsdino.base.storage import load, save
from fsdino.export.agreement import Checks, agreement, checks
from fsdino.export.graphs import OPSET, SHOTS, Graph, encoder_of, export_onnx, export_program, graphs
from fsdino.predict.engines.onnx import (
    FORMAT_VERSION,
    REMEMBER_FILE,
    SEGMENT_FILE,
    OnnxEngine,
    open_session,
)
from fsdino.predict.formats import listed

ExportFormat = Literal["safetensors", "pt2", "onnx", "onnx_fp16", "int8"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("safetensors", "pt2", "onnx", "onnx_fp16", "int8")
# Graphs that are made from the float32 ones and round: format -> the folder inside, and what they are called.
ROUNDED = {"onnx_fp16": ("fp16", "16-bit"), "int8": ("int8", "8-bit")}
TOLERANCE = 1e-3  # largest difference allowed between a graph and torch, in logits


def export(
    model: str,
    out: str,
    formats: Sequence[ExportFormat] = ("safetensors", "onnx"),
    half: bool = False,
    check_images: str | None = None,
) -> Path:
    """Write a model for use elsewhere; every graph is compared with torch before it counts as written.

    Args:
        model: a preset, model folder, checkpoint or Hub id.
        out: folder for the files: model.safetensors and config.json, {remember,segment}.onnx, {remember,segment}.pt2,
            fp16/{remember,segment}.onnx and int8/{remember,segment}.onnx; it is returned.
        formats: any of safetensors, pt2 (torch.export), onnx, onnx_fp16 (half precision inside, float32 outside), int8
            (onnx with 8-bit weights).
        half: store safetensors in half precision.
        check_images: images with masks, as `fsdino predict --support` takes them, on which rounded graphs are compared
            with torch; scenes of the embedded world when left out.

    Raises:
        ValueError: if a format is unknown, the model has no graphs, or one computes other numbers than torch.
    """
    asked: list[str] = list(formats) or ["nothing"]
    if unknown := [name for name in asked if name not in EXPORT_FORMATS]:
        raise ValueError(f"export format {unknown[0]!r} is unknown; use {', '.join(EXPORT_FORMATS)}.")
    # Read before the model: what can be wrong with them should show first.
    on = checks(check_images) if set(ROUNDED) & set(formats) else None
    method, folder = load(model), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if "safetensors" in formats:
        save(method, folder, half=half)
        # Half precision rounds the weights, and the graphs should be of what was stored.
        method = load(folder)
    if graphs_asked := {"pt2", "onnx", *ROUNDED} & set(formats):
        if not method.exportable:
            raise ValueError(
                f"'{model}' holds {method.title}, which has no graphs ({', '.join(sorted(graphs_asked))}); export it "
                "as safetensors, or give a model of FS-DINO or of the training-free chain."
            )
        export_graphs(method, folder, formats, on)
    return folder


def export_files(
    out: str,
    model: str = "tiny",
    formats: Sequence[ExportFormat] | str = ("safetensors", "onnx"),
    half: bool = False,
    check_images: str | None = None,
) -> int:
    """Write a model for use elsewhere; every graph is compared with torch before it counts as written.

    Args:
        out: folder for the files.
        model: a preset, model folder, checkpoint or Hub id.
        formats: any of safetensors, pt2 (torch.export), onnx, onnx_fp16 (half precision inside, float32 outside), int8
            (onnx with 8-bit weights), comma-separated.
        half: store safetensors in half precision.
        check_images: images with masks, as predict's --support takes them, on which rounded graphs are compared with
            torch; scenes of the embedded world when left out.

    Returns:
        Exit code; the files are listed with their sizes.
    """
    folder, wanted = Path(out), listed(formats)
    export(model, out, wanted, half, check_images)  # type: ignore[arg-type]
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt2", ".onnx")):
        print(f"{path.stat().st_size / 1e6:8.1f} MB  {path}")
    for name, (part, bits) in ROUNDED.items():
        if name in wanted:
            print(f"IoU of the {bits} masks with torch's: {OnnxEngine(folder / part).info['agreement_in_words']}")
    return 0


def export_graphs(
    model: FewShotMethod, folder: Path, formats: Sequence[str], on: Checks | None = None
) -> dict[str, float]:
    """Write the graphs of a method on the CPU, whose encoder accepts the native size alone afterwards.

    Args:
        on: what rounded graphs are compared on; None takes the embedded world.

    Returns:
        Largest difference from torch by file name, in logits. Of graphs that round, their files note under "agreement"
        how far their masks are torch's.

    Raises:
        ValueError: if a graph differs from torch.
    """
    if {"onnx", *ROUNDED} & set(formats):
        # Optional packages: torch alone writes the other formats.
        try:
            from fsdino.export.quantize import halve, note_metadata, quantize_int8
        except ImportError as error:
            raise ImportError(f"ONNX files need {error.name}; install it with `pip install fsdino[onnx]`.") from error
    differences = {}
    for graph in graphs(model.eval()):
        program = export_program(graph)
        if "pt2" in formats:
            path = folder / f"{graph.name}.pt2"
            torch.export.save(program, path)
            differences[path.name] = compare_program(graph, path)
        if {"onnx", *ROUNDED} & set(formats):
            # Also where only rounded graphs are asked for, which are made from it.
            path = folder / f"{graph.name}.onnx"
            export_onnx(graph, program, path)
            note_metadata(path, metadata(model))
            differences[path.name] = compare_onnx(graph, path)
    for name, difference in differences.items():
        # Not `>`: a graph that gives NaN must not pass.
        if not difference <= TOLERANCE:
            raise ValueError(
                f"'{folder / name}' differs from torch by {difference:.1e}, allowed are {TOLERANCE:.0e}; do not use "
                "it, and report the versions of torch, onnxscript and onnxruntime."
            )
    for name, (part, _) in ROUNDED.items():
        if name in formats:
            rounded = (quantize_int8 if name == "int8" else halve)(folder, folder / part)
            found = agreement(model, rounded, on or checks())
            noted = {**metadata(model), "agreement": found.mean, "agreement_in_words": str(found)}
            for file in (REMEMBER_FILE, SEGMENT_FILE):
                note_metadata(rounded / file, noted)
    return differences


def metadata(model: FewShotMethod) -> dict[str, Any]:
    """What a graph's user must know, kept inside the file."""
    encoder = encoder_of(model)
    told = {} if model.missed_classes is None else {"missed_classes": list(model.missed_classes)}
    return {
        "format_version": FORMAT_VERSION,
        "method": model.name,
        "fingerprint": model.fingerprint(),
        "img_size": model.img_size,
        "resize_mode": model.resize.mode,
        "threshold": model.threshold,
        "opset": OPSET,
        "input_range": [0, 1],
        "mean": encoder.mean.flatten().tolist(),  # applied inside the graph
        "std": encoder.std.flatten().tolist(),
        "growing": dict(model.memory_type.growing),
        "segmenter": model.arguments(),
        **told,
    }


def variations(graph: Graph) -> list[tuple[torch.Tensor, ...]]:
    """Inputs of the traced sizes and of others: one image, one class, fewer and more references."""
    # A size that tracing has frozen shows only at another size than the traced one.
    first = tuple(tensor[:1] for tensor in graph.inputs)
    if graph.name == "remember":
        return [graph.inputs, first, tuple(torch.cat([tensor, tensor[:2]]) for tensor in graph.inputs)]
    mixed = (graph.inputs[0][:1], *graph.inputs[1:])
    return [graph.inputs, first, mixed, with_references(graph, 1), with_references(graph, 5)]


def with_references(graph: Graph, shots: int) -> tuple[torch.Tensor, ...]:
    """The inputs of a segment graph, its memories of another number of references (those traced, over and over)."""
    found = []
    for name, tensor in zip(graph.input_names, graph.inputs):
        if axis := graph.growing.get(name):
            parts = tensor.chunk(SHOTS, axis)
            tensor = torch.cat([parts[i % SHOTS] for i in range(shots)], axis)
        found.append(tensor)
    return tuple(found)


def compare_program(graph: Graph, path: Path) -> float:
    """Largest difference between a saved program and the module, over several sizes of input."""
    module = torch.export.load(path).module()
    with torch.no_grad():
        return max(
            float((a - b).abs().max())
            for inputs in variations(graph)
            for a, b in zip(module(*inputs), graph.module(*inputs))
        )


def compare_onnx(graph: Graph, path: Path) -> float:
    """Largest difference between an ONNX file in onnxruntime and the module, over several sizes of input."""
    session = open_session(path)
    largest = 0.0
    for inputs in variations(graph):
        with torch.no_grad():
            expected = graph.module(*inputs)
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(graph.input_names, inputs)})
        largest = max(largest, *(float(np.abs(a.numpy() - b).max()) for a, b in zip(expected, found)))
    return largest
