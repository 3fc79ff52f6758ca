import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import TwoWayTransformer

from fsdino.models.config import preset
from fsdino.models.decoder import Attention, MaskDecoder
from fsdino.models.segmenter import FewShotSegmenter
from tests.small import randn, refuses


def reference(dim: int = 32, depth: int = 2, mlp_dim: int = 48, heads: int = 4, iou_dim: int = 24) -> SamMaskDecoder:
    """segment-anything's decoder with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = TwoWayTransformer(depth=depth, embedding_dim=dim, num_heads=heads, mlp_dim=mlp_dim)
        return SamMaskDecoder(transformer_dim=dim, transformer=transformer, iou_head_hidden_dim=iou_dim).eval()


def ours(sam: SamMaskDecoder) -> MaskDecoder:
    decoder = MaskDecoder(32, 2, 48, 4, 24).eval()
    decoder.load_state_dict(sam.state_dict())
    return decoder


def inputs(batch: int, prompts: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    embedding, dense = randn(batch, 32, 6, 5), randn(batch, 32, 6, 5, seed=1)
    return embedding, randn(1, 32, 6, 5, seed=2), randn(batch, prompts, 32, seed=3), dense


@pytest.mark.parametrize("prompts", [0, 1, 5])
def test_equals_segment_anything(prompts: int) -> None:
    sam = reference()
    embedding, pe, sparse, dense = inputs(1, prompts)
    masks, iou = sam.predict_masks(embedding, pe, sparse, dense)
    out = ours(sam)(embedding, pe, sparse, dense)
    torch.testing.assert_close(out.mask_logits, masks, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.iou_pred, iou, atol=1e-5, rtol=1e-5)
    assert out.tokens.shape == (1, 5, 32)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_every_sam_loads_strictly(name: str) -> None:
    with torch.device("meta"):
        sam = sam_model_registry[name]()
        segmenter = FewShotSegmenter(preset("b14", encoder_kwargs={"depth": 12, "embed_dim": 64, "num_heads": 2}))
    for part, module in (("mask_decoder", segmenter.decoder), ("prompt_encoder", segmenter.prompt_encoder)):
        theirs = {k: v.shape for k, v in getattr(sam, part).state_dict().items()}
        assert {k: v.shape for k, v in module.state_dict().items()} == theirs
    segmenter.load_sam_(sam.state_dict())


def test_heads_must_divide() -> None:
    refuses("3 heads do not divide the attention width 16; use a divisor", Attention, 32, 3, inner_dim=16)
