import math

import pytest
import torch
from torch import Tensor

from fsdino.models import correlation
from fsdino.models.correlation import PooledReader, pool_correlation, propagate
from fsdino.models.layers import unit_tokens
from fsdino.models.memory import SupportMemory
from tests.small import rand, randn

T = 0.1


def episode(b: int = 2, layers: int = 2, k: int = 2, side: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query (B, L, 9, 8), support (B, L, M, 8), foreground and background weights (B, M) with zeros in both."""
    query = torch.nn.functional.normalize(randn(b, layers, 9, 8), dim=-1)
    support = torch.nn.functional.normalize(randn(b, layers, k * side * side, 8, seed=1), dim=-1)
    fg = (1.6 * rand(b, k * side * side, seed=2) - 0.5).clamp(0.0, 1.0)
    return query, support, fg, 1.0 - fg


def test_unit_tokens_run_along_rows() -> None:
    feats = randn(2, 5, 3, 4)
    tokens = unit_tokens(feats)
    assert tokens.shape == (2, 12, 5)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 12))
    torch.testing.assert_close(tokens[0, 1 * 4 + 2], feats[0, :, 1, 2] / feats[0, :, 1, 2].norm())


def test_pooling_equals_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "CHUNK", 4)  # several chunks, the last one short
    query, support, fg, bg = episode(layers=1)
    stats = pool_correlation(query[:, 0], support[:, 0], torch.stack([fg, bg], 1), T)
    assert stats.shape == (2, 2, 3, 9)
    for b in range(2):
        for g, weights in enumerate((fg[b].tolist(), bg[b].tolist())):
            for q in range(9):
                cosines = [float(query[b, 0, q] @ s) for s in support[b, 0]]
                pairs = [(c, w) for c, w in zip(cosines, weights) if w > 0]
                total = sum(w for _, w in pairs)
                smooth = T * math.log(sum(w * math.exp(c / T) for c, w in pairs) / total)
                mean = sum(w * c for c, w in pairs) / total
                peak = max(c + T * math.log(w) for c, w in pairs)
                assert stats[b, g, :, q].tolist() == pytest.approx([smooth, mean, peak], abs=1e-5)


def test_a_group_without_weight_is_zero() -> None:
    query, support, fg, _ = episode(layers=1)
    stats = pool_correlation(query[:, 0], support[:, 0], torch.stack([fg, torch.zeros_like(fg)], 1), T)
    assert not bool(stats[:, 1].any()) and bool(stats[:, 0].all())


def test_difference_of_smooth_maxima_is_the_density_ratio() -> None:
    """Equal foreground and background say nothing, whatever their shares of the support."""
    tokens = torch.nn.functional.normalize(randn(1, 5, 8), dim=-1)
    weights = torch.zeros(1, 2, 20)
    weights[0, 0, :5], weights[0, 1, 5:] = 1.0, 1.0
    stats = pool_correlation(tokens, tokens.repeat(1, 4, 1), weights, T)
    torch.testing.assert_close(stats[:, 0], stats[:, 1], atol=1e-5, rtol=0)


def test_propagation_equals_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "CHUNK", 4)
    tokens, values = torch.nn.functional.normalize(randn(2, 9, 8), dim=-1), randn(2, 9, seed=1)
    expected = torch.stack([torch.softmax(tokens[b] @ tokens[b].T / T, -1) @ values[b] for b in range(2)])
    torch.testing.assert_close(propagate(tokens, values, T), expected)


READERS = {
    "pooled": lambda: PooledReader(2, 16),
    "pooled plain": lambda: PooledReader(2, 16, contrastive=False, self_correlation=False),
    "pooled without contrast": lambda: PooledReader(2, 16, contrastive=False),
}


@pytest.fixture(params=list(READERS))
def reader(request: pytest.FixtureRequest) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return READERS[request.param]()


def read(reader: torch.nn.Module, query: Tensor, support: Tensor, fg: Tensor, bg: Tensor) -> list[Tensor]:
    return list(reader(query, SupportMemory(support[:, :, :2], support, fg, bg), (3, 3)))


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_reader_shapes(reader: torch.nn.Module) -> None:
    features, score = read(reader, *episode())
    assert features.shape == (2, 16, 3, 3) and score.shape == (2, 1, 3, 3)
    assert bool(score.any()) == reader.contrastive
    assert score.abs().max() <= 2.0


def test_positions_without_weight_change_nothing(reader: torch.nn.Module) -> None:
    query, support, fg, bg = episode()
    fg[:, 5:9], bg[:, 5:9] = 0.0, 0.0
    before = read(reader, query, support, fg, bg)
    support[:, :, 5:9] = torch.nn.functional.normalize(randn(2, 2, 4, 8, seed=7), dim=-1)
    assert_equal(read(reader, query, support, fg, bg), before)


def test_one_memory_broadcasts_over_queries_and_one_query_over_memories(reader: torch.nn.Module) -> None:
    query, support, fg, bg = episode()
    one = slice(0, 1)
    many = read(reader, query, support[one], fg[one], bg[one])
    assert_equal([x[1:] for x in many], read(reader, query[1:], support[one], fg[one], bg[one]))
    classes = read(reader, query[one], support, fg, bg)
    assert_equal([x[1:] for x in classes], read(reader, query[one], support[1:], fg[1:], bg[1:]))


def test_foreground_and_background_are_kept_apart(reader: torch.nn.Module) -> None:
    query, support, fg, bg = episode()
    if not reader.contrastive:
        pytest.skip("reads no background")
    straight, swapped = read(reader, query, support, fg, bg)[1], read(reader, query, support, bg, fg)[1]
    torch.testing.assert_close(straight, -swapped, atol=1e-5, rtol=1e-5)


def test_volume_gets_no_gradient_from_frozen_features(reader: torch.nn.Module) -> None:
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        query, support, fg, bg = episode(k=2, side=4)
        big = support.repeat(1, 1, 25, 1), fg.repeat(1, 25), bg.repeat(1, 25)
        features, _ = read(reader, query, *big)
    features.sum().backward()
    assert max(saved) < 9 * 800  # query positions times support positions: the volume was not kept
    assert all(p.grad is not None for p in reader.parameters())
