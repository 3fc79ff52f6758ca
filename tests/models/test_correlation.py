import math

import pytest
import torch
from torch import Tensor

from fsdino.models import correlation
from fsdino.models.correlation import MapReader, pool_correlation
from fsdino.models.layers import unit_tokens
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


def test_reader_shows_each_map_in_three_ways() -> None:
    reader, maps = MapReader(2, 16), randn(3, 2, 4, 5)
    shown: list[Tensor] = []
    reader.stem.register_forward_hook(lambda _module, given, _out: shown.append(given[0]))
    assert reader(maps).shape == (3, 16, 4, 5)
    raw, spread, below = shown[0].chunk(3, dim=1)
    torch.testing.assert_close(raw, 5.0 * maps)
    torch.testing.assert_close(spread.flatten(2).mean(-1), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(spread.flatten(2).std(-1), torch.ones(3, 2))
    assert below.flatten(2).amax(-1).eq(0.0).all()


def test_reader_takes_a_flat_map() -> None:
    assert bool(MapReader(1, 8)(torch.full((1, 1, 4, 4), 0.3)).isfinite().all())


def test_reader_sees_as_far_as_its_dilations() -> None:
    reader, maps = MapReader(1, 8), torch.zeros(1, 1, 31, 31, requires_grad=True)
    # The maps themselves, without the statistics that tie every position to every other
    reader.norm = torch.nn.Identity()
    for block in reader.blocks:
        block.norm = torch.nn.Identity()
    reader.blocks(reader.stem(maps.expand(-1, 3, -1, -1)))[0, :, 15, 15].sum().backward()
    seen = maps.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert (int(seen.min()), int(seen.max())) == (15 - 11, 15 + 11)  # 1 of the stem, 1 + 2 + 4 and 1 of each block
