"""Few-shot mIoU of methods on data sets: `python -m benchmarks.accuracy.few_shot --methods [...] --data [...]`.

One row for each method, data set, number of shots and fold, and one for the mean of the folds. Combinations that the
CSV has are kept (`--again true` measures them anew) and an interrupted one goes on: the same command fills what is
missing.

A method is what `fsdino evaluate` takes, with options after a colon: `tiny`, `runs/x/export`, `prototype`,
`'prototype:preset=b14,encoder_weights=timm'`, `'sansa:size=large,weights=FILE'`. A data set is `NAME` or `NAME=DIR`.
Fixed lists are taken where there are any (`benchmarks/episodes`, or `episodes` in the data set's folder), else drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.accuracy.experiments import sizes
from benchmarks.common import LISTS, RESULTS, Row, provenance, read_rows, run_script, update_rows
from fsdino.base.method import FewShotMethod
from fsdino.data.episodes.protocols import protocol as protocol_named
from fsdino.evaluation.command import Measured, Work, measure_folds, write_results
from fsdino.evaluation.episode_choice import EpisodeChoice
from fsdino.evaluation.method_choice import MethodChoice, identity
from fsdino.evaluation.tables import result_rows

METHODS = ["tiny", "prototype", "chain", "prototype:encoder_weights=random", "all_foreground:img_size=112"]
# What makes two rows the same measurement.
KEY = ("model", "data", "shots", "protocol")


@dataclass(frozen=True)
class Cell:
    """One method, as typed and as chosen, on one data set; `protocol` says which lists and which scoring."""

    model: str
    choice: MethodChoice
    test: EpisodeChoice
    protocol: str

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of `KEY`."""
        return (self.model, self.test.data, str(self.test.shots), self.protocol)


def method_choice(text: str) -> MethodChoice:
    """A method from `NAME` or `NAME:key=value,...`; keys that `MethodChoice` has not are the method's own options.

    Raises:
        ValueError: an option is not of the form key=value.
    """
    name, _, tail = text.partition(":")
    own = {field.name for field in fields(MethodChoice)} - {"method", "options"}
    arguments: dict[str, Any] = {"options": {}}
    for part in filter(None, tail.split(",")):
        key, mark, value = part.partition("=")
        if not mark:
            raise ValueError(f"option '{part}' of method '{text}' is not key=value; write NAME:key=value,key=value.")
        (arguments if key in own else arguments["options"])[key] = yaml.safe_load(value)
    return MethodChoice(name, **arguments)


def cell(model: str, data: str, shots: int, folds: str, protocol: str, number: int | None = None) -> Cell:
    """One combination, with the fixed lists where there are any; a number of episodes draws lists all the same."""
    name, _, root = data.partition("=")
    places = [LISTS / f"{name}_fold{{fold}}_{{shots}}shot.json"]
    places += [Path(root) / "episodes" / "fold{fold}_{shots}shot.json"] if root else []
    lists = [str(place) for place in places if Path(str(place).format(fold=0, shots=shots)).is_file()]
    fixed = lists[0] if lists and number is None else None
    test = EpisodeChoice(name, root or None, folds, shots, protocol, list=fixed, episodes=number)
    manner = "fixed list, original size" if fixed else f"{protocol}, {protocol_named(protocol).scoring} size"
    return Cell(model, method_choice(model), test, manner + (f", {number} episodes" if number else ""))


def label(choice: MethodChoice, method: FewShotMethod) -> str:
    """What readers call a method."""
    variant = (method.arguments() or {}).get("variant")
    title = f"{method.title} {variant}" if variant else method.title
    return f"{title}, random encoder" if choice.encoder_weights == "random" else title


def rows_of(one: Cell, measured: Measured) -> list[Row]:
    """The rows of a combination with the columns that they share."""
    method, test = measured.method, one.test
    head = {"method": label(one.choice, method), "model": one.model, "data": test.data, "shots": test.shots}
    tail = sizes(method) | {"identity": identity(method)}
    tail |= provenance(seed=protocol_named(test.protocol).seed, protocol=one.protocol)
    found = result_rows(measured.results, measured.index, head | {"img_size": method.img_size})
    return [row | tail for row in found]


def main(
    csv: Path = RESULTS / "few_shot.csv",
    methods: list[str] = METHODS,
    data: list[str] = ["synthetic"],  # noqa: B006 - never changed
    shots: list[int] = [1],  # noqa: B006
    folds: str = "all",
    protocol: str = "fsdino",
    episodes: int | None = None,
    devices: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    num_workers: int = 0,
    strips: int = 0,
    again: bool = False,
) -> None:
    """Measure every combination that the CSV has not.

    Args:
        folds: all, or numbers with commas.
        protocol: how lists are drawn that are not there.
        episodes: draw so many episodes a fold, in place of fixed lists.
        devices: processes that share a list.
        strips: episodes on each fold's contact sheet.
        again: measure also what the CSV has.
    """
    work = Work(devices, device, num_workers=num_workers)
    wanted = [(model, name, number) for name in data for number in shots for model in methods]
    for one in [cell(model, name, number, folds, protocol, number=episodes) for model, name, number in wanted]:
        old = read_rows(csv)
        if not again and len(old) and one.key in set(old[list(KEY)].itertuples(index=False, name=None)):
            print(f"{' · '.join(one.key)}: there already", flush=True)
            continue
        measured, folder = measure_folds(one.choice, one.test, work=work, strips=strips)
        write_results(measured, folder, {"method": one.model})
        found = rows_of(one, measured)
        update_rows(csv, found, KEY)
        print(f"{' · '.join(one.key)}: mIoU {found[-1]['miou']:.2f} ({folder})", flush=True)


if __name__ == "__main__":
    run_script(main)
