"""The command under test with few episodes."""

from pathlib import Path

import pandas as pd

from fsdino.cli import main
from fsdino.evaluation.tables import read_episodes

COUNTS = ["fold", "episode", "class_id", "inter_bg", "inter_fg", "union_bg", "union_fg"]


def run_evaluate(out: Path, method: str, root: str, *options: str, folds: str = "0,1") -> pd.DataFrame:
    command = ["evaluate", method, "--data", "folder", "--root", root, "--episodes", "6", "--out", str(out)]
    assert main([*command, "--device", "cpu", "--folds", folds, *options]) == 0
    return read_episodes(out)
