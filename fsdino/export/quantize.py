"""What is done to ONNX files: notes of the model inside, weights of eight bits, or half precision throughout."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from fsdino.predict.engines.onnx import METADATA_KEY, NO_SHA256, REMEMBER_FILE, SEGMENT_FILE, graph_sha256


def note_metadata(path: Path, info: dict[str, Any]) -> None:
    """Write the metadata into an ONNX file."""
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps({**info, "sha256": NO_SHA256})})
    proto.producer_name = "fsdino"
    # ONNX has no checksum: without one a flipped bit is another weight, and another mask without a word.
    data = proto.SerializeToString()
    path.write_bytes(data.replace(NO_SHA256.encode(), graph_sha256(data).encode(), 1))


def quantize_int8(source: str | Path, out: str | Path) -> Path:
    """Write both graphs of a folder to another, with weights of 8 bits; activations are quantised as they come."""
    target = Path(out)
    for name, proto in _graphs(source, target):
        noted = {entry.key: entry.value for entry in proto.metadata_props}
        # The exporter's notes on inner shapes name dimensions in ways that onnx's own inference takes for mistakes.
        del proto.graph.value_info[:]
        # Matrix products hold nearly all weights; the few convolutions stay as they are.
        options = {"op_types_to_quantize": ["MatMul", "Gemm"], "per_channel": True, "weight_type": QuantType.QInt8}
        with _without_advice():
            quantize_dynamic(proto, target / name, **options)
        # Noted again: no engine takes a file without, and the quantiser does not promise to keep them.
        note_metadata(target / name, json.loads(noted[METADATA_KEY]))
    return target


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep back onnxruntime's advice to pre-process graphs first, which those of `fsdino export` do not need."""

    def wanted(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)


def halve(source: str | Path, out: str | Path) -> Path:
    """Write both graphs of a folder to another in half precision, half the size; for GPUs, on CPUs it is slower.

    What goes in and comes out stays float32, so memories are exchanged with the other forms, and images lose nothing.
    """
    target = Path(out)
    for name, proto in _graphs(source, target):
        noted = {entry.key: entry.value for entry in proto.metadata_props}
        onnx.save(convert_float_to_float16(proto, keep_io_types=True), target / name)
        note_metadata(target / name, json.loads(noted[METADATA_KEY]))
    return target


def _graphs(source: str | Path, target: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Both graphs of a folder by file name; the folder they go to is made."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (REMEMBER_FILE, SEGMENT_FILE):
        path = Path(source) / name
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' does not exist; export the model as onnx first.")
        yield name, onnx.load(path)
