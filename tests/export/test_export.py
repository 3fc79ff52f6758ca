"""Exported graphs compute what torch computes, at other sizes than traced, and run where torch is absent."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from fsdino.base.reference import Reference
from fsdino.base.resize import Resize
from fsdino.base.result import MAX_CLASSES_AT_ONCE
from fsdino.base.storage import fingerprint, load, save
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.world.index import SyntheticWorld
from fsdino.evaluation.measure import evaluate
from fsdino.export import command as run
from fsdino.export.agreement import PHOTOS, agreement, checks
from fsdino.export.command import compare_onnx, export, variations
from fsdino.export.graphs import OPSET, SHOTS, graphs
from fsdino.export.onnx_method import OnnxMethod
from fsdino.export.quantize import quantize_int8
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.predict import EngineChoice, predict, remember
from fsdino.predict.engines.array_resize import ArrayResize
from fsdino.predict.engines.onnx import METADATA_KEY, OnnxEngine, open_session
from tests.contract import assert_same, episodes
from tests.small import rand, references, refuses, scene, small_segmenter, write_references


def traceable(**overrides: Any) -> FewShotSegmenter:
    """A model of few nodes: what tracing and rewriting take grows with them."""
    encoder = {"embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1.0}
    sizes = {"encoder_kwargs": encoder, "adapter_tap": 0, "reader_taps": (0, 1), "decoder_depth": 1}
    maps = {"attention_taps": (1,), "centred": True}
    model = small_segmenter(**{**sizes, **maps, "presence_likeness": True, **overrides})
    model.compared.fit_(model.encoder.mean_features(rand(2, 3, 56, 56)))
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small full model, exported; tracing is the slow part, so once for the module."""
    model = save(traceable(), tmp_path_factory.mktemp("model"))
    return export(
        str(model), str(tmp_path_factory.mktemp("export")), ("safetensors", "onnx", "onnx_fp16", "int8"), half=True
    )


@pytest.mark.parametrize("mode", ["squash", "pad"])
@pytest.mark.parametrize("size", [(300, 200), (20, 33), (500, 30), (56, 56), (1, 1)])
def test_resizing_equals_torch(mode: str, size: tuple[int, int]) -> None:
    ours, theirs = ArrayResize(56, mode), Resize(56, mode)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (*size, 3), dtype=np.uint8), rng.integers(0, 2, size, dtype=np.uint8)
    logits = rng.standard_normal((16, 16), dtype=np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1) / 255
    np.testing.assert_allclose(ours.image(image), theirs.image(tensor).numpy(), atol=5e-6)
    np.testing.assert_allclose(ours.soft_mask(mask), theirs.soft_mask(torch.from_numpy(mask)).numpy(), atol=5e-6)
    back = theirs.invert(torch.from_numpy(logits), size).numpy()
    np.testing.assert_allclose(ours.invert(logits, size), back, atol=5e-6)


@pytest.mark.parametrize(("runtime", "shots"), [("onnx", 1), ("onnx", 2), ("onnx", 4), ("openvino", 2)])
def test_graphs_equal_torch_on_images_of_any_size(exported: Path, runtime: Any, shots: int) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="the extra fsdino[openvino] is not installed")
    by_torch, by_graph = load(exported), EngineChoice(str(exported), runtime).open()
    assert by_graph.fingerprint() == by_torch.fingerprint() and by_graph.threshold == by_torch.threshold
    groups = [references(shots), references(1, seed=7)]
    found = []
    for engine in (by_torch, by_graph):
        joined = engine.join([engine.remember(group) for group in groups])
        found.append([list(engine.find(joined, scene(*size)[0])) for size in ((50, 90), (130, 44))])
    for expected, got in zip(*found):
        for a, b in zip(expected, got):
            assert np.abs(a.probs - b.probs).max() < 2.5e-4  # 1e-3 in logits
            assert a.score == pytest.approx(b.score, abs=1e-4) and a.present == b.present
            assert a.presence == pytest.approx(b.presence, abs=1e-4)


def test_memories_are_the_same_for_both_engines(exported: Path) -> None:
    by_torch, by_onnx = load(exported), OnnxEngine(exported)
    packed = by_torch.pack(by_torch.remember(references(2)))
    other = by_onnx.pack(by_onnx.remember(references(2)))
    for name, array in other.items():
        np.testing.assert_allclose(array, packed[name], atol=1e-4)
    image = scene(seed=3)[0]
    crossed, own = (next(by_onnx.find(by_onnx.join([by_onnx.unpack(m)]), image)) for m in (packed, other))
    np.testing.assert_allclose(crossed.probs, own.probs, atol=1e-4)


def test_many_classes_equal_one_by_one(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, image, sizes = OnnxEngine(exported), scene(50, 90)[0], []
    memories, decode = [engine.remember(references(1 + k % 3, seed=k)) for k in range(19)], engine.decode
    monkeypatch.setattr(engine, "decode", lambda m, images: sizes.append(len(m["prototypes"])) or decode(m, images))
    together = list(engine.find(engine.join(memories), image))
    assert sum(sizes) == len(together) == 19 and max(sizes) <= MAX_CLASSES_AT_ONCE
    for memory, found in zip(memories, together):
        (alone,) = engine.find(engine.join([memory]), image)
        np.testing.assert_allclose(found.probs, alone.probs, atol=1e-4)


def test_graphs_take_batches_of_images_and_classes(exported: Path) -> None:
    graph = graphs(load(exported))[1]
    session = open_session(exported / "segment.onnx")
    images, memory = graph.inputs[0], [torch.cat([tensor, tensor[:1]]) for tensor in graph.inputs[1:]]
    images = torch.cat([images, images.flip(-1)])  # four images, three classes
    inputs = dict(zip(graph.input_names, [tensor.numpy() for tensor in (images, *memory)]))
    logits = session.run(None, inputs)[0]
    assert logits.shape == (4, 3, 16, 16)
    with torch.no_grad():
        expected = graph.module(images, *memory)[0]
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-3)


def test_eight_bits_are_smaller_and_close(exported: Path) -> None:
    sizes = [(exported / part / "segment.onnx").stat().st_size for part in ("", "int8")]
    assert sizes[1] < sizes[0]
    whole, small = OnnxEngine(exported), OnnxEngine(exported / "int8")
    assert small.fingerprint() == whole.fingerprint()
    image = scene(seed=3)[0]
    found = [next(e.find(e.join([e.remember(references(2))]), image)).probs for e in (whole, small)]
    assert np.abs(found[0] - found[1]).mean() < 0.05


def test_quantising_gives_no_advice_that_nobody_can_take(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantize_int8(exported, tmp_path)
    assert caplog.text == "" and not logging.getLogger().filters


def test_rounded_graphs_note_how_far_they_agree_with_torch(exported: Path) -> None:
    model, on = load(exported), checks()
    for part in ("int8", "fp16"):
        info = OnnxEngine(exported / part).info
        found = agreement(model, exported / part, on)
        assert info["agreement"] == pytest.approx(found.mean, abs=1e-6) and 0.5 < found.mean <= 1
        assert info["agreement_in_words"] == str(found) and "6 scenes of the embedded world" in str(found)
    assert agreement(model, exported, on).mean > 0.999 and "agreement" not in OnnxEngine(exported).info
    assert agreement(traceable(seed=1), exported, on).mean < 0.9, "other weights give other masks"


def test_half_precision_is_half_as_large_and_takes_the_same_memories(exported: Path) -> None:
    whole, half = OnnxEngine(exported), OnnxEngine(exported / "fp16")
    graphs = [onnx.load(exported / part / "segment.onnx").graph for part in ("", "fp16")]
    sizes = [sum(onnx.numpy_helper.to_array(w).nbytes for w in graph.initializer) for graph in graphs]
    assert sizes[1] < 0.6 * sizes[0] and half.fingerprint() == whole.fingerprint()
    for name in ("remember.onnx", "segment.onnx"):
        graph = onnx.load(exported / "fp16" / name).graph
        kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        assert kinds == {onnx.TensorProto.FLOAT}, "float32 outside"
        assert onnx.TensorProto.FLOAT16 in {weight.data_type for weight in graph.initializer}
    image, memory = scene(seed=3)[0], whole.remember(references(2))
    probs = [next(e.find(e.join([memory]), image)).probs for e in (whole, half)]
    assert 0 < np.abs(probs[0] - probs[1]).max() < 0.02


def test_agreement_on_photographs_of_ones_own(exported: Path, tmp_path: Path) -> None:
    support = write_references(tmp_path / "refs", {"cat": 3, "dog": 1, "cup": 30})
    on = checks(str(support))
    assert on.source == f"{len(on.pairs)} photographs of '{support}'" and len(on.pairs) == 9 + 2 < PHOTOS
    found = agreement(load(exported), exported, on)
    assert len(found.ious) == len(on.pairs) and min(found.ious) > 0.99
    alone = write_references(tmp_path / "alone", {"dog": 1})
    refuses("no class in .* has two images with masks", checks, str(alone))
    refuses("does not exist", checks, str(tmp_path / "nowhere"))


def test_eight_bits_can_be_evaluated(exported: Path, tmp_path: Path) -> None:
    index = SyntheticWorld("novel", 3)
    drawn = EpisodeList.draw(index, 0, 1, 2, seed=4)
    alone, several = (
        evaluate(OnnxMethod(exported / "int8"), index, drawn, tmp_path / str(n), together=n) for n in (1, 2)
    )
    # Its sessions take an episode at a time, whatever they are given.
    assert len(alone.rows) == 2 and alone.rows.equals(several.rows)


def test_graphs_are_compared_with_other_numbers_of_images_classes_and_references() -> None:
    remember, segment = graphs(traceable())
    assert {len(inputs[0]) for inputs in variations(remember)} == {1, SHOTS, 5}
    sizes = [dict(zip(segment.input_names, inputs)) for inputs in variations(segment)]
    assert {len(one["images"]) for one in sizes} == {len(one["prototypes"]) for one in sizes} == {1, 2}
    grid = segment.inputs[segment.input_names.index("fg")].shape[1] // SHOTS
    wanted = {shots * grid for shots in (1, SHOTS, 5)}
    assert {one["fg"].shape[1] for one in sizes} == {one["tokens"].shape[2] for one in sizes} == wanted


@pytest.mark.slow
def test_the_compact_variant_exports_too_as_programs(tmp_path: Path) -> None:
    differences = run.export_graphs(traceable(variant="compact"), tmp_path, ["pt2"])
    assert set(differences) == {"remember.pt2", "segment.pt2"} and max(differences.values()) < 1e-3


@pytest.mark.parametrize("shots", [1, 3])
def test_the_graphs_as_a_method_equal_the_model(exported: Path, shots: int) -> None:
    method, model = OnnxMethod(exported), load(exported)
    query, images, masks = episodes(model, 2, shots)
    with torch.no_grad():
        assert_same(method(query, images, masks), model(query, images, masks), 1e-4)
        memory = method.encode_support(images[:1], masks[:1])
        assert_same(method.decode_query(memory, query), model.decode_query(memory, query), 1e-4)
    image, mask = scene()
    found = [m.segment(m.remember([Reference(image, mask=mask)]), image) for m in (method, model)]
    assert np.abs(found[0].probs - found[1].probs).max() < 2.5e-4


def test_metadata_says_what_a_user_must_know(exported: Path) -> None:
    for name in ("remember.onnx", "segment.onnx"):
        proto = onnx.load(exported / name)
        assert {entry.domain: entry.version for entry in proto.opset_import}[""] == OPSET
        assert METADATA_KEY in {entry.key for entry in proto.metadata_props}
        onnx.checker.check_model(proto)
    info = OnnxEngine(exported).info
    assert info["img_size"] == 56 and info["opset"] == OPSET and info["fingerprint"] == fingerprint(load(exported))
    assert len(info["mean"]) == len(info["std"]) == 3 and info["resize_mode"] == "squash"


def test_all_files_are_there(exported: Path) -> None:
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    graphs = {f"{part}{name}.onnx" for name in ("remember", "segment") for part in ("", "fp16/", "int8/")}
    assert names == {"model.safetensors", "config.json", "README.md"} | graphs


def test_damaged_graphs_are_named_by_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra fsdino[openvino] is not installed")
    for name in ("remember.onnx", "segment.onnx"):
        (tmp_path / name).write_bytes(b"x")
    refuses("cut or damaged", EngineChoice(str(tmp_path), "openvino").open)


def test_openvino_that_is_missing_is_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    refuses(r"pip install fsdino\[openvino\]", EngineChoice(str(exported), "openvino").open, kind=ImportError)


NO_TORCH = """
import sys
sys.modules["torch"] = None
from fsdino.cli import main
support, photos, out, *models = sys.argv[1:]
for i, model in enumerate(models):
    by, memory = ["--model", model, "--runtime", "onnx"], f"{out}/memory{i}"
    assert main(["remember", "--support", support, "--out", memory, *by]) == 0
    formats = ["--formats", "labels,overlays,coco,yolo"]
    assert main(["predict", "--support", memory, "--images", photos, "--out", f"{out}/onnx{i}", *by, *formats]) == 0
assert not any(name.startswith("torch.") for name in sys.modules)
"""


def test_predict_runs_where_torch_is_absent(exported: Path, tmp_path: Path) -> None:
    support = write_references(tmp_path / "refs", {"cat": 2, "dog": 1})
    (tmp_path / "photos").mkdir()
    Image.fromarray(scene(70, 50, seed=4)[0]).save(tmp_path / "photos" / "a.png")
    paths = support, tmp_path / "photos", tmp_path, *(exported / folder for folder in ("", "fp16", "int8"))
    subprocess.run([sys.executable, "-c", NO_TORCH, *map(str, paths)], check=True)
    remember(str(support), str(tmp_path / "memory"), EngineChoice(str(exported)))
    predict(str(tmp_path / "memory"), str(tmp_path / "photos"), str(tmp_path / "torch"), EngineChoice(str(exported)))
    labels = [np.asarray(Image.open(tmp_path / name / "labels" / "a.png")) for name in ("onnx0", "torch")]
    assert (labels[0] != labels[1]).mean() < 0.002


def test_wrong_exports_are_named(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="export the model as onnx first"):
        quantize_int8(tmp_path / "none", tmp_path / "int8")
    graph = graphs(traceable(seed=1))[0]
    assert compare_onnx(graph, exported / "remember.onnx") > run.TOLERANCE, "the comparison sees other weights"
    monkeypatch.setattr(run, "export_program", lambda graph: None)
    monkeypatch.setattr(run, "export_onnx", lambda graph, program, path: shutil.copy(exported / path.name, path))
    with pytest.raises(ValueError, match=r"remember.onnx' differs from torch by .*, allowed are 1e-03"):
        run.export_graphs(traceable(seed=1), tmp_path, ["onnx"])


def test_a_graph_with_a_flipped_bit_is_refused(exported: Path, tmp_path: Path) -> None:
    for name in ("remember.onnx", "segment.onnx"):
        shutil.copy(exported / name, tmp_path / name)
    file, rng = tmp_path / "segment.onnx", np.random.default_rng(0)
    whole = file.read_bytes()
    for place in rng.integers(len(whole), size=12).tolist():
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        refuses("cut or damaged|not one that", OnnxEngine, tmp_path)
    file.write_bytes(whole)
    assert OnnxEngine(tmp_path).fingerprint() == load(exported).fingerprint()


def test_wrong_graphs_are_named(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("remember.onnx", "segment.onnx"):
        shutil.copy(exported / name, tmp_path / name)
    proto = onnx.load(exported / "segment.onnx")

    def noted(text: str) -> None:
        onnx.helper.set_model_props(proto, {METADATA_KEY: text} if text else {})
        onnx.save(proto, tmp_path / "segment.onnx")

    noted('{"format_version": 1, "fingerprint": "other", "img_size": 56, "threshold": 0.5}')
    refuses("mixes two models", EngineChoice(str(tmp_path), "onnx").open)
    noted('{"format_version": 9, "fingerprint": "other"}')
    refuses("format version 9, this fsdino reads up to 1", EngineChoice(str(tmp_path), "onnx").open)
    noted('{"format_version": 1, "fingerprint": "other"}')
    refuses("its notes or its sha256 are others", EngineChoice(str(tmp_path), "onnx").open)
    noted("")
    refuses("not one that `fsdino export` wrote", EngineChoice(str(tmp_path), "onnx").open)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refuses(r"pip install fsdino\[onnx\]", open_session, exported / "segment.onnx", kind=ImportError)
    monkeypatch.setitem(sys.modules, "fsdino.export.quantize", None)
    refuses(r"pip install fsdino\[onnx\]", run.export_graphs, traceable(), tmp_path, ["onnx"], kind=ImportError)
