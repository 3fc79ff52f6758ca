"""Runs exported graphs with OpenVINO, through its own reader of ONNX files; neither torch nor onnxruntime is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fsdino.predict.engines.onnx import OnnxEngine
from fsdino.predict.engines.providers import PROVIDERS


class OpenvinoGraph:
    """A compiled graph behind the few calls of an onnxruntime session that the engine makes."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        # Optional: the other runtimes need neither.
        try:
            import onnx
            import openvino
        except ImportError as error:
            raise ImportError(
                "the openvino runtime needs openvino and onnx; install them with `pip install fsdino[openvino]`."
            ) from error
        # Float32 also where the processor could do with half: the same numbers as the other runtimes.
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            proto = onnx.load(path, load_external_data=False)
            self._notes = {entry.key: entry.value for entry in proto.metadata_props}
            self._output_names = [output.name for output in proto.graph.output]
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(path), "CPU", config)
        # The parsers of both libraries have exceptions of their own, without a common base.
        except Exception as error:
            raise ValueError(f"'{path}' is cut or damaged ({str(error).splitlines()[0]}); export it again.") from error

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs of the graph, in its order."""
        found = self._compiled(inputs)
        # Copied: OpenVINO writes the next answer into the same memory.
        return [np.array(found[name]) for name in self._output_names]

    def get_outputs(self) -> list[Any]:
        """The outputs, each with its `name`."""
        return [SimpleNamespace(name=name) for name in self._output_names]

    def get_providers(self) -> list[str]:
        """What it runs on, by onnxruntime's name for it."""
        return [PROVIDERS["openvino"][0]]

    def get_modelmeta(self) -> Any:
        """What the export noted in the file."""
        return SimpleNamespace(custom_metadata_map=self._notes)


class OpenvinoEngine(OnnxEngine):
    """As `OnnxEngine`, in OpenVINO on the CPU."""

    def open_graph(self, path: Path, threads: int) -> Any:
        """See `OnnxEngine.open_graph`."""
        return OpenvinoGraph(path, threads)
