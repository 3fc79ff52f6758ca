"""Graphs of other methods than FS-DINO, and of every family of encoders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fsdino.base.registry import build
from fsdino.base.storage import load, save
from fsdino.export.command import export, variations
from fsdino.export.graphs import Graph, encoder_of, export_onnx, export_program, graphs
from fsdino.export.onnx_method import OnnxMethod
from fsdino.methods.chain import ChainMethod
from fsdino.models.encoder import FeatureEncoder
from fsdino.predict import EngineChoice, predict
from fsdino.predict.engines.onnx import OnnxEngine, open_session
from tests.contract import assert_same, episodes
from tests.models.test_encoder import KINDS
from tests.small import VIT, rand, references, refuses, scene, write_references

# PE-Spatial has both kinds of positions, and rotary ones are debiased: all that a graph of the chain can hold.
CHAIN: dict[str, Any] = {
    "encoder": "vit_pe_spatial_small_patch16_512", "img_size": 64, "taps": (0, 1),
    "encoder_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2},
}  # fmt: skip
PROTOTYPE = {**VIT, "img_size": 56, "tap": 0, "score_threshold": 0.0}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small chain, saved and exported; tracing is the slow part, so once for the module."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method: ChainMethod = build("chain", **CHAIN)
    method.fit_directions()
    model = save(method, tmp_path_factory.mktemp("model"))
    return export(str(model), str(tmp_path_factory.mktemp("export")))


def test_the_chain_s_programs_equal_the_chain() -> None:
    # What its graphs are made of; how rotary positions become ONNX is seen with the encoders below.
    method: Any = build("chain", **CHAIN)
    method.fit_directions()
    for graph in graphs(method.eval()):
        traced = export_program(graph).module()
        with torch.no_grad():
            for inputs in variations(graph):
                for found, expected in zip(traced(*inputs), graph.module(*inputs)):
                    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_chain_s_graphs_equal_the_chain(chain: Path) -> None:
    engine, method, model = OnnxEngine(chain), OnnxMethod(chain), load(chain)
    assert model.directions.any() and engine.fingerprint() == model.fingerprint()
    assert engine.name == model.name == "chain", "by which predict knows whose edges it refines"
    query, images, masks = episodes(model, 2, 3)
    with torch.no_grad():
        assert_same(method(query, images, masks), model(query, images, masks), 1e-4)
    image = scene(70, 50, seed=4)[0]
    classes = [references(1), references(3, seed=5), references(2, seed=9)]
    ours = list(engine.find(engine.join([engine.remember(one) for one in classes]), image))
    theirs = list(model.find(model.join([model.remember(one) for one in classes]), image))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a.probs, b.probs, atol=1e-4)
        assert (a.mask != b.mask).mean() < 0.002 and 0 < b.mask.mean() < 1


@pytest.mark.slow
def test_predict_gives_the_chain_s_masks_in_both_runtimes(chain: Path, tmp_path: Path) -> None:
    support = str(write_references(tmp_path / "refs", {"cat": 2, "dog": 1}))
    (tmp_path / "photos").mkdir()
    Image.fromarray(scene(70, 50, seed=4)[0]).save(tmp_path / "photos" / "a.png")
    labels = []
    for runtime in ("torch", "onnx"):
        out = tmp_path / runtime
        assert predict(support, str(tmp_path / "photos"), str(out), engine=EngineChoice(str(chain), runtime)) == 0
        labels.append(np.asarray(Image.open(out / "labels" / "a.png")))
    assert (labels[0] != labels[1]).mean() < 0.002 and len(np.unique(labels[0])) > 1


@pytest.mark.slow
def test_the_prototype_s_graphs_equal_the_prototype(tmp_path: Path) -> None:
    model = build("prototype", **PROTOTYPE)
    export(str(save(model, tmp_path / "model")), str(tmp_path / "graphs"), ("onnx",))
    query, images, masks = episodes(model, 2, 2)
    with torch.no_grad():
        assert_same(OnnxMethod(tmp_path / "graphs")(query, images, masks), model(query, images, masks), 1e-4)
    softmax = save(build("prototype", **PROTOTYPE, kind="softmax"), tmp_path / "softmax")
    refuses(r"holds prototype, which has no graphs \(onnx\)", export, str(softmax), str(tmp_path / "out"))


class _Maps(nn.Module):
    """An encoder as a graph."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.stacked(images)


# One of each way to say where a patch is, and of each kind of prefix; `benchmarks.accuracy.families` exports them all.
FAMILIES = ("reg4", "pe_spatial", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dinov3", "tipsv2")))


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_of_encoders_becomes_a_graph(kind: str, tmp_path: Path) -> None:
    if kind not in KINDS:
        pytest.skip("this timm does not know it")
    name, size, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = FeatureEncoder(name, size, (0,), {"embed_dim": 32, "depth": 1, "num_heads": 2})
    images = rand(3, 3, size, size)
    expected = encoder.stacked(images)  # before the size is frozen
    assert encoder_of(_Maps(encoder)) is encoder.freeze_size_()  # type: ignore[arg-type]
    batch = {"images": {0: torch.export.Dim("images", max=64)}}
    graph = Graph("maps", _Maps(encoder), (images[:2],), ["images"], ["maps"], dynamic_shapes=batch, growing={})
    export_onnx(graph, export_program(graph), tmp_path / "maps.onnx")
    found = open_session(tmp_path / "maps.onnx").run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
