"""Make the page and the notebook from the script: `python -m fsdino.tutorial.build`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCRIPT, PAGE, NOTEBOOK = FOLDER / "tutorial.py", FOLDER / "tutorial.md", FOLDER / "tutorial.ipynb"
TEXT, CODE = "# %% [markdown]\n", "# %%\n"


@dataclass(frozen=True)
class Cell:
    """One piece of the tutorial.

    Args:
        is_code: Python, or else Markdown.
        text: its content.
    """

    is_code: bool
    text: str


def cells(script: str) -> list[Cell]:
    """Cut a script at its `# %%` lines.

    Args:
        script: Python whose Markdown is commented out.

    Returns:
        The cells in order.

    Raises:
        ValueError: if the script does not begin with a cell.
    """
    found: list[Cell] = []
    lines: list[str] = []
    for line in [*script.splitlines(keepends=True), CODE]:
        if line not in (TEXT, CODE):
            lines.append(line)
            continue
        if lines:
            head, *body = lines
            if head not in (TEXT, CODE):
                raise ValueError("the script does not begin with a cell; put '# %%' or '# %% [markdown]' first.")
            text = "".join(body if head == CODE else [one[2:] if one[:2] == "# " else one[1:] for one in body])
            found.append(Cell(head == CODE, text.strip("\n")))
        lines = [line]
    return found


def page(parts: list[Cell]) -> str:
    """The tutorial as Markdown."""
    blocks = [f"```python\n{part.text}\n```" if part.is_code else part.text for part in parts]
    return "\n\n".join(blocks) + "\n"


def notebook(parts: list[Cell]) -> str:
    """The tutorial as a notebook, without outputs."""
    made = []
    for number, part in enumerate(parts):
        cell: dict[str, Any] = {"cell_type": "code" if part.is_code else "markdown", "id": f"cell-{number}"}
        cell |= {"metadata": {}, "source": part.text.splitlines(keepends=True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if part.is_code else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write both files."""
    parts = cells(SCRIPT.read_text(encoding="utf-8"))
    PAGE.write_text(page(parts), encoding="utf-8")
    NOTEBOOK.write_text(notebook(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
