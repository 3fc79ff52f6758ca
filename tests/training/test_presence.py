from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from fsdino.base.checkpoint import CHECKPOINT_KEY
from fsdino.base.resize import Resize
from fsdino.base.storage import describe, load
from fsdino.data.class_index import ClassIndex, CombinedIndex, SubsetIndex
from fsdino.data.readers.folder import MaskFolderIndex
from fsdino.training.presence import (
    Evidence,
    PresenceData,
    PresencePart,
    collect_evidence,
    fit_head,
    platt,
    presence_stage,
    train_presence,
)
from tests.small import randn, small_segmenter
from tests.training.small import train_set


class Stripes(ClassIndex):
    """Class 0 has vertical, class 1 horizontal stripes, in the left half of otherwise grey images."""

    name = "stripes"

    def __init__(self) -> None:
        self.class_names = {0: "vertical", 1: "horizontal"}
        self.folds = [[1]]

    def images(self, class_id: int) -> list[str]:
        return [f"{class_id}/{i}" for i in range(4)]

    def load_image(self, image_id: str) -> np.ndarray:
        rows, cols = np.mgrid[:56, :56]
        kind, number = (int(part) for part in image_id.split("/"))
        wave = 127 * (1 + np.sin((cols, rows)[kind] * (0.8 + 0.05 * number)))
        image = np.where(cols < 28, wave, 128).astype(np.uint8)
        return np.repeat(image[..., None], 3, axis=2)

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        mask = np.zeros((56, 56), np.uint8)
        mask[:, :28] = int(image_id.startswith(f"{class_id}/"))
        return mask

    def classes_in(self, image_id: str) -> set[int]:
        return {int(image_id[0])}


def evidence(count: int, seed: int) -> Evidence:
    """One number tells presence, noisily."""
    present = (torch.arange(count) % 2).float()
    inputs = randn(count, 11 + 11, seed=seed)
    inputs[:, 11:] = 3 * inputs[:, 11:] + 5  # numbers of another scale
    inputs[:, 11] += 6 * present
    return Evidence(inputs, present)


def test_head_learns_and_says_probabilities() -> None:
    head = fit_head(8, 1, evidence(400, 0), evidence(200, 1))
    test = evidence(400, 2)
    with torch.no_grad():
        probs = head(test.inputs)[:, 0].sigmoid()
    assert binary_auroc(probs, test.present.long()) > 0.85  # a shift of two deviations allows 0.92
    assert binary_calibration_error(probs, test.present.long(), n_bins=10) < 0.08
    again = fit_head(8, 1, evidence(400, 0), evidence(200, 1))
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters()))


def test_platt_finds_the_scale_and_shift_of_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = randn(4000, seed=1) * 2
    present = torch.bernoulli(truth.sigmoid(), generator=generator)
    scale, shift = platt(3 * truth - 1, present)
    assert scale == pytest.approx(1 / 3, abs=0.04) and shift == pytest.approx(1 / 3, abs=0.1)
    assert platt(-truth, present) == (1.0, 0.0)  # logits that fall with presence are left alone


def test_training_touches_the_presence_head_alone() -> None:
    model = small_segmenter(variant="full")
    data = PresenceData(train_set(Stripes(), [0, 1]))
    assert data.trained == [0, 1]
    learnt = train_presence(model, data, count=16, batch_size=5)
    assert not model.config.presence_likeness and learnt.config.presence_likeness
    before, after = model.state_dict(), learnt.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("presence."))
    found = collect_evidence(learnt, data.episodes(model.resize, 12, held_out=True), batch_size=5)
    assert found.inputs.shape == (12, 11 + 11 * len(model.config.reader_taps)) and 0 < float(found.present.mean()) < 1
    memory = learnt.encode_support(torch.rand(1, 1, 3, 56, 56), torch.ones(1, 1, 56, 56))
    query = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        old, new = model.decode_query(memory, query), learnt.decode_query(memory, query)
    assert torch.equal(old.mask_logits, new.mask_logits) and torch.equal(old.iou_pred, new.iou_pred)


def test_stage_writes_a_checkpoint_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_segmenter()
    trained = tmp_path / "best.ckpt"
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"curve.hits": torch.ones(1)}
    torch.save({"state_dict": state, CHECKPOINT_KEY: describe(model), "callbacks": {"best": 0.5}}, trained)
    data = PresenceData(train_set(Stripes(), [0, 1]))
    assert presence_stage(trained, tmp_path / "stage", data, PresencePart(0), batch_size=4) == trained
    target = presence_stage(trained, tmp_path / "stage", data, PresencePart(8), batch_size=4)
    assert target == tmp_path / "stage" / "best.ckpt"
    written = torch.load(target, weights_only=True)
    assert written["callbacks"] == {"best": 0.5} and "curve.hits" in written["state_dict"]
    assert load(target).config.presence_likeness and not load(trained).config.presence_likeness
    assert load(target).missed_classes == ("horizontal", "vertical") and load(trained).missed_classes is None
    stamp = target.stat().st_mtime_ns
    assert presence_stage(trained, tmp_path / "stage", data, PresencePart(8), batch_size=4) == target
    assert target.stat().st_mtime_ns == stamp  # a finished stage is kept
    files = {"cat": {name: (tmp_path, tmp_path) for name in "ab"}}
    alone = PresenceData(train_set(MaskFolderIndex("mine", files), [0]))
    assert presence_stage(trained, tmp_path / "other", alone, PresencePart(8), batch_size=4) == trained
    assert "'absent' cannot be learnt" in capsys.readouterr().out


class Everywhere(Stripes):
    """As stripes, with a third class in every image."""

    def __init__(self) -> None:
        super().__init__()
        self.class_names = {**self.class_names, 2: "ground"}

    def images(self, class_id: int) -> list[str]:
        return super().images(class_id) if class_id < 2 else super().images(0) + super().images(1)

    def classes_in(self, image_id: str) -> set[int]:
        return super().classes_in(image_id) | {2}


def test_classes_of_several_data_sets_are_called_as_in_each() -> None:
    both = SubsetIndex.without_images(CombinedIndex([Stripes(), Stripes()]), [])
    assert both.class_names[0] != "vertical"
    assert PresenceData(train_set(both, [0, 2], [1])).class_names == ("horizontal", "vertical")


def test_a_class_of_every_image_is_left_out() -> None:
    data = PresenceData(train_set(Everywhere(), [0, 2], [1, 2]))
    assert data.trained == [0] and data.held_out[1] == [1]
    drawn = [data.episodes(Resize(56), 8, held_out) for held_out in (False, True)]
    assert [{item["class_id"] for item in (part[i] for i in range(8))} for part in drawn] == [{0}, {1}]
    assert not PresenceData(train_set(Everywhere(), [2])).trained
