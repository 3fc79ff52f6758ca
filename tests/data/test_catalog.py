"""Data sets by name."""

import subprocess
import sys

import pytest

from fsdino.data.catalog import DataSet, data_set, data_sets, open_data_set
from tests.data.small import MemoryIndex
from tests.data.trees import TREES
from tests.small import refuses


def test_every_reader_is_found_by_the_name_in_its_own_file():
    assert set(TREES) < set(data_sets())
    assert all(name == entry.name and entry.title for name, entry in data_sets().items())
    assert data_set("davis2016").reader is data_set("davis2017").reader


def test_names_and_roots():
    refuses(r"there is no data set 'pascal'; known: .*coco, coco20i", data_set, "pascal")
    refuses(r"data set 'fss1000' \(FSS-1000\) needs the folder it lies in: give --root", open_data_set, "fss1000")
    assert open_data_set("synthetic", role="train").name == "synthetic-base"
    assert open_data_set("synthetic", split="pretrain").name == "synthetic-pretrain"


def test_roles_and_splits_that_a_data_set_does_not_have(monkeypatch):
    described = DataSet("memory", "squares", MemoryIndex, roles={"test": None}, needs_root=False)
    monkeypatch.setitem(data_sets(), "memory", described)
    assert open_data_set("memory", num_classes=3).class_names == {0: "square0", 1: "square1", 2: "square2"}
    with pytest.raises(ValueError, match="data set 'memory' is there to test on, not to train on: choose another"):
        open_data_set("memory", role="train")
    with pytest.raises(ValueError, match="data set 'memory' has no splits of its own, got split 'val': leave it out"):
        open_data_set("memory", split="val")


def test_opening_needs_no_torch():
    code = "import sys; import fsdino.data.command as c; c.open_data_set('synthetic'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
