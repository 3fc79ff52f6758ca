"""Parameter groups, optimisers and the schedule."""

import pytest
import torch
from torch import nn

from fsdino.teachers.architecture import build_sam
from fsdino.training.optim import build_optimizer, build_schedule, learning_rate_factor, parameter_groups
from tests.small import SAM, refuses


def test_every_trainable_parameter_is_in_one_group():
    sam = build_sam(SAM, seed=0)
    sam.prompt_encoder.requires_grad_(False)
    for muon in (False, True):
        groups = parameter_groups(sam, 0.1, muon)
        members = [id(p) for group in groups for p in group["params"]]
        assert sorted(members) == sorted(id(p) for p in sam.parameters() if p.requires_grad)
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    encoder = sam.image_encoder
    for parameter in (encoder.pos_embed, encoder.blocks[0].attn.rel_pos_h, encoder.blocks[0].norm1.weight,
                      sam.mask_decoder.mask_tokens.weight):  # fmt: skip
        assert id(parameter) in undecayed
    muon_group = groups[0]
    assert "use_fallback" not in muon_group
    assert {p.ndim for p in muon_group["params"]} == {2}
    assert id(encoder.blocks[0].mlp.lin1.weight) in {id(p) for p in muon_group["params"]}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimisers_learn(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    x = torch.randn(64, 16)
    optimizer = build_optimizer(net, name, lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = (net(x) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_schedule_warms_up_and_ends_at_zero():
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11) and factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    optimizer = build_optimizer(nn.Linear(2, 2), lr=0.5)
    config = build_schedule(optimizer, total_steps=10, warmup=0.2)
    assert config["lr_scheduler"]["interval"] == "step"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / 3)


def test_polynomial_decay_ends_at_zero():
    factors = [learning_rate_factor(step, 10, 0, "poly") for step in (0, 5, 10, 11)]
    assert factors == pytest.approx([1.0, 0.5**0.9, 0.0, 0.0])
    optimizer = build_optimizer(nn.Linear(2, 2), lr=1.0)
    schedule = build_schedule(optimizer, 10, 0.0, "poly", horizon=3.0)["lr_scheduler"]["scheduler"]
    assert schedule.lr_lambdas[0](15) == pytest.approx(0.5**0.9)  # a third of the schedule is run


def test_errors():
    refuses("unknown optimizer 'sgd'; use 'adamw' or 'muon'", build_optimizer, nn.Linear(2, 2), "sgd")
    refuses("Linear has no trainable parameter; unfreeze", build_optimizer, nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="unknown schedule 'step'; use 'cosine' or 'poly'"):
        build_schedule(build_optimizer(nn.Linear(2, 2)), 10, kind="step")
