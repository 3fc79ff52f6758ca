"""What onnxruntime computes on: its execution providers by short names, and sentences where one is not to be had.

onnxruntime itself falls back to the CPU with a block of text on standard output, or none at all where a provider's
libraries are missing, so a job may run for hours on the wrong hardware unnoticed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Short name -> onnxruntime's name, and what has to be installed for it.
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu in place of onnxruntime, with its CUDA and cuDNN"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu in place of onnxruntime, with its TensorRT"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino in place of onnxruntime"),
    "directml": ("DmlExecutionProvider", "onnxruntime-directml in place of onnxruntime, on Windows"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime on macOS"),
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
}
# Those that compute on a GPU; OpenVINO does so only where it is told to.
ON_GPU = {PROVIDERS[name][0] for name in ("cuda", "tensorrt", "directml")}
AUTO = "auto"


def parse(text: str, device: str = AUTO) -> tuple[str, ...]:
    """Providers of a comma-separated list, the preferred first; `auto` follows the device: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: for an unknown or repeated name, or a device that the list does not use.
    """
    kind, _, number = device.partition(":")
    if kind not in (AUTO, "cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
        raise ValueError(f"device {device!r} is unknown to the onnx runtime; use auto, cpu, cuda or cuda:1.")
    if text == AUTO:
        return (AUTO,) if kind == AUTO else (kind,)
    names = tuple(name.strip().lower() for name in text.split(","))
    if unknown := [name for name in names if name not in PROVIDERS]:
        raise ValueError(f"provider {unknown[0]!r} is unknown; use auto, or one or more of {', '.join(PROVIDERS)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"providers {text!r} names one twice; name each once, the preferred first.")
    needed = {"cpu": {"cpu"}, "cuda": {"cuda", "tensorrt"}}.get(kind, set(names))
    if not needed & set(names):
        raise ValueError(f"--device {device} and --providers {text} contradict each other; leave one out.")
    return names


def say(sentence: str) -> None:
    """Put a sentence on standard error."""
    print(f"onnxruntime: {sentence}", file=sys.stderr)


@dataclass
class Hardware:
    """The providers that graphs are opened with.

    Args:
        wanted: of `parse`; ("auto",) takes CUDA where this onnxruntime was built with it.
        number: which GPU.
        say: takes a sentence where something else than what was wanted is used; each is said once.
    """

    wanted: Sequence[str] = ("cpu",)
    number: int = 0
    say: Callable[[str], None] = say
    _said: set[str] = field(default_factory=set)

    def open(self, path: Path, threads: int = 0) -> Any:
        """An `onnxruntime.InferenceSession` of a file; 0 threads takes all cores.

        Raises:
            ImportError: without onnxruntime.
            ValueError: if the file is damaged.
        """
        # Optional: torch runs without it.
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "the onnx runtime needs onnxruntime; install it with `pip install fsdino[onnx]`."
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors alone
        usable = self._usable(onnxruntime.get_available_providers())
        try:
            session = self._session(onnxruntime, path, options, usable)
        # onnxruntime has an exception of its own for every kind of damage, without a common base.
        except Exception as error:
            # A damaged file fails on the CPU as well; a provider that cannot start does not.
            try:
                session = self._session(onnxruntime, path, options, ["cpu"])
            except Exception:
                raise ValueError(f"'{path}' is cut or damaged ({first_line(error)}); export it again.") from error
            self._fell(usable[0], f"did not start ({first_line(error)})", "cpu")
            return session
        active = session.get_providers()
        for name in usable:
            # A provider whose libraries are missing is left out without an error.
            if PROVIDERS[name][0] not in active:
                self._fell(name, "did not start", used(active))
        return session

    def _usable(self, available: Sequence[str]) -> list[str]:
        """The wanted providers that this onnxruntime was built with; the CPU always is one of them."""
        if tuple(self.wanted) == (AUTO,):
            return ["cuda", "cpu"] if PROVIDERS["cuda"][0] in available else ["cpu"]
        there = [name for name in self.wanted if PROVIDERS[name][0] in available]
        usable = list(dict.fromkeys([*there, "cpu"]))
        for name in self.wanted:
            if name not in usable:
                self._fell(name, "is not part of this onnxruntime", usable[0])
        return usable

    def _session(self, onnxruntime: Any, path: Path, options: Any, names: Sequence[str]) -> Any:
        numbered: dict[str, dict[str, Any]] = {
            # Without TensorFloat-32 the numbers are those of the other runtimes, to 1e-4.
            "cuda": {"device_id": self.number, "use_tf32": 0},
            "tensorrt": {"device_id": self.number},
            "directml": {"device_id": self.number},
        }
        providers = [(PROVIDERS[name][0], numbered.get(name, {})) for name in names]
        # Its own way back would hide which provider failed.
        return onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)

    def _fell(self, name: str, why: str, instead: str) -> None:
        provider, package = PROVIDERS[name]
        sentence = f"{provider} ({name}) was asked for and {why}: {instead} is used; it needs {package}."
        if sentence not in self._said:
            self._said.add(sentence)
            self.say(sentence)


def used(active: Sequence[str]) -> str:
    """The short name of a session's first provider."""
    return next((short for short, (name, _) in PROVIDERS.items() if name == active[0]), active[0])


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
