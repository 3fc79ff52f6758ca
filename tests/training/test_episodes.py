"""Episodic training: what learns, what counts, and that an interrupted run ends with the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning import Trainer

from fsdino.base.method import SegmenterOutput
from fsdino.cache.cache import FrozenTaps, write_cache
from fsdino.cache.image_list import ImageList
from fsdino.data.class_index import SubsetIndex
from fsdino.data.world.index import SyntheticWorld
from fsdino.metrics.threshold import CutCurve
from fsdino.pipeline.run import checkpoints
from fsdino.training.episode_data import MetaData, held_out_classes, validation_episodes
from fsdino.training.episodes import MetaModule
from tests.small import small_config


def _data(module: MetaModule, val: list[int], num_val: int = 4) -> MetaData:
    index = SyntheticWorld("base", 3)
    classes = [c for c in range(8) if c not in val]
    episodes = validation_episodes(index, val, 1, num_val)
    return MetaData(index, classes, episodes, module.model.resize, epoch_length=8, batch_size=4, absent_prob=0.2)


def _trainer(folder, epochs: int, **options) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, callbacks=checkpoints(folder, "val/miou"),
        **options,
    )  # fmt: skip


class _Stop(Exception):
    pass


class _Killed(MetaModule):
    """Dies in the middle of its second epoch."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 1:
            raise _Stop
        return super().training_step(batch, batch_idx)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path) -> None:
    config, val = small_config(), [1, 5]
    whole = MetaModule(config, val, seed=3)
    _trainer(tmp_path / "whole", 3).fit(whole, _data(whole, val))

    killed = _Killed(config, val, seed=3)
    with pytest.raises(_Stop):
        _trainer(tmp_path / "parts", 3).fit(killed, _data(killed, val))
    resumed = MetaModule(config, val, seed=99)
    _trainer(tmp_path / "parts", 3).fit(resumed, _data(resumed, val), ckpt_path=tmp_path / "parts" / "last.ckpt")
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(a, b), name
    assert whole.model.threshold == resumed.model.threshold


def test_ignored_pixels_change_no_loss() -> None:
    module = MetaModule(small_config(), [0])
    truth = torch.zeros(1, 56, 56, dtype=torch.long)
    truth[0, :20, :20] = 1
    truth[0, 28:] = 255
    logits = torch.randn(1, 1, 16, 16)
    other = logits.clone()
    other[..., 8:, :] += 5.0  # only where it is ignored
    head = (torch.zeros(1, 1), torch.zeros(1, 1))
    first, second = (module.losses(SegmenterOutput(x, *head), truth) for x in (logits, other))
    for name in first:
        assert torch.allclose(first[name], second[name]), name


def test_an_absent_object_teaches_presence_but_no_dice() -> None:
    module = MetaModule(small_config(), [0])
    output = SegmenterOutput(torch.randn(1, 1, 16, 16), torch.zeros(1, 1), torch.full((1, 1), 2.0))
    losses = module.losses(output, torch.zeros(1, 56, 56, dtype=torch.long))
    assert losses["dice"] == 0 and losses["iou"] == 0
    assert losses["presence"] > 2  # certain of an object that is not there


def test_cut_curve_equals_thresholding_at_each_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(6, 9, 9, generator=generator)
    truth = torch.randint(0, 2, (6, 9, 9), generator=generator)
    truth[:, 0] = 255
    classes = torch.tensor([4, 4, 7, 7, 7, 4])
    curve = CutCurve([4, 7, 8], cuts=(0.2, 0.5, 0.7))
    curve.update(probs[:3], truth[:3], classes[:3])
    curve.update(probs[3:], truth[3:], classes[3:])
    for cut in (0.2, 0.5, 0.7):
        ious, counts = [], torch.zeros(2, 2)
        for class_id in (4, 7):
            chosen = classes == class_id
            valid = truth[chosen] != 255
            found, wanted = (probs[chosen] > cut) & valid, (truth[chosen] == 1) & valid
            ious.append((found & wanted).sum() / (found | wanted).sum())
            counts[0] += torch.stack([(found & wanted).sum(), (found | wanted).sum()])
            counts[1] += torch.stack([(valid & ~found & ~wanted).sum(), (valid & ~(found & wanted)).sum()])
        assert curve.at(cut)["miou"] == pytest.approx(float(torch.stack(ious).mean()))
        assert curve.at(cut)["fb_iou"] == pytest.approx(float((counts[:, 0] / counts[:, 1]).mean()))
    assert curve.best()[0] in (0.2, 0.5, 0.7)


def test_held_out_classes_are_fixed_and_never_none() -> None:
    classes = list(range(10, 40))
    assert held_out_classes(classes, 0.2) == held_out_classes(classes, 0.2)
    assert len(held_out_classes(classes, 0.2)) == 6 and len(held_out_classes(classes, 0.001)) == 1
    assert held_out_classes(classes, 0.0) == []


def test_two_processes_train_one_model(tmp_path) -> None:
    module = MetaModule(small_config(), [1, 5], seed=3)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    _trainer(tmp_path, 1, devices=2, strategy="ddp_fork_find_unused_parameters_true").fit(module, _data(module, [1, 5]))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1  # eight episodes, four a process and step
    weights = {k.removeprefix("model."): v for k, v in saved["state_dict"].items() if k.startswith("model.")}
    moved = {name for name, value in weights.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("decoder.") for name in moved)
    assert not any(name.startswith("encoder.") for name in moved)


def test_two_processes_count_each_validation_episode_once(tmp_path) -> None:
    """Five episodes do not divide by two; the best cut must not depend on how many devices a run has."""
    scores = []
    for devices, strategy in ((1, "auto"), (2, "ddp_fork_find_unused_parameters_true")):
        module = MetaModule(small_config(), [1, 5], seed=3)
        trainer = _trainer(tmp_path, 1, devices=devices, strategy=strategy)
        scores += trainer.validate(module, _data(module, [1, 5], num_val=5), verbose=False)
    for name in ("val/miou", "val/fb_iou", "val/miou_at_half", "val/cut"):
        assert scores[0][name] == pytest.approx(scores[1][name], abs=1e-6)


def test_cached_maps_belong_to_the_images_of_the_episode(tmp_path) -> None:
    """A cache of more images, in another order: its list says where each lies."""
    module, index = MetaModule(small_config(), [0]), SyntheticWorld("base", 3)
    images = ImageList("more", tuple(reversed(index.all_images()))[:60], index.load_image)
    cache = write_cache(
        FrozenTaps(module.model.encoder), images, tmp_path, Trainer(accelerator="cpu", logger=False), "squash"
    )
    view = SubsetIndex(index, {c: [p for p in index.images(c) if p in images.ids] for c in range(60)})
    classes = [c for c in range(60) if len(view.images(c)) == 3][:4]
    options = {"epoch_length": 4, "batch_size": 4}
    pixels = next(iter(MetaData(view, classes, None, module.model.resize, **options).train_dataloader()))
    data = MetaData(view, classes, None, module.model.resize, cache=cache, images=images, **options)
    maps = next(iter(data.train_dataloader()))
    assert maps["query_id"] == pixels["query_id"]
    expected = torch.stack(module.model.encoder(pixels["query_image"]), dim=1)
    assert torch.allclose(maps["query_feats"].float(), expected, atol=1e-2)
    with pytest.raises(ValueError, match="give the list that the cache was made of"):
        MetaData(
            view, classes, None, module.model.resize, cache=cache, images=replace(images, ids=images.ids[:9]),
            **options,
        ).train_dataloader()  # fmt: skip
