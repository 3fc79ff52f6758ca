"""Execution providers of onnxruntime by name: one sentence where one is not to be had, never silence.

GPUs are not at hand here: onnxruntime is a stand-in with its documented calls (`get_available_providers`, and a session
that lists the providers that really started).
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fsdino.predict.engines.providers import PROVIDERS, Hardware, parse
from tests.small import refuses

CUDA, TENSORRT, OPENVINO, CPU = (PROVIDERS[name][0] for name in ("cuda", "tensorrt", "openvino", "cpu"))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """onnxruntime with the providers `built`, of which `broken` raise at the start and `lost` are left out by it."""
    state = SimpleNamespace(built=[CPU], broken=[], lost=[], opened=[])

    class Session:
        def __init__(self, path: Path, options: Any, providers: list[Any], enable_fallback: int) -> None:
            assert enable_fallback == 0, "onnxruntime's own way back prints a block of text on standard output"
            state.opened.append(providers)
            names = [name for name, _ in providers]
            assert set(names) <= set(state.built), "onnxruntime refuses or ignores the others"
            if Path(path).name == "damaged" or set(names) & set(state.broken):
                raise RuntimeError("no libcudart\nmore")
            self._active = [name for name in names if name not in state.lost]

        def get_providers(self) -> list[str]:
            return self._active

    fake = SimpleNamespace(
        InferenceSession=Session, SessionOptions=SimpleNamespace, get_available_providers=lambda: state.built
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return state


def opened(text: str, device: str = "auto", path: str = "segment.onnx", times: int = 1) -> tuple[list[str], list[str]]:
    """The providers that a session runs on, and what was said."""
    said: list[str] = []
    hardware = Hardware(parse(text, device), say=said.append)
    return [hardware.open(Path(path)) for _ in range(times)][-1].get_providers(), said


def test_auto_takes_cuda_where_the_build_has_it(runtime: SimpleNamespace) -> None:
    assert opened("auto") == ([CPU], [])
    runtime.built = [TENSORRT, CUDA, CPU]
    assert opened("auto") == ([CUDA, CPU], []), "TensorRT compiles for minutes, so only where it is asked for"
    assert opened("auto", "cpu") == ([CPU], [])
    assert opened("tensorrt,cuda,cpu") == ([TENSORRT, CUDA, CPU], [])


def test_the_second_gpu(runtime: SimpleNamespace) -> None:
    runtime.built = [CUDA, CPU]
    Hardware(parse("auto", "cuda:1"), 1).open(Path("segment.onnx"))
    assert runtime.opened[-1][0] == (CUDA, {"device_id": 1, "use_tf32": 0})


def test_a_provider_that_is_not_built_in_is_said_once(runtime: SimpleNamespace) -> None:
    active, said = opened("tensorrt,cuda", times=2)
    assert active == [CPU] and len(said) == 2
    assert said[1] == (
        "CUDAExecutionProvider (cuda) was asked for and is not part of this onnxruntime: cpu is used; it needs "
        "onnxruntime-gpu in place of onnxruntime, with its CUDA and cuDNN."
    )
    runtime.built = [OPENVINO, CPU]
    active, said = opened("cuda,openvino,cpu")
    assert active == [OPENVINO, CPU] and "openvino is used" in said[0]
    assert "cuda) was asked for and is not part" in opened("auto", "cuda")[1][0]


def test_a_provider_that_does_not_start_is_said(runtime: SimpleNamespace) -> None:
    runtime.built, runtime.lost = [CUDA, CPU], [CUDA]
    active, said = opened("auto")
    assert active == [CPU] and "cuda) was asked for and did not start: cpu is used" in said[0]
    runtime.lost, runtime.broken = [], [CUDA]
    active, said = opened("cuda,cpu")
    assert active == [CPU] and "did not start (no libcudart): cpu is used" in said[0]
    refuses("cut or damaged", opened, "cuda", path="damaged")


def test_it_is_said_on_standard_error(runtime: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    Hardware(("cuda",)).open(Path("segment.onnx"))
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("onnxruntime: CUDAExecutionProvider (cuda) was asked for")


@pytest.mark.parametrize(
    ("text", "device", "words"),
    [
        ("npu", "auto", "provider 'npu' is unknown; use auto, or one or more of cuda"),
        ("", "auto", "provider '' is unknown"),
        ("cuda,cuda", "auto", "names one twice"),
        ("cpu", "cuda", "contradict each other"),
        ("auto", "cuda:first", "device 'cuda:first' is unknown"),
        ("auto", "mps", "device 'mps' is unknown"),
        ("auto", "cpu:1", "device 'cpu:1' is unknown"),
    ],
)
def test_what_cannot_be_is_refused(text: str, device: str, words: str) -> None:
    refuses(words, parse, text, device)
