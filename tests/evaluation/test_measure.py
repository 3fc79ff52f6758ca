"""The same counts whatever the workers, batches, processes or interruptions."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fsdino.data.episodes.episode import EpisodeData, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.episodes.protocols import protocol
from fsdino.data.readers.voc import VocIndex
from fsdino.data.world.index import SyntheticWorld
from fsdino.evaluation.measure import Evaluation, RowWriter, evaluate, predict_episode, read_rows, summarise
from fsdino.methods.prototype import AllForeground
from fsdino.models.segmenter import FewShotSegmenter
from tests.data.trees import voc_tree
from tests.evaluation.small import COUNTS
from tests.small import refuses, small_segmenter
from tests.training.small import small_trainer

INDEX = SyntheticWorld("novel", 3)
EPISODES = EpisodeList.draw(INDEX, 0, 1, 11, seed=4)  # processes and batches divide it unevenly


def _run(folder, **options) -> Evaluation:
    torch.manual_seed(0)
    options = {"trainer": small_trainer(folder), **options}
    return evaluate(small_segmenter(seed=1), INDEX, EPISODES, folder, fingerprint="small-1", **options)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> pd.DataFrame:
    return _run(tmp_path_factory.mktemp("reference")).rows


@pytest.mark.parametrize(("batch_size", "num_workers"), [(4, 0), (1, 1), (4, 4)])
def test_workers_and_batches_change_no_count(tmp_path, reference, batch_size, num_workers) -> None:
    rows = _run(tmp_path, batch_size=batch_size, num_workers=num_workers).rows
    pd.testing.assert_frame_equal(rows[COUNTS[1:]], reference[COUNTS[1:]])


def test_two_processes_change_no_count(tmp_path, reference) -> None:
    rows = _run(tmp_path, trainer=small_trainer(tmp_path, devices=2, strategy="ddp_fork")).rows
    assert len(list(tmp_path.glob("rows.*.csv"))) == 2
    pd.testing.assert_frame_equal(rows[COUNTS[1:]], reference[COUNTS[1:]])


def test_missing_episodes_are_no_result(tmp_path) -> None:
    refuses("has 3 of 11 episodes", _run, tmp_path, trainer=small_trainer(tmp_path, limit_predict_batches=3))


def test_an_episode_that_two_processes_measured_counts_once(tmp_path) -> None:
    _run(tmp_path)
    path = tmp_path / "rows.0.csv"
    (tmp_path / "rows.1.csv").write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    assert read_rows(tmp_path)["episode"].tolist() == list(range(len(EPISODES)))


class _Dies(RowWriter):
    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx == 2:
            raise KeyError("killed")


@pytest.mark.parametrize(("together", "passes"), [(1, [1] * 11), (3, [3, 3, 3, 2])])
def test_an_interrupted_evaluation_goes_on_without_repeating(
    tmp_path, reference, together, passes, monkeypatch
) -> None:
    seen, predict = [], FewShotSegmenter.predict_episodes
    monkeypatch.setattr(
        FewShotSegmenter, "predict_episodes", lambda self, b: seen.append(len(b["class_id"])) or predict(self, b)
    )
    trainer = small_trainer(tmp_path)
    trainer.callbacks.append(_Dies(tmp_path))
    with pytest.raises(KeyError, match="killed"):
        _run(tmp_path, trainer=trainer, together=together)
    path = tmp_path / "rows.0.csv"
    before = path.read_text().splitlines()
    assert len(before) == 2 * together
    path.write_text("\n".join(before) + "\n9,3,half a li")  # killed while it wrote
    rows = _run(tmp_path, together=together).rows
    after = path.read_text().splitlines()
    assert after[: len(before)] == before and len(after) == len(EPISODES)
    # The third pass was made before the kill, but not written.
    assert seen == [*passes[:3], *passes[2:]]
    pd.testing.assert_frame_equal(rows[COUNTS[1:]], reference[COUNTS[1:]])


def test_a_folder_of_another_measurement_is_refused(tmp_path) -> None:
    _run(tmp_path)
    with pytest.raises(ValueError, match="holds rows of another measurement: scoring 'original' there, 'network' here"):
        _run(tmp_path, scoring="network")
    with pytest.raises(ValueError, match=r"unknown scoring 'half'; use 'original' .* or 'network'"):
        _run(tmp_path / "half", scoring="half")


def test_cached_maps_give_what_pixels_give(tmp_path, reference) -> None:
    model = small_segmenter(seed=1)
    items = [EpisodeData(INDEX, EPISODES, model.resize)[i] for i in range(2)]
    batch = collate_episodes(items)
    feats = torch.stack(model.encoder(batch["query_image"]), 1)
    support = torch.stack(model.encoder(batch["support_images"].flatten(0, 1)), 1)[:, None]
    cached = {**batch, "query_feats": feats, "support_feats": support}
    with torch.no_grad():
        for i in range(2):
            a, b = predict_episode(model, batch, i)[0], predict_episode(model, cached, i)[0]
            assert torch.allclose(a, b, atol=1e-4)


def test_scores_come_from_pooled_counts(reference) -> None:
    rows = reference
    by_class = rows.groupby("class_id")[["inter_fg", "union_fg"]].sum()
    expected = float(np.mean(by_class["inter_fg"] / by_class["union_fg"]))
    assert summarise(rows, EPISODES.class_ids).score.miou == pytest.approx(expected)


def test_hsnets_counts_on_pascal_equal_a_slow_reference(tmp_path) -> None:
    """List order, folds, ignored borders, "nearest" truths and pooled scores, from the label maps on disk."""
    root = voc_tree(tmp_path / "data")
    episodes = protocol("hsnet").draw(VocIndex(root), 2, num_episodes=14)
    method = AllForeground(36)
    result = evaluate(method, VocIndex(root), episodes, tmp_path / "rows", scoring="network")
    sums: dict[int, np.ndarray] = {}
    for i, row in enumerate(result.rows.itertuples()):
        class_id, stem = 11 + i // 2 % 5, f"2007_{11 + i // 2 % 5:03d}{2 + i % 2:03d}"
        with Image.open(root / f"VOCdevkit/VOC2012/SegmentationClassAug/{stem}.png") as file:
            labels = np.asarray(file)
        rows, cols = ([k * n // 36 for k in range(36)] for n in labels.shape)
        counts = np.zeros(4, int)  # of the background and of the object: intersection, then union
        for y in rows:
            for x in cols:
                if labels[y, x] != 255:
                    counts += [0, labels[y, x] == class_id, labels[y, x] != class_id, 1]
        assert (row.query, row.class_id) == (stem, class_id)
        assert [row.inter_bg, row.inter_fg, row.union_bg, row.union_fg] == counts.tolist()
        sums[class_id] = sums.get(class_id, np.zeros(4, int)) + counts
    assert sorted(sums) == [11, 12, 13, 14, 15]
    assert result.score.miou == pytest.approx(np.mean([total[1] / total[3] for total in sums.values()]))
    pooled = sum(sums.values())
    assert result.score.fb_iou == pytest.approx((pooled[0] / pooled[2] + pooled[1] / pooled[3]) / 2)
