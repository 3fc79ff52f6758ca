"""`fsdino compare`: which of two is better, and what cannot be paired."""

import numpy as np
import pandas as pd
import pytest

from fsdino.cli import main
from fsdino.evaluation.compare import check_same_episodes, compare_tables
from fsdino.evaluation.measure import add_rows
from fsdino.evaluation.tables import read_episodes
from fsdino.metrics.few_shot import FewShotIoU
from tests.evaluation.small import COUNTS, run_evaluate
from tests.small import refuses


def test_the_better_one_is_told(reference, tmp_path, capsys) -> None:
    better = reference.assign(inter_fg=reference["union_fg"])
    better.to_csv(tmp_path / "a.csv", index=False)
    reference.to_parquet(tmp_path / "b.parquet")
    assert main(["compare", str(tmp_path / "a.csv"), str(tmp_path / "b.parquet")]) == 0
    text = capsys.readouterr().out
    assert "A is better, beyond the chance of these episodes" in text and "mean" in text and "100.00" in text
    main(["compare", str(tmp_path / "b.parquet"), str(tmp_path / "a.csv")])
    assert "B is better" in capsys.readouterr().out
    main(["compare", str(tmp_path / "b.parquet"), str(tmp_path / "b.parquet")])
    assert "these episodes do not tell which is better" in capsys.readouterr().out


def test_differences_are_those_of_the_metric(reference) -> None:
    other = reference.assign(inter_fg=reference["inter_fg"] // 2)
    found = compare_tables(reference, other)
    assert [one.name for one in found] == ["fold 0", "fold 1", "mean"]
    for one, fold in zip(found, range(2)):
        rows = [table[table["fold"] == fold] for table in (reference, other)]
        a, b = (add_rows(FewShotIoU(sorted(set(t["class_id"]))), t).compute().miou for t in rows)
        assert one.difference.value == pytest.approx(a - b) and (one.a, one.b) == pytest.approx((a, b))
        assert one.difference.low <= one.difference.value <= one.difference.high
    assert found[-1].difference.value == pytest.approx(np.mean([one.difference.value for one in found[:2]]))


def test_a_run_s_folder_can_be_compared(tmp_path, reference, model, folder) -> None:
    run_evaluate(tmp_path, model, folder, "--strips", "0", folds="0")
    rows = read_episodes(tmp_path / "fold0")
    pd.testing.assert_frame_equal(rows[COUNTS[1:]], reference[reference["fold"] == 0][COUNTS[1:]])


def test_refusals(reference, tmp_path) -> None:
    for change, words in (
        (reference[:-1], "A has 12 episodes of folds .*, B 11 of"),
        (reference.assign(query="x"), "episode 0 of fold 0 has query '.*' in A and 'x' in B: measure both"),
        (reference.assign(inter_bg=1), "one was scored at the image's own size, the other at the network's"),
    ):
        refuses(words, check_same_episodes, reference, change)
    with pytest.raises(FileNotFoundError, match=r"there is no table '.*a.csv'; make it with `fsdino evaluate`"):
        read_episodes(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match=r"holds no episodes.csv or episodes.parquet; give the folder"):
        read_episodes(tmp_path)
    (tmp_path / "a.csv").write_text("fold,episode\n0,1\n")
    refuses(r"is no table of episodes, it lacks the column\(s\) class_id, query", read_episodes, tmp_path / "a.csv")
    (tmp_path / "a.parquet").write_bytes(b"no")
    refuses(r"table '.*a.parquet' cannot be read \(.*\); make it again", read_episodes, tmp_path / "a.parquet")
