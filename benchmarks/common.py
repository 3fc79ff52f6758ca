"""What every benchmark shares: the columns that say where a number comes from, result files, and the command line."""

from __future__ import annotations

import functools
import inspect
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jsonargparse import auto_cli

ROOT = Path(__file__).resolve().parents[1]
RESULTS, LISTS = ROOT / "benchmarks" / "results", ROOT / "fsdino" / "data" / "lists"
ONE_SHOT = LISTS / "synthetic_fold0_1shot.json"
COLUMNS = ("machine", "threads", "torch", "precision", "seed", "commit", "command", "protocol")
Row = dict[str, Any]


# ---- where a number comes from


def provenance(*, precision: str = "float32", seed: int | None = None, protocol: str | None = None) -> Row:
    """The columns that say how a row was made, in the order of `COLUMNS`; those that are None are left out."""
    values = {
        "machine": machine(),
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
    """The commit of the working tree, "-dirty" where tracked code differs from it; "unknown" outside git."""
    try:
        return _git("describe", "--always", "--exclude=*") + ("-dirty" if changed_code() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def changed_code() -> list[str]:
    """Tracked files of code and recipes that differ from the commit: no number can be made again with those.

    Raises:
        subprocess.CalledProcessError: outside git.
    """
    # Documents and result files may differ: a benchmark writes them, and measures neither.
    return _git("diff", "--name-only", "HEAD", "--", "fsdino", "recipes", ":(glob)benchmarks/**/*.py").splitlines()


def _git(*asked: str) -> str:
    return subprocess.run(["git", *asked], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def command() -> str:
    """The command line; a module of this repository as `python -m` takes it."""
    script = Path(sys.argv[0]).resolve()
    if script.is_relative_to(ROOT):
        module = ".".join(script.relative_to(ROOT).with_suffix("").parts)
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return shlex.join(["python", script.name, *sys.argv[1:]])


# ---- result files


def read_rows(path: str | Path) -> pd.DataFrame:
    """A CSV as text, empty cells as empty strings; no rows where there is no file."""
    return pd.read_csv(path, dtype=str, keep_default_na=False) if Path(path).is_file() else pd.DataFrame()


def load(results: Path, name: str) -> pd.DataFrame:
    """The rows of all files `NAME*.csv`, one file after the other."""
    found = [read_rows(path) for path in sorted(results.glob(f"{name}*.csv"))]
    return pd.concat(found, ignore_index=True).fillna("") if found else pd.DataFrame()


def refuse_dirty(path: str | Path) -> None:
    """Keep numbers of code that no commit has out of the results of this repository.

    Raises:
        ValueError: for a file in `benchmarks/results` while tracked code differs from the commit, unless the
            environment has FSDINO_ALLOW_DIRTY=1; the rows are then labelled "-dirty".
    """
    if not Path(path).resolve().is_relative_to(RESULTS) or os.environ.get("FSDINO_ALLOW_DIRTY") == "1":
        return
    if commit().endswith("-dirty"):
        raise ValueError(
            f"numbers for '{Path(path).name}' would come from code that no commit has ({', '.join(changed_code())} "
            "changed); commit first, write elsewhere, or set FSDINO_ALLOW_DIRTY=1 to have the rows labelled '-dirty'."
        )


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV whose header holds every key of the rows in the order of first use; numbers as Python writes them.

    Raises:
        ValueError: as `refuse_dirty` does.
    """
    refuse_dirty(path)
    # dtype=object: otherwise a column of whole numbers with a gap would be written as 3.0
    table = pd.DataFrame(list(rows), dtype=object)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


def update_rows(path: str | Path, rows: Sequence[Row], key: Sequence[str]) -> None:
    """Add rows to a CSV; older rows that have the same texts in the columns of `key` are left out."""

    def known(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row.get(name, "")) for name in key)

    new, old = {known(row) for row in rows}, read_rows(path).to_dict("records")
    write_rows(path, [*(row for row in old if known(row) not in new), *rows])


def mean_interval(values: Sequence[float], rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean of shares in [0, 1] with the ends of its 95 % bootstrap interval, in percent."""
    draws = rng.choice(values, (1000, len(values))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return tuple(round(100 * float(value), 2) for value in (np.mean(values), low, high))  # type: ignore[return-value]


def by(rows: pd.DataFrame, *names: str) -> dict[str, pd.DataFrame]:
    """Rows with the same texts in some columns, in the order of their first rows; the texts joined by a space."""
    if rows.empty:
        return {}
    return {" ".join(key): found for key, found in rows.groupby(list(names), sort=False)}


def with_variant(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `variant`: the run's name without seed, fold and shots."""
    return rows.assign(variant=rows["run"].str.replace(r"-((seed|fold)\d+|\d+shot)", "", regex=True))


# ---- the command line


def run_script(main: Callable[..., None]) -> None:
    """Call a script's `main` with the options of the command line; `--help` shows the script's docstring."""

    @functools.wraps(main)
    def checked(**options: Any) -> None:
        # Now, not when it writes: what was measured for an hour would be lost.
        for name in ("csv", "out"):
            if name in options:
                refuse_dirty(options[name])
        main(**options)

    auto_cli(checked, description=inspect.getdoc(inspect.getmodule(main)))
