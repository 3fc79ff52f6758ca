import math

import pytest
import torch

from fsdino.models.correlation import TEMPERATURE, pool_correlation
from fsdino.models.layers import unit_tokens
from fsdino.models.memory import SupportMemory, grid_weights, in_cells, prototypes, support_tokens
from fsdino.models.presence import PresenceHead, likeness, statistics
from fsdino.models.prompts import EncodedQuery, PromptGenerator, similarities
from tests.small import rand, randn


def remembered(b: int = 1, k: int = 2) -> SupportMemory:
    feats = [randn(b * k, 12, 4, 4, seed=s) for s in (1, 2)]
    masks = (rand(b, k, 16, 16, seed=3) > 0.5).float()
    fg, bg = grid_weights(masks, (4, 4))
    tokens = [support_tokens(f, b) for f in feats]
    both = torch.stack([prototypes(t, fg, bg) for t in tokens], 1)
    return SupportMemory(both, torch.stack(tokens, 1), fg, bg)


def seen(b: int = 1) -> EncodedQuery:
    tokens = torch.stack([unit_tokens(randn(b, 12, 3, 5, seed=s)) for s in (4, 5)], 1)
    return EncodedQuery(torch.zeros(b, 8, 3, 5), tokens, similarities(tokens))


def test_grid_weights_are_areas() -> None:
    masks = torch.zeros(1, 2, 8, 8)
    masks[0, 0, :4, :4], masks[0, 1, :2, :1] = 1.0, 1.0
    fg, bg = grid_weights(masks, (2, 2))
    assert fg.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.125, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(fg + bg, torch.ones(1, 8))


def test_prototypes_equal_loops() -> None:
    tokens, fg = unit_tokens(randn(1, 6, 3, 3)), rand(1, 9)
    both = prototypes(tokens, fg, torch.zeros(1, 9))
    mean = sum(float(w) * t for w, t in zip(fg[0], tokens[0]))
    torch.testing.assert_close(both[0, 0], mean / mean.norm())
    assert not bool(both[0, 1].any())  # no background: no direction


def test_support_tokens_keep_references_together() -> None:
    feats = randn(6, 5, 2, 2)
    torch.testing.assert_close(support_tokens(feats, 2)[1, 4:8], unit_tokens(feats[4:5])[0])


def test_maps_are_cosines_and_the_pooled_correlation() -> None:
    memory, query = remembered(), seen()
    maps = PromptGenerator(12, 2, 8, 16).maps(memory, query)[0]
    assert maps.shape == (1, 4 + 5 + 8 + 2, 15)
    for i in range(2):
        both = query.tokens[0, i] @ memory.prototypes[0, i].T
        torch.testing.assert_close(maps[0, [i, 2 + i]], both.T, atol=1e-5, rtol=1e-5)
    assert memory.tokens is not None and memory.fg is not None and memory.bg is not None
    groups = torch.stack([memory.fg, memory.bg], 1)
    pooled = [pool_correlation(query.tokens[:, i], memory.tokens[:, i], groups, TEMPERATURE)[0] for i in range(2)]
    for i in range(2):
        torch.testing.assert_close(maps[0, 9 + 2 * i : 11 + 2 * i], pooled[i][0, ::2])
        torch.testing.assert_close(maps[0, 13 + 2 * i : 15 + 2 * i], (pooled[i][0] - pooled[i][1])[::2])
    mean = (pooled[0] + pooled[1])[0, ::2] / 2 - (pooled[0] + pooled[1])[1, ::2] / 2
    twice = mean @ query.similar[0].T @ query.similar[0].T
    torch.testing.assert_close(maps[0, 17:], twice, atol=1e-5, rtol=1e-5)
    assert PromptGenerator(12, 2, 8, 16, correlation=False).maps(memory, query)[0].shape == (1, 9, 15)


def test_own_prototypes_are_means_under_the_guess() -> None:
    query, guess = seen(), randn(1, 1, 3, 5, seed=8)
    maps = PromptGenerator(12, 2, 8, 16).own_maps(guess, query.tokens)
    weight = guess.flatten().sigmoid() ** 2
    own = torch.nn.functional.normalize(weight @ query.tokens[0, 1], dim=-1)
    torch.testing.assert_close(maps[0, 1], query.tokens[0, 1] @ own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps[0, 6], maps[0, 4] - maps[0, 5], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps[0, 4], maps[0, :2].mean(0), atol=1e-5, rtol=1e-5)


def test_without_sparse_prompts_there_are_no_tokens() -> None:
    generator = PromptGenerator(12, 2, 8, 16, sparse=False)
    assert generator(remembered(), seen(3)).sparse.shape == (3, 0, 8)
    assert not any("token" in name or "kind" in name for name, _ in generator.named_parameters())


def test_tokens_are_projected_prototypes() -> None:
    memory, generator = remembered(), PromptGenerator(12, 2, 8, 16)
    tokens = generator.tokens(memory, 1)
    scaled = memory.prototypes[0, 1, 0] * math.sqrt(12)
    torch.testing.assert_close(tokens[0, 2], generator.token_proj[1](scaled) + generator.kind_embed[0])


@pytest.mark.parametrize("layers", [None, 2])
def test_presence_starts_present(layers: int | None) -> None:
    head, query, generator = PresenceHead(16, layers), seen(50), PromptGenerator(12, 2, 8, 16)
    token = torch.nn.functional.layer_norm(randn(50, 16), (16,))
    prompts = generator(remembered(), query)
    evidence = head.evidence(remembered(), query, prompts, token, 5 * randn(50, 1, 12, 20, seed=2))
    logit = head(evidence)
    assert evidence.shape == (50, 18 if layers is None else 11 + 2 * 11)
    assert logit.shape == (50, 1) and bool((logit > 0).all())


def test_presence_statistics_are_of_guess_and_mask() -> None:
    coarse, mask = torch.zeros(1, 100), torch.full((20, 20), -20.0)
    coarse[0, :2], mask[:2, :10] = 10.0, 20.0  # two and twenty positions: 2 % and 5 %
    expected = torch.tensor([1.0, 0.02, float(0.1 * coarse.std()), 1.0, 0.2, 2.0, -1.8, 2.0, 2.0, 0.05, 1.0])
    torch.testing.assert_close(statistics(coarse, mask.flatten()[None])[0], expected, atol=1e-5, rtol=0)


def test_presence_compares_what_was_found_with_what_was_shown() -> None:
    axes = torch.eye(4)
    shown = torch.stack([axes[0], axes[1]])[None, None]  # (1, 1, 2, 4)
    found = torch.stack([0.6 * axes[0] + 0.8 * axes[2], axes[1]])[None, None]
    cosines = torch.zeros(1, 1, 100)
    cosines[..., :2], cosines[..., 2:10] = 1.0, 0.5
    numbers = likeness(shown, found, cosines)[0].tolist()
    spread = float(cosines.std())
    assert numbers == pytest.approx([0.6, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.6, 0.06, spread], abs=1e-5)


def test_cells_hold_the_means_of_their_positions() -> None:
    layer, fg = randn(2, 2 * 15, 6, seed=1), rand(2, 30, seed=2)  # two references of 3 x 5
    tokens, object_share, rest = in_cells([layer], fg, 1 - fg, (3, 5), 2)
    assert tokens.shape == (2, 1, 2 * 2 * 3, 6)
    whole, edge = [0, 1, 5, 6], [12, 13]  # positions of the first cell, and of one at the lower edge
    for cell, rows in ((0, whole), (4, edge)):
        mean = layer[1, rows].mean(0)
        torch.testing.assert_close(tokens[1, 0, cell], mean / mean.norm())
        torch.testing.assert_close(object_share[1, cell], fg[1, rows].mean())
    torch.testing.assert_close(object_share + rest, torch.ones(2, 12))
    second = layer[0, 15 + 14]  # the last corner of the second reference stands alone
    torch.testing.assert_close(tokens[0, 0, -1], second / second.norm())


def test_channel_match_sees_which_channels_agree() -> None:
    torch.manual_seed(0)
    generator = PromptGenerator(4, 1, 8, 8)
    prototypes = torch.zeros(1, 1, 2, 4)
    prototypes[0, 0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    prototypes[0, 0, 1] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    memory = SupportMemory(prototypes=prototypes)
    query = torch.eye(4)[None, None]  # four positions, one channel each
    hint = generator.channel_hint(memory, query) - generator.matchers[0].bias[:, None]
    weight = generator.matchers[0].weight
    assert torch.allclose(hint[0, :, 0], 4 * weight[:, 0]) and torch.allclose(hint[0, :, 1], 4 * weight[:, 5])
    assert torch.allclose(hint[0, :, 2:], torch.zeros(8, 2), atol=1e-6)
