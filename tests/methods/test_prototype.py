"""Prototype baselines against loops, and the choice of the cut against brute force."""

import numpy as np
import pytest
import torch

from fsdino.methods.prototype import AllForeground, PrototypeMethod, correlation_score, masked_average, prototype_score
from tests.contract import FewShotContract, episodes
from tests.small import refuses, small_encoder


class TestPrototype(FewShotContract):
    def build(self) -> PrototypeMethod:
        return PrototypeMethod(small_encoder(56, (1, 3)), tap=(1, 3), score_threshold=0.1)


class TestSoftmaxPrototype(FewShotContract):
    def build(self) -> PrototypeMethod:
        return PrototypeMethod(small_encoder(56, (1, 3)), tap=3, score_threshold=0.3, kind="softmax")


class TestAllForeground(FewShotContract):
    def build(self) -> AllForeground:
        return AllForeground(56)


def test_masked_average_is_the_loop_and_zero_without_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, weights = torch.rand(2, 7, 5, generator=generator), torch.rand(2, 7, generator=generator)
    weights[1] = 0
    got = masked_average(tokens, weights)
    expected = sum(weights[0, i] * tokens[0, i] for i in range(7)) / weights[0].sum()
    torch.testing.assert_close(got[0], expected)
    assert torch.equal(got[1], torch.zeros(5))


def test_scores_are_the_formulas() -> None:
    rng = np.random.default_rng(0)
    query, support = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    weights = rng.uniform(size=9)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    powers = np.exp(unit(query) @ unit(support).T / 0.1)
    expected = (powers / powers.sum(1, keepdims=True)) @ weights
    got = correlation_score(torch.from_numpy(query), torch.from_numpy(support), torch.from_numpy(weights))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-10)
    got = prototype_score(torch.from_numpy(query), torch.from_numpy(support[0]), torch.from_numpy(support[1]))
    np.testing.assert_allclose(got.numpy(), unit(query) @ unit(support[0]) - unit(query) @ unit(support[1]), atol=1e-10)


def test_logit_zero_is_the_threshold() -> None:
    method = PrototypeMethod(small_encoder(56, (1, 3)), tap=3, score_threshold=0.05).eval()
    query, images, masks = episodes(method, 2, 1)
    memory = method.encode_support(images, masks)
    found = method.decode_query(memory, query).mask_logits[:, 0] > 0
    assert torch.equal(found, method.scores(memory, query) > method.score_threshold)


@pytest.mark.parametrize("kind", ["fg_bg", "softmax"])
@torch.no_grad()
def test_the_reference_finds_itself(kind: str) -> None:
    threshold = 0.5 if kind == "softmax" else 0.0
    method = PrototypeMethod(small_encoder(56, (1, 3)), 3, threshold, kind=kind).eval()  # type: ignore[arg-type]
    image, mask = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 56, 56)
    image[..., 28:] *= 0.2
    mask[..., 28:] = 1
    logits = method(image, image[:, None], mask[:, None]).mask_logits[0, 0]
    assert logits[:, 2:].mean() > logits[:, :2].mean()


def test_errors_say_what_to_do() -> None:
    encoder = small_encoder(56, (1, 3))
    with pytest.raises(ValueError, match="'fg_bg' or 'softmax'"):
        PrototypeMethod(encoder, tap=3, score_threshold=0.0, kind="mean")  # type: ignore[arg-type]
    refuses(r"not \[2\]; build it with these taps", PrototypeMethod, encoder, tap=2, score_threshold=0.0)
