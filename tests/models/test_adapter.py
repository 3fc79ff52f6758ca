import torch

from fsdino.models.adapter import AttentionBlock, SamAdapter
from tests.small import randn, refuses


def build() -> SamAdapter:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SamAdapter(12, 8, mid_dim=16, hidden_dim=8, num_heads=2)


def test_any_grid_and_batch() -> None:
    adapter, feats = build(), randn(3, 12, 5, 7)
    together = adapter(feats)
    assert together.shape == (3, 8, 5, 7)
    torch.testing.assert_close(together[1:2], adapter(feats[1:2]), atol=1e-5, rtol=1e-5)


def test_sees_the_whole_image() -> None:
    adapter, feats = build(), randn(1, 12, 8, 8)
    changed = feats.clone()
    changed[..., -1, -1] += 5.0
    assert not torch.allclose(adapter(feats)[..., 0, 0], adapter(changed)[..., 0, 0], atol=1e-6)


def test_heads_must_divide() -> None:
    refuses("3 heads do not divide the width 8; use a divisor", AttentionBlock, 8, 3, 16)
