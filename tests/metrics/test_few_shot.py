"""Few-shot mIoU against an independent slow count, over two processes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fsdino.metrics.few_shot import FewShotIoU, FewShotScore, intersection_union
from tests.small import refuses

CLASSES = [3, 7, 11, 20, 21]


def _case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """One episode, often a degenerate one: empty masks, all ignored, absent objects, perfect predictions."""
    height, width = rng.integers(1, 9, 2)
    truth = rng.choice([0, 1, 255], size=(height, width), p=[0.5, 0.4, 0.1])
    pred = rng.random((height, width)) < 0.5
    kind = rng.integers(8)
    if kind == 0:
        truth[:] = 255
    elif kind == 1:
        truth[truth == 1] = 0
    elif kind == 2:
        pred[:] = False
    elif kind == 3:
        pred[:], truth[truth == 1] = False, 0
    elif kind == 4:
        pred = truth == 1
    return pred, truth, int(rng.choice(CLASSES[:4]))


def _slow_count(cases: list[tuple[np.ndarray, np.ndarray, int]]) -> dict[int, list[int]]:
    """Class -> [background I, background U, foreground I, foreground U, episodes], pixel by pixel."""
    table = {c: [0, 0, 0, 0, 0] for c in CLASSES}
    for pred, truth, class_id in cases:
        row = table[class_id]
        row[4] += 1
        for p, t in zip(pred.ravel().tolist(), truth.ravel().tolist()):
            if t == 255:
                continue
            row[0] += (not p) and t == 0
            row[1] += (not p) or t == 0
            row[2] += p and t == 1
            row[3] += p or t == 1
    return table


def _metric(cases: list[tuple[np.ndarray, np.ndarray, int]]) -> FewShotIoU:
    metric = FewShotIoU(CLASSES)
    for i in range(0, len(cases), 3):
        preds, truths, classes = zip(*cases[i : i + 3])
        metric.update([torch.from_numpy(p) for p in preds], [torch.from_numpy(t) for t in truths], list(classes))
    return metric


def test_a_thousand_cases_equal_the_slow_reference_to_the_last_count():
    rng = np.random.default_rng(0)
    cases = [_case(rng) for _ in range(1000)]
    metric, table = _metric(cases), _slow_count(cases)
    assert metric.intersection.dtype == metric.union.dtype == torch.int64
    for row, class_id in enumerate(CLASSES):
        expected = table[class_id]
        assert metric.intersection[row].tolist() == [expected[0], expected[2]]
        assert metric.union[row].tolist() == [expected[1], expected[3]]
        assert metric.episodes[row] == expected[4]
    score = metric.compute()
    ious = {c: r[2] / r[3] for c, r in table.items() if r[3]}
    assert score.per_class == ious and score.undrawn == (21,) and score.num_episodes == 1000
    assert score.miou == pytest.approx(sum(ious.values()) / len(ious), abs=1e-15)
    sums = np.sum(list(table.values()), axis=0)
    assert score.fb_iou == pytest.approx((sums[0] / sums[1] + sums[2] / sums[3]) / 2, abs=1e-15)


def test_it_is_pooled_per_class_and_not_a_mean_over_images():
    metric = FewShotIoU([1, 2])
    big, small = torch.ones(10, 10), torch.zeros(10, 10)
    small[0, 0] = 1
    metric.update(torch.stack([big, small * 0]), torch.stack([big, small]), [1, 1])
    assert metric.compute().miou == 100 / 101  # the mean over images is 0.5


def test_one_batch_of_equal_sizes_is_as_good_as_single_episodes():
    rng = np.random.default_rng(1)
    pred, truth = torch.from_numpy(rng.random((6, 5, 4)) < 0.5), torch.from_numpy(rng.integers(0, 2, (6, 5, 4)))
    classes = torch.tensor([3, 7, 3, 11, 20, 20])
    whole, single = FewShotIoU(CLASSES), FewShotIoU(CLASSES)
    whole.update(pred, truth, classes)
    for i in range(6):
        single.add_counts(*intersection_union(pred[i], truth[i]), int(classes[i]))
    assert torch.equal(whole.union, single.union) and whole.compute() == single.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted():
    score = FewShotIoU([1, 2]).compute()
    assert math.isnan(score.miou) and math.isnan(score.fb_iou) and score.undrawn == (1, 2) and score.num_episodes == 0


def test_a_running_score_follows_every_episode():
    metric = FewShotIoU([1])
    metric.add_counts(torch.tensor([0, 1]), torch.tensor([0, 2]), 1)
    assert metric.compute().miou == 0.5
    metric.add_counts(torch.tensor([0, 2]), torch.tensor([0, 2]), 1)
    assert metric.compute().miou == 0.75


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), [3]), r"prediction \(4, 4\) and truth \(4, 5\) must be one"),
        ((torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), [3]), r"must be one \(H, W\): resize the prediction"),
        ((torch.zeros(1, 4, 4), torch.full((1, 4, 4), 7), [3]), r"truth holds values other than 0, 1 and 255"),
        ((torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), [5]), "class 5 is not among the 5 classes of this metric"),
        ((torch.zeros(2, 4, 4), torch.zeros(1, 4, 4), [3]), "got 2 predictions, 1 truths and 1 class ids"),
    ],
)
def test_wrong_input(arguments, words):
    with pytest.raises(ValueError, match=words):
        FewShotIoU(CLASSES).update(*arguments)


def test_a_class_given_twice():
    refuses(r"class ids \[1, 1\] hold one twice", FewShotIoU, [1, 1])


def _process(rank: int, init_file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    rng = np.random.default_rng(2)
    cases = [_case(rng) for _ in range(101)]
    score = _metric(cases[rank::2]).compute()
    if rank == 0:
        torch.save(vars(score), out)
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path):
    files = (str(tmp_path / "init"), str(tmp_path / "score.pt"))
    mp.start_processes(_process, args=files, nprocs=2, start_method="fork")
    rng = np.random.default_rng(2)
    alone = _metric([_case(rng) for _ in range(101)]).compute()
    assert FewShotScore(**torch.load(tmp_path / "score.pt", weights_only=True)) == alone
