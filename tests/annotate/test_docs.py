"""docs/annotating.md says what is so: its configuration is read, its code runs, its commands have those options."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdino.annotate.label_studio.canvas import read_canvas
from fsdino.cli import COMMANDS, named, options, resolve
from tests.annotate import world

TEXT = (Path(__file__).parents[2] / "docs/annotating.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """Blocks of code of a kind, without the indent of a list."""
    found = re.findall(rf"^( *)```{kind}\n(.*?)^\1```", TEXT, re.M | re.S)
    return [re.sub(rf"^{indent}", "", block, flags=re.M) for indent, block in found]


def commands(program: str) -> list[list[str]]:
    """The words of every command line of a program."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]


def test_the_configuration_is_read() -> None:
    [config] = blocks("xml")
    assert read_canvas(config).labels == ["cat"]


@pytest.mark.parametrize("words", commands("fsdino"), ids=" ".join)
def test_commands_have_these_options(words: list[str]) -> None:
    _, name, *rest = words
    options(resolve(COMMANDS[name][0]), name, named(name, rest))


def test_parameters_of_the_function_exist() -> None:
    create = import_module("fsdino.annotate.cvat").create
    given = [word for words in commands("cvat-cli") for word in words if re.match(r"\w+=(str|int|float|bool):", word)]
    assert given and {word.partition("=")[0] for word in given} <= set(create.__annotations__)


def test_the_example_of_supervision_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("supervision", reason="supervision is not installed: pip install fsdino[annotate]")
    (reference, mask), (photo, _) = world.pictures(2)
    Image.fromarray(reference).save(tmp_path / "ref.jpg", quality=95)
    Image.fromarray(mask).save(tmp_path / "ref_mask.png")
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    [code] = [block for block in blocks("python") if "supervision" in block]
    values: dict = {}
    exec(code, values)
    assert len(values["found"]) and (np.asarray(values["drawn"]) != np.asarray(values["photo"])).any()
