"""The training-free chain: its steps against formulas, and the contract of every method."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fsdino.base import registry, storage
from fsdino.methods.chain import ChainMethod, with_mirrored
from fsdino.models.layers import unit_tokens
from fsdino.models.smoothing import affinity, own_cosines, side_by_side, smooth
from tests.contract import FewShotContract, episodes, sketch
from tests.small import METHOD_ARGS, references, refuses, small_encoder


class TestChain(FewShotContract):
    def build(self) -> ChainMethod:
        return ChainMethod(small_encoder(56, (1, 3)))


class TestLongChain(FewShotContract):
    def build(self) -> ChainMethod:
        return ChainMethod(small_encoder(56, (1, 2, 3)), own_rounds=2, smoothing_steps=1, own_share=0.2, mirror=False)


def _maps(seed: int, taps: int = 2, batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 6, 4, 4, generator=generator) for _ in range(taps)]


def test_tokens_side_by_side_multiply_to_the_mean_cosine() -> None:
    maps = _maps(0, taps=3)
    tokens = side_by_side(maps)[0]
    units = [torch.nn.functional.normalize(m[0].flatten(1).T, dim=-1) for m in maps]
    expected = torch.stack([u @ u.T for u in units]).mean(0)
    torch.testing.assert_close(tokens @ tokens.T, expected)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(16))


def test_smoothing_averages_over_rows_that_sum_to_one() -> None:
    tokens = side_by_side(_maps(1, batch=2))
    similar = affinity(tokens, 10.0)
    torch.testing.assert_close(similar.sum(-1), torch.ones(2, 16))
    values = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
    twice = torch.stack([torch.stack([similar[b] @ (similar[b] @ row) for row in values[b]]) for b in range(2)])
    torch.testing.assert_close(smooth(values, similar, 2), twice)
    assert smooth(values, similar, 0) is values
    torch.testing.assert_close(smooth(torch.ones(2, 1, 16), similar, 5), torch.ones(2, 1, 16))


def test_the_best_positions_make_a_prototype() -> None:
    maps = _maps(3)
    tokens, long = torch.stack([unit_tokens(m) for m in maps], dim=1), side_by_side(maps)[0]
    values = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(4))
    found = own_cosines(values, tokens, 5)
    for row, one in zip(values[0], found[0]):
        mean = long[row.argsort(descending=True)[:5]].mean(0)
        torch.testing.assert_close(one, long @ mean / mean.norm())


@torch.no_grad()
def test_scores_are_the_formula() -> None:
    method = ChainMethod(small_encoder(56, (1, 3)), own_share=0.1, own_weight=0.4, smoothing_steps=2).eval()
    method.means.normal_(generator=torch.Generator().manual_seed(0))
    query, images, masks = episodes(method, 1, 1)
    z, similar = (t[0].double().numpy() for t in method.encode_query(query))
    memory = method.encode_support(images, masks)
    fg, bg = (memory.prototypes[0, :, k].double().numpy().reshape(-1) / np.sqrt(2) for k in (0, 1))
    first = similar @ (similar @ (z @ (fg - 0.25 * bg)))
    best = np.argsort(-first)[: round(0.1 * len(z))]
    own = z[best].mean(0) / np.linalg.norm(z[best].mean(0))
    score = similar @ (similar @ (z @ (0.6 * fg + 0.4 * own - 0.25 * bg)))
    np.testing.assert_allclose(method.scores(memory, method.encode_query(query))[0][0, 0].numpy(), score, atol=1e-5)
    cut = score.mean() + method.cut * (score.max() - score.mean())
    found = method.decode_query(memory, query).mask_logits[0, 0].flatten().numpy() > 0
    np.testing.assert_array_equal(found, score > cut)


@torch.no_grad()
def test_a_mirrored_reference_is_another_shot() -> None:
    method = ChainMethod(small_encoder(56, (1, 3))).eval()
    _, images, masks = episodes(method, 1, 2)
    assert with_mirrored(masks).shape == (1, 4, 56, 56)
    plain = ChainMethod(method.encoder, mirror=False).eval()
    both = plain.encode_support(with_mirrored(images), with_mirrored(masks))
    assert torch.equal(method.encode_support(images, masks).prototypes, both.prototypes)


@torch.no_grad()
def test_classes_of_one_image_are_one_pass() -> None:
    method = ChainMethod(small_encoder(56, (1, 3))).eval()
    memories = [method.encode_support(*episodes(method, 1, 1, seed=k)[1:]) for k in range(3)]
    query = episodes(method, 1, 1, seed=9)[0]
    (joined,) = method.join(memories)
    together = method.decode_encoded(joined, method.encode_query(query))
    assert together.mask_logits.shape[0] == 3
    for k, memory in enumerate(memories):
        torch.testing.assert_close(together.mask_logits[k : k + 1], method.decode_query(memory, query).mask_logits)


class TestMeans:
    def test_they_are_those_of_all_positions(self) -> None:
        encoder = small_encoder(56, (1, 3))
        images = torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
        expected = torch.stack([m.mean((0, 2, 3)) for m in encoder(images)])
        torch.testing.assert_close(encoder.mean_features(images), expected, atol=1e-6, rtol=1e-5)
        with pytest.raises(ValueError, match="no image to take means of; give a few dozen pictures"):
            encoder.mean_features([])

    def test_fitted_means_are_saved_and_change_the_fingerprint(self, tmp_path) -> None:
        method = registry.build("chain", **METHOD_ARGS["chain"])
        before = method.fingerprint()
        method.fit_means([sketch(40, 60, k)[0] for k in range(3)])
        assert method.fingerprint() != before and method.means.abs().sum() > 0
        storage.save(method, tmp_path)
        again = storage.load(tmp_path)
        assert torch.equal(again.means, method.means) and again.fingerprint() == method.fingerprint()
        image = sketch(40, 60, 7)[0]
        found, same = (m.segment(m.remember(references()), image) for m in (method, again))
        np.testing.assert_array_equal(found.probs, same.probs)

    def test_centred_features_have_no_mean(self) -> None:
        method = ChainMethod(small_encoder(56, (1, 3)))
        image = sketch(56, 56, 0)[0]
        method.fit_means([image])
        maps = method.centre(method.encoder(method._square(image)[None]))
        assert max(float(m.mean((0, 2, 3)).abs().max()) for m in maps) < 1e-5

    def test_a_file_has_a_row_for_each_block(self, tmp_path) -> None:
        means = torch.arange(4.0)[:, None] + torch.zeros(4, 32)
        save_file({"means": means}, tmp_path / "means.safetensors")
        args = {**METHOD_ARGS["chain"], "means": str(tmp_path / "means.safetensors")}
        assert torch.equal(registry.build("chain", **args).means, means[[1, 3]])
        save_file({"means": means[:3]}, tmp_path / "means.safetensors")
        refuses(r"holds means of shape \(3, 32\), this encoder needs \(4, 32\)", registry.build, "chain", **args)


def test_options_that_change_no_memory_leave_the_fingerprint() -> None:
    args = METHOD_ARGS["chain"]
    methods = [registry.build("chain", **args, **more) for more in ({}, {"cut": 0.5}, {"mirror": False})]
    for method in methods:
        method.load_state_dict(methods[0].state_dict())
    names = [method.fingerprint() for method in methods]
    assert names[0] == names[1] != names[2]
    memory = methods[0].encode_support(*episodes(methods[0], 1, 1)[1:])
    assert memory.tokens is None and replace(memory).prototypes.shape == (1, 2, 2, 32)


def test_errors_say_what_to_do() -> None:
    encoder = small_encoder(56, (1, 3))
    refuses(r"\{'cut': 1.5\} are not between 0 and 1", ChainMethod, encoder, cut=1.5)
    refuses("own_rounds -1 must be 0 or more", ChainMethod, encoder, own_rounds=-1)
