"""Where a number comes from: the columns that every CSV of `benchmarks/results` carries."""

from __future__ import annotations

import csv
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("machine", "threads", "torch", "precision", "seed", "commit", "command", "protocol")


def provenance(
    *, precision: str = "float32", seed: int | None = None, protocol: str | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """The columns that say how a row was made.

    Args:
        precision: of the arithmetic.
        seed: of the run; None leaves the column out, for rows that have their own.
        protocol: what was measured how; None leaves the column out.
        device: "cpu" or "cuda", whose name is added to the machine's.

    Returns:
        Column to value, in the order of `COLUMNS`.
    """
    values = {
        "machine": machine() + (f", {torch.cuda.get_device_name()}" if device == "cuda" else ""),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
        "seed": seed,
        "commit": commit(),
        "command": command(),
        "protocol": protocol,
    }
    return {name: value for name, value in values.items() if value is not None}


def machine() -> str:
    """The processor's name and the number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(named, f":{name}").split(":", 1)[1].strip()
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit of the working tree, "-dirty" where tracked files differ from it; "unknown" outside git."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command() -> str:
    """The command line, with the script's path from the top of the repository."""
    script = Path(sys.argv[0]).resolve()
    shown = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", shown, *sys.argv[1:]])


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV whose header holds every key of the rows, provenance last; floats as they are.

    Args:
        path: the file; its folder is made.
        rows: column to value.
    """
    rows = list(rows)
    seen = dict.fromkeys(key for row in rows for key in row)
    columns = [name for name in seen if name not in COLUMNS] + [name for name in COLUMNS if name in seen]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV as text; none where there is no file."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
