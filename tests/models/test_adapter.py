import torch

from fsdino.models.adapter import AttentionBlock, SamAdapter
from tests.small import randn, refuses


def test_sees_the_whole_image() -> None:
    torch.manual_seed(0)
    adapter, feats = SamAdapter(12, 8, mid_dim=16, hidden_dim=8, num_heads=2), randn(1, 12, 8, 8)
    changed = feats.clone()
    changed[..., -1, -1] += 5.0
    assert not torch.allclose(adapter(feats)[..., 0, 0], adapter(changed)[..., 0, 0], atol=1e-6)


def test_heads_must_divide() -> None:
    refuses("3 heads do not divide the width 8; use a divisor", AttentionBlock, 8, 3, 16)
