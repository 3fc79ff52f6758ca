"""Write `benchmarks/results/*.csv` into README.md and benchmarks/README.md: `python benchmarks/table.py [--check]`.

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->` and is made from `NAME*.csv` alone (with the
paired differences of `paired_NAME.csv`); what stands there is replaced. Numbers of the field are marked as published,
everything else was measured here, and the line under a table says on what machine.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cells import Row, load
from provenance import COLUMNS, ROOT
from renderers import SOURCES, TABLES, plain

DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
MARKER = re.compile(r"<!-- table:(\w+) -->\n(.*?)<!-- /table:\1 -->", re.DOTALL)


def origin(rows: Sequence[Row]) -> str:
    """One line on where rows come from; nothing for published numbers."""
    seen = {name: list(dict.fromkeys(row[name] for row in rows if row.get(name))) for name in COLUMNS}
    if not seen["machine"]:
        return ""
    units = {"machine": "{}", "threads": "{} threads", "torch": "torch {}", "precision": "{}", "protocol": "{}"}
    parts = [text.format(" or ".join(seen[name])) for name, text in units.items() if seen[name]]
    return f"\n<sub>{' · '.join(parts)}</sub>\n"


def figure(name: str, results: Path, beside: Path) -> str:
    """The table's plot, where `figures.py` has drawn one, linked from a document in the folder `beside`."""
    plot = results / f"{name}.png"
    if name not in FIGURES or not plot.is_file():
        return ""
    return f"\n![{FIGURES[name]}]({Path(os.path.relpath(plot, beside)).as_posix()})\n"


FIGURES = {
    "ablation": "mIoU of each variant and what each part adds, with intervals",
    "distillation_curve": "distilled and undistilled over the number of annotated images, and their difference",
}


def render(name: str, results: Path, beside: Path = ROOT) -> str:
    """What stands between the markers of a table, with its plot below."""
    source = SOURCES.get(name, name)
    rows = load(results, source)
    if not rows:
        return f"_There is no `benchmarks/results/{source}.csv` yet._\n"
    return "\n" + TABLES.get(name, plain)(rows, results) + figure(name, results, beside) + origin(rows) + "\n"


def fill(text: str, results: Path, beside: Path = ROOT) -> str:
    """A document with every table between its markers replaced.

    Args:
        text: Markdown.
        results: Folder of the CSVs.
        beside: Folder of the document, which its links start from.

    Returns:
        The new text; the same again when filled again.

    Raises:
        ValueError: If a marker is not closed.
    """
    opened = re.findall(r"<!-- table:(\w+) -->", text)
    if missing := [name for name in opened if f"<!-- /table:{name} -->" not in text]:
        raise ValueError(f"the marker of table {missing[0]!r} is not closed; add <!-- /table:{missing[0]} --> below.")
    return MARKER.sub(lambda m: f"<!-- table:{m[1]} -->\n{render(m[1], results, beside)}<!-- /table:{m[1]} -->", text)


def main() -> None:
    """Fill the documents, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, nargs="+", default=DOCUMENTS)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a table is out of date")
    chosen = parser.parse_args()
    stale = []
    for document in chosen.documents:
        old = document.read_text(encoding="utf-8")
        new = fill(old, chosen.results, document.parent)
        if new != old and chosen.check:
            stale.append(str(document))
        elif new != old:
            document.write_text(new, encoding="utf-8")
    if stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make tables`.")


if __name__ == "__main__":
    main()
