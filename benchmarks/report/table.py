"""Write `benchmarks/results/*.csv` into README.md, benchmarks/ and recipes/: `python -m benchmarks.report.table`.

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->` and is made from `NAME*.csv` alone (with the
paired differences of `paired_NAME.csv`); what stands there is replaced. Numbers of the field are marked as published,
everything else was measured here, and the line under a table says on what machine.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pandas as pd

from benchmarks.common import COLUMNS, RESULTS, ROOT, load, run_script
from benchmarks.report import accuracy_tables, cost_tables, photo_tables
from benchmarks.report.markdown import MILLIONS, decimals, each, first, markdown_table, text

DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "recipes" / "README.md"]
MARKER = re.compile(r"<!-- table:(\w+) -->\n(.*?)<!-- /table:\1 -->", re.DOTALL)
TABLES = cost_tables.TABLES | accuracy_tables.TABLES | photo_tables.TABLES
NUMBER = re.compile(r"<!-- number:(.*?) -->.*?<!-- /number -->", re.DOTALL)
# How a number in a sentence is written: digits behind the point, and what it is multiplied with.
FORMS = {"one": (1, 1.0), "two": (2, 1.0), "millions": (1, MILLIONS), "minutes": (1, 1 / 60_000)}
SOURCES = {"bars": "speed", "photos_mean": "photos"}  # tables that are a view of another one's rows
FIGURES = {
    "ablation": "mIoU of each variant and how it differs from the whole model, with intervals",
    "distillation_curve": "distilled and undistilled over the number of annotated images, and their difference",
}


def plain(rows: pd.DataFrame, _: Path) -> str:
    """Every column but those of provenance, as it is."""
    return markdown_table(each(rows), [text(name) for name in rows if name not in COLUMNS])


def origin(rows: pd.DataFrame) -> str:
    """One line on where rows come from; nothing for published numbers."""
    seen = {name: [value for value in rows[name].unique() if value] for name in COLUMNS if name in rows}
    if not seen.get("machine"):
        return ""
    units = {"machine": "{}", "threads": "{} threads", "torch": "torch {}", "precision": "{}", "protocol": "{}"}
    parts = [unit.format(" or ".join(seen[name])) for name, unit in units.items() if seen.get(name)]
    return f"\n<sub>{' · '.join(parts)}</sub>\n"


def figure(name: str, results: Path, beside: Path) -> str:
    """The table's plot, where `figures` has drawn one, linked from a document in the folder `beside`."""
    plot = results / f"{name}.png"
    if name not in FIGURES or not plot.is_file():
        return ""
    return f"\n![{FIGURES[name]}]({Path(os.path.relpath(plot, beside)).as_posix()})\n"


def render(name: str, results: Path, beside: Path = ROOT) -> str:
    """What stands between the markers of a table, with its plot below."""
    source = SOURCES.get(name, name)
    rows = load(results, source)
    if rows.empty:
        return f"_There is no `benchmarks/results/{source}.csv` yet._\n"
    return "\n" + TABLES.get(name, plain)(rows, results) + figure(name, results, beside) + origin(rows) + "\n"


def number(said: str, results: Path) -> str:
    """A number in a sentence: `FILE.COLUMN key=value ... as=FORM`, of the one row that has these values.

    Raises:
        ValueError: no row or several have them.
    """
    place, *conditions = shlex.split(said)
    name, column = place.split(".")
    wanted = dict(condition.split("=", 1) for condition in conditions)
    digits, scale = FORMS[wanted.pop("as")]
    rows = load(results, name)
    for key, value in wanted.items():
        rows = rows[rows[key] == value]
    if len(rows) != 1:
        raise ValueError(f"the number {said!r} is in {len(rows)} rows of {name}.csv; name exactly one.")
    return decimals(first(rows, column), digits, scale)


def fill(document: str, results: Path, beside: Path = ROOT) -> str:
    """A document (Markdown, in the folder `beside`) with every table and number between its markers replaced.

    Raises:
        ValueError: a marker is not closed.
    """
    opened = re.findall(r"<!-- table:(\w+) -->", document)
    if missing := [name for name in opened if f"<!-- /table:{name} -->" not in document]:
        raise ValueError(f"the marker of table {missing[0]!r} is not closed; add <!-- /table:{missing[0]} --> below.")
    document = NUMBER.sub(lambda m: f"<!-- number:{m[1]} -->{number(m[1], results)}<!-- /number -->", document)
    return MARKER.sub(
        lambda m: f"<!-- table:{m[1]} -->\n{render(m[1], results, beside)}<!-- /table:{m[1]} -->", document
    )


def main(documents: list[Path] = DOCUMENTS, results: Path = RESULTS, check: bool = False) -> None:
    """Fill the documents; with `check` write nothing, and exit with 1 where a table is out of date."""
    stale = []
    for document in documents:
        old = document.read_text(encoding="utf-8")
        new = fill(old, results, document.parent)
        if new != old and check:
            stale.append(str(document))
        elif new != old:
            document.write_text(new, encoding="utf-8")
    if stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make tables`.")


if __name__ == "__main__":
    run_script(main)
