"""`fsdino models`: every model with a name, and whether its weights are on this disk. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from json import dumps, loads
from math import prod
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from fsdino.base.auto import chosen_model
from fsdino.base.bundled import BUNDLED, bundled_file, bundled_folder
from fsdino.base.catalog import APACHE, CATALOG, Encoder
from fsdino.base.encoder_file import file_on_disk

_COLUMNS = ("name", "parameters", "licence", "weights", "measured")


@dataclass(frozen=True)
class Listed:
    """One model.

    Args:
        name: what `--model` takes.
        kind: bundled with the package, a frozen encoder with the training-free chain, or trained in a run here.
        megabytes: of its files on this disk, or of the download.
        file: where the weights are on this disk; None: they would be fetched.
        parameters: None where nothing but loading it would tell.
        licence: of the weights; None for the user's own.
        measured: named scores, as they were recorded with it.
    """

    name: str
    kind: Literal["bundled", "encoder", "run"]
    megabytes: float
    file: str | None
    parameters: int | None = None
    licence: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)

    def row(self) -> tuple[str, ...]:
        """As text, in the order of the columns."""
        where = "to be fetched" if self.file is None else "bundled" if self.kind == "bundled" else "on this disk"
        return (
            self.name,
            "-" if self.parameters is None else f"{self.parameters / 1e6:,.1f} M",
            self.licence or "your own",
            f"{self.megabytes:,.0f} MB, {where}",
            "; ".join(f"{name} {value}" for name, value in self.measured.items()) or "-",
        )


def listed(runs: Path) -> list[Listed]:
    """All models: bundled ones, trained runs below a folder (newest first), then encoders, best first."""
    return [*map(_bundled, BUNDLED), *_trained(runs), *map(_encoder, CATALOG.values())]


def _bundled(name: str) -> Listed:
    folder = bundled_folder(name)
    told = loads((folder / "config.json").read_text(encoding="utf-8"))
    files = [folder / "model.safetensors", *([bundled_file(told["encoder"])] if "encoder" in told else [])]
    size = sum(file.stat().st_size for file in files) / 1e6
    known = {"parameters": sum(map(_count, files)), "licence": APACHE, "measured": told.get("results", {})}
    return Listed(name, "bundled", size, str(folder), **known)


def _encoder(entry: Encoder) -> Listed:
    file = file_on_disk(entry.timm, entry.repository)
    size = entry.megabytes if file is None else file.stat().st_size / 1e6
    where = None if file is None else str(file)
    return Listed(entry.name, "encoder", size, where, parameters=entry.parameters, licence=entry.licence)


def _trained(runs: Path) -> Iterator[Listed]:
    """Runs that have an exported model or a checkpoint of episode training; what else lies there is left out."""
    # Names of runs are times, so the newest comes first.
    for config in sorted(runs.glob("*/*/config.yaml"), key=lambda path: path.parent.name, reverse=True):
        folder, weights = config.parent, config.parent / "export" / "model.safetensors"
        if weights.is_file():
            try:
                count, told = _count(weights), loads((weights.parent / "config.json").read_text(encoding="utf-8"))
            # One damaged run must not hide the other models; opening it says what is wrong.
            except (SafetensorError, OSError, ValueError):
                count, told = None, {}
            scores = told.get("results", {}) if isinstance(told, dict) else {}
            size = weights.stat().st_size / 1e6
            yield Listed(str(folder), "run", size, str(weights), parameters=count, measured=scores)
        elif found := [*folder.glob("train/checkpoints/best.ckpt"), *folder.glob("train/checkpoints/last.ckpt")]:
            yield Listed(str(folder), "run", found[0].stat().st_size / 1e6, str(found[0]))


def _count(file: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with safe_open(file, framework="numpy") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - no dictionary


def models(runs: str = "runs", json: bool = False) -> int:
    """List the models that have a name, what is on this disk, and which one "auto" takes. Asks no network.

    Args:
        runs: folder of the runs of `fsdino run`.
        json: as JSON, with the paths of the files.
    """
    found = listed(Path(runs))
    name, reason = chosen_model()
    if json:
        print(dumps({"auto": name, "models": [asdict(one) for one in found]}, indent=2))
        return 0
    rows = [_COLUMNS, *(one.row() for one in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(
        f"\n--model auto takes {name} ({reason}).\nEncoders are used without training; any other Vision Transformer "
        "goes by timm's name, and\n--encoder-weights FILE takes the weights from a file. A licence is timm's record of "
        "it: the model's page on the Hub\nhas the terms."
    )
    return 0
