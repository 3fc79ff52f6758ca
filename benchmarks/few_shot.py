"""Few-shot mIoU of methods on data sets: `python benchmarks/few_shot.py --csv FILE [--methods ...] [--data ...]`.

One row for each method, data set, number of shots and fold, and one for the mean of the folds. Combinations that the
CSV has are kept (`--again` measures them anew) and an interrupted one goes on: the same command fills what is missing.

A method is what `fsdino evaluate` takes, with options after a colon: `tiny`, `runs/x/export`, `prototype`,
`prototype:preset=b14,encoder_weights=timm`, `sansa:size=large,weights=FILE`. A data set is `NAME` or `NAME=DIR`. Fixed
lists are taken where there are any (`benchmarks/episodes`, or `episodes` in the data set's folder), else drawn.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from provenance import ROOT, provenance, read_rows, write_rows

from fsdino.base.method import FewShotMethod
from fsdino.data.episodes.protocols import protocol as protocol_named
from fsdino.evaluation.command import Measured, Work, measure_folds, write_results
from fsdino.evaluation.episode_choice import EpisodeChoice
from fsdino.evaluation.method_choice import MethodChoice, identity
from fsdino.evaluation.tables import result_rows
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.training.optim import count_parameters

DEFAULT_METHODS = ("tiny", "prototype", "prototype:encoder_weights=random", "all_foreground:img_size=112")
# What makes two rows the same measurement.
KEY = ("model", "data", "shots", "protocol")


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one number of shots.

    Args:
        model: the method as it was typed.
        choice: the method.
        test: data set, folds and lists.
        protocol: column that says which lists and which scoring.
    """

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
    own = {field.name for field in fields(MethodChoice)} - {"name", "options"}
    arguments: dict[str, Any] = {"options": {}}
    for part in filter(None, tail.split(",")):
        key, mark, value = part.partition("=")
        if not mark:
            raise ValueError(f"option '{part}' of method '{text}' is not key=value; write NAME:key=value,key=value.")
        (arguments if key in own else arguments["options"])[key] = yaml.safe_load(value)
    return MethodChoice(name, **arguments)


def cell(model: str, data: str, shots: int, folds: str, protocol: str, number: int | None) -> Cell:
    """One combination, with the fixed lists where there are any.

    Args:
        model: method with options.
        data: `NAME` or `NAME=DIR`.
        shots: references per episode.
        folds: "all" or numbers with commas.
        protocol: how lists are drawn that are not there.
        number: episodes a fold of drawn lists; a number draws them even where there are fixed ones.
    """
    name, _, root = data.partition("=")
    places = [ROOT / "benchmarks" / "episodes" / f"{name}_fold{{fold}}_{{shots}}shot.json"]
    places += [Path(root) / "episodes" / "fold{fold}_{shots}shot.json"] if root else []
    lists = [str(place) for place in places if Path(str(place).format(fold=0, shots=shots)).is_file()]
    fixed = lists[0] if lists and number is None else None
    test = EpisodeChoice(name, root or None, folds, shots, protocol, fixed, number)
    manner = "fixed list, original size" if fixed else f"{protocol}, {protocol_named(protocol).scoring} size"
    return Cell(model, method_choice(model), test, manner + (f", {number} episodes" if number else ""))


def label(choice: MethodChoice, method: FewShotMethod) -> str:
    """What readers call a method."""
    if isinstance(method, FewShotSegmenter):
        return f"FS-DINO {method.config.variant}"
    kind = type(method).__name__.removesuffix("Method")
    plain = {"Prototype": "prototype", "AllForeground": "all foreground", "Persam": "PerSAM", "Sansa": "SANSA",
             "Fssam": "FSSAM"}.get(kind, kind)  # fmt: skip
    return f"{plain}, random encoder" if choice.encoder_weights == "random" else plain


def rows_of(one: Cell, measured: Measured) -> list[dict[str, Any]]:
    """The rows of a combination with the columns that they share."""
    method = measured.method
    trained: Any = method
    about = {"method": label(one.choice, method), "model": one.model, "data": one.test.data, "shots": one.test.shots,
             "img_size": method.img_size}  # fmt: skip
    sizes = {"total": count_parameters(method.parameters()),
             "trained": count_parameters(trained.trainable_parameters()), "identity": identity(method)}  # fmt: skip
    plan = protocol_named(one.test.protocol)
    return [row | sizes | provenance(seed=plan.seed, protocol=one.protocol)
            for row in result_rows(measured.results, measured.index, about)]  # fmt: skip


def main() -> None:
    """Measure every combination that the CSV has not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", required=True, help="file to write")
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT_METHODS))
    parser.add_argument("--data", nargs="+", default=["synthetic"], help="NAME or NAME=DIR")
    parser.add_argument("--shots", nargs="+", type=int, default=[1])
    parser.add_argument("--folds", default="all", help="all, or numbers with commas")
    parser.add_argument("--protocol", default="fsdino", help="for lists that are drawn")
    parser.add_argument("--episodes", type=int, help="draw so many episodes a fold, in place of fixed lists")
    parser.add_argument("--devices", type=int, default=1, help="processes that share a list")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--strips", type=int, default=0, help="episodes on each fold's contact sheet")
    parser.add_argument("--again", action="store_true", help="measure also what the CSV has")
    chosen = parser.parse_args()
    work = Work(chosen.devices, chosen.device, num_workers=chosen.num_workers)
    cells = [cell(model, data, shots, chosen.folds, chosen.protocol, chosen.episodes)
             for data in chosen.data for shots in chosen.shots for model in chosen.methods]  # fmt: skip
    for one in cells:
        rows = read_rows(chosen.csv)
        if not chosen.again and any(tuple(row[name] for name in KEY) == one.key for row in rows):
            print(f"{' · '.join(one.key)}: there already", flush=True)
            continue
        measured, folder = measure_folds(one.choice, one.test, work=work, strips=chosen.strips)
        found = rows_of(one, measured)
        write_results(measured, folder, {"method": one.model})
        write_rows(chosen.csv, [*(row for row in rows if tuple(row[name] for name in KEY) != one.key), *found])
        print(f"{' · '.join(one.key)}: mIoU {found[-1]['miou']:.2f} ({folder})", flush=True)


if __name__ == "__main__":
    main()
