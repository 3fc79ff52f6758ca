"""A small model and data set on disk, measured once."""

import pandas as pd
import pytest

from fsdino.base import storage
from tests.data.trees import label_folder_tree
from tests.evaluation.small import run_evaluate
from tests.small import small_segmenter


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """A small segmenter on disk."""
    return str(storage.save(small_segmenter(seed=1), tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    """A data set of four folds: label maps of four classes."""
    return str(label_folder_tree(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="session")
def reference(tmp_path_factory, model, folder) -> pd.DataFrame:
    """One process, no worker, one episode at a time."""
    return run_evaluate(tmp_path_factory.mktemp("reference"), model, folder, "--strips", "0")
