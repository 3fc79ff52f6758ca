"""The chain without what tells the place."""

import torch

from fsdino.methods.chain import ChainMethod
from fsdino.models.encoder import FeatureEncoder
from tests.contract import FewShotContract, episodes
from tests.small import TINY_VIT, small_encoder


def rotary() -> FeatureEncoder:
    """A DINOv3 of two taps on a 4 x 4 grid."""
    return FeatureEncoder("vit_small_patch16_dinov3", 64, (1, 3), TINY_VIT)


class TestDebiasedChain(FewShotContract):
    def build(self) -> ChainMethod:
        return ChainMethod(rotary(), debias=5).fit_directions()


def test_what_tells_the_place_is_left_out_of_references_and_images() -> None:
    method = ChainMethod(rotary()).fit_directions()
    assert method.directions.shape == (2, 32, 8)
    query, images, masks = episodes(method, 1, 2)
    memory = method.encode_support(images, masks)
    along = torch.einsum("blkc,lcr->blkr", memory.prototypes, method.directions)
    assert float(along.abs().max()) < 1e-5 < float(memory.prototypes.abs().max())
    tokens = method.encode_query(query)[0].unflatten(-1, (2, 32))
    assert float(torch.einsum("bqlc,lcr->bqlr", tokens, method.directions).abs().max()) < 1e-5


def test_only_rotary_encoders_are_debiased_unless_asked() -> None:
    assert ChainMethod(small_encoder()).directions.shape == (1, 32, 0)
    assert ChainMethod(rotary(), debias=0).directions.shape == (2, 32, 0)
    assert ChainMethod(small_encoder(), debias=3).directions.shape == (1, 32, 3)


def test_directions_are_fitted_to_weights_from_a_file(tmp_path: object) -> None:
    path = f"{tmp_path}/vit.pth"
    torch.save(rotary().backbone.state_dict(), path)
    args = {"encoder": "vit_small_patch16_dinov3", "img_size": 64, "taps": (1,), "encoder_kwargs": TINY_VIT}
    fitted = ChainMethod.build(**args, encoder_weights=path).directions
    assert bool(fitted.any()) and not ChainMethod.build(**args).directions.any()
