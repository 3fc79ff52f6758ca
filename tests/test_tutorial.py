"""The tutorial's code runs, and its page and notebook are those of the script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fsdino
from fsdino.tutorial.build import NOTEBOOK, PAGE, SCRIPT, cells, notebook, page


def test_page_and_notebook_are_made_from_the_script() -> None:
    parts = cells(SCRIPT.read_text(encoding="utf-8"))
    advice = "run `python -m fsdino.tutorial.build`"
    assert PAGE.read_text(encoding="utf-8") == page(parts), advice
    assert NOTEBOOK.read_text(encoding="utf-8") == notebook(parts), advice


def test_notebook_holds_the_cells() -> None:
    parts = cells("# %% [markdown]\n# # Title\n#\n# text\n# %%\nx = 1\n\ny = 2\n\n# %%\nz = 3\n")
    made = json.loads(notebook(parts))["cells"]
    assert [cell["cell_type"] for cell in made] == ["markdown", "code", "code"]
    assert ["".join(cell["source"]) for cell in made] == ["# Title\n\ntext", "x = 1\n\ny = 2", "z = 3"]
    assert page(parts) == "# Title\n\ntext\n\n```python\nx = 1\n\ny = 2\n```\n\n```python\nz = 3\n```\n"
    with pytest.raises(ValueError, match="does not begin with a cell"):
        cells("x = 1\n# %%\n")


def test_the_tutorial_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "FSDINO_TUTORIAL_QUICK": "1", "PYTHONPATH": str(Path(fsdino.__file__).parents[1])}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for said in ("from a mask:", "from a box:", "from a click:", "in-domain classes", "adapted:"):
        assert said in done.stdout
    assert (tmp_path / "out" / "labels" / "b.png").is_file() and (tmp_path / "first.fsmem").is_file()
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        assert (tmp_path / "out-onnx" / "labels" / "b.png").is_file()
