"""Episode training of every method: what learns, what counts, and that a killed run ends with the same weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from fsdino.base import registry, storage
from fsdino.base.memory import SegmenterOutput
from fsdino.base.method import FewShotMethod
from fsdino.cache.image_list import ImageList
from fsdino.data.class_index import SubsetIndex
from fsdino.data.episodes.episode import EpisodeData, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList, EpisodeSpec
from fsdino.data.splits import validation_episodes
from fsdino.data.world.index import SyntheticWorld
from fsdino.training.cache_writer import CachePart, write_cache
from fsdino.training.episode_data import CachedMaps, EpisodeDataModule, EpisodesWithMaps
from fsdino.training.episodes import EpisodeModule, TrainPart
from fsdino.training.fit import checkpoints
from tests.contract import assert_same, episodes
from tests.small import METHOD_ARGS, refuses, small_segmenter
from tests.training.small import small_trainer, train_set, weights

VAL = [1, 5]
PART = TrainPart(epoch_length=8, batch_size=4, absent_prob=0.2)
# How SANSA and FSSAM are trained: no loss but the mask's.
MASK_ALONE: dict[str, Any] = {"warmup": 0.0, "iou_weight": 0.0, "presence_weight": 0.0}


def _module(kind: type[EpisodeModule] = EpisodeModule, seed: int = 3) -> EpisodeModule:
    return kind(small_segmenter(seed), VAL, PART)


def _data(module: EpisodeModule, num_val: int = 4) -> EpisodeDataModule:
    index = SyntheticWorld("base", 3)
    fixed = validation_episodes(index, VAL, 1, num_val)
    chosen = train_set(index, [c for c in range(8) if c not in VAL], VAL, fixed)
    return EpisodeDataModule(chosen, PART, module.model.resize)


def _trainer(folder, epochs: int, **options: Any) -> Trainer:
    fixed = {"callbacks": checkpoints(folder, "val/miou"), "enable_checkpointing": True, "gradient_clip_val": None}
    return small_trainer(folder, max_epochs=epochs, **fixed, **options)


class _Stop(Exception):
    pass


class _Killed(EpisodeModule):
    """Dies in the middle of its second epoch."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 1:
            raise _Stop
        return super().training_step(batch, batch_idx)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path) -> None:
    whole, killed, resumed = _module(), _module(_Killed), _module(seed=99)
    _trainer(tmp_path / "whole", 3).fit(whole, _data(whole))
    with pytest.raises(_Stop):
        _trainer(tmp_path / "parts", 3).fit(killed, _data(killed))
    _trainer(tmp_path / "parts", 3).fit(resumed, _data(resumed), ckpt_path=tmp_path / "parts" / "last.ckpt")
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(a, b), name
    assert whole.model.threshold == resumed.model.threshold


def _batch(method: FewShotMethod, shots: int = 1) -> dict[str, Any]:
    query, images, masks = episodes(method, 2, shots)
    truth = torch.zeros(2, method.img_size, method.img_size, dtype=torch.long)
    truth[:, 8:30, 10:40] = 1
    truth[:, :4] = 255
    return {
        "query_image": query,
        "support_images": images,
        "support_masks": masks,
        "query_mask": truth,
        "support_truths": (masks > 0.5).to(torch.uint8),
        "class_id": torch.tensor([3, 4]),
        "episode_index": torch.tensor([0, 1]),
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fsdino", {}),
        ("sansa", {**MASK_ALONE, "num_targets": 2, "iou_weight": 0.1}),
        ("sansa", {**MASK_ALONE, "loss": "focal_dice", "tune_threshold": False}),
        ("fssam", {**MASK_ALONE, "loss": "dice", "schedule": "poly", "horizon": 3.0}),
    ],
)
def test_training_moves_the_trainable_weights_alone(name: str, options: dict[str, Any], tmp_path) -> None:
    torch.manual_seed(0)
    method = registry.build(name, **METHOD_ARGS[name])
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    module = EpisodeModule(method, (3, 4), TrainPart(lr=1e-2, **options))
    loader = DataLoader([_batch(method, 2)] * 2, batch_size=None)
    trainer = _trainer(tmp_path, 1, limit_val_batches=1)
    trainer.fit(module, loader, loader)
    moved = {n for n, p in method.named_parameters() if not torch.equal(p, before[n])}
    assert moved and moved <= {n for n, p in method.named_parameters() if p.requires_grad}
    assert 0.0 <= float(trainer.callback_metrics["val/miou"]) <= 1.0
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    if options.get("tune_threshold") is False:
        assert method.threshold == 0.5
    inputs = episodes(method, 1, 1)
    with torch.no_grad():
        assert_same(storage.load(tmp_path / "last.ckpt")(*inputs), method.eval()(*inputs), 1e-6)


@pytest.mark.parametrize(("name", "loss"), [("fsdino", "bce_dice"), ("fssam", "dice")])
@pytest.mark.parametrize("others", [0.0, 0.1])
def test_the_loss_reaches_everything_that_trains(name: str, loss: Any, others: float) -> None:
    """DDP refuses a parameter without a gradient; a head that nothing teaches is frozen."""
    method = registry.build(name, **METHOD_ARGS[name]).train()
    module = EpisodeModule(method, part=TrainPart(loss=loss, iou_weight=others, presence_weight=others))
    batch = _batch(method)
    module.total(module.losses(module(batch), batch["query_mask"])).backward()
    names = {n for n, p in method.named_parameters() if p.requires_grad}
    assert any("iou_prediction_head" in n for n in names) == (others > 0)
    if name == "fssam":
        assert all(p.grad is not None for p in method.trainable_parameters())


def test_what_drops_out_in_the_paper_drops_out_in_training_alone(tmp_path) -> None:
    """FSSAM's memory attention is SAM2's, which trains with dropout; a built method comes in eval mode."""
    method = registry.build("fssam", **METHOD_ARGS["fssam"])
    dropped: list[bool] = []
    for layer in (m for m in method.sam2.net.memory_attention.modules() if isinstance(m, torch.nn.Dropout)):
        layer.register_forward_hook(lambda layer, _inputs, _output: dropped.append(layer.training))
    loader = DataLoader([_batch(method)], batch_size=None)
    small_trainer(tmp_path, max_epochs=1).fit(EpisodeModule(method, (3, 4), TrainPart(loss="dice")), loader)
    assert dropped and all(dropped)
    dropped.clear()
    small_trainer(tmp_path).validate(EpisodeModule(method, (3, 4)), loader, verbose=False)
    assert dropped and not any(dropped)
    assert not any(m.training for m in method.sam2.net.vision_encoder.modules())


def test_ignored_pixels_change_no_loss() -> None:
    module = EpisodeModule(small_segmenter())
    truth = torch.zeros(1, 56, 56, dtype=torch.long)
    truth[0, :20, :20] = 1
    truth[0, 28:] = 255
    logits = torch.randn(1, 1, 16, 16)
    other = logits.clone()
    other[..., 8:, :] += 5.0  # only where it is ignored
    head = (torch.zeros(1, 1), torch.zeros(1, 1))
    first, second = (module.losses(SegmenterOutput(x, *head), truth) for x in (logits, other))
    assert set(first) == {"bce", "dice", "iou", "presence"}
    for name in first:
        assert torch.allclose(first[name], second[name]), name


def test_of_a_cell_that_is_partly_ignored_the_rest_counts() -> None:
    module = EpisodeModule(small_segmenter())
    truth = torch.ones(1, 56, 56, dtype=torch.long)
    truth[0, :2] = 255  # half of the first row of cells of 14 x 14 logits
    found = module.losses(SegmenterOutput(torch.full((1, 1, 14, 14), 20.0), *[torch.zeros(1, 1)] * 2), truth)
    assert found["bce"] < 1e-3


def test_an_absent_object_teaches_presence_and_the_mask_where_no_head_learns_it() -> None:
    output = SegmenterOutput(torch.randn(1, 1, 16, 16), torch.zeros(1, 1), torch.full((1, 1), 2.0))
    empty = torch.zeros(1, 56, 56, dtype=torch.long)
    losses = EpisodeModule(small_segmenter()).losses(output, empty)
    assert losses["dice"] == 0 and losses["iou"] == 0
    assert losses["presence"] > 2  # certain of an object that is not there
    alone = EpisodeModule(small_segmenter(), part=TrainPart(presence_weight=0.0)).losses(output, empty)
    assert set(alone) == {"bce", "dice", "iou"} and alone["dice"] > 0.5


def test_two_processes_train_one_model(tmp_path) -> None:
    module = _module()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    _trainer(tmp_path, 1, devices=2, strategy="ddp_fork_find_unused_parameters_true").fit(module, _data(module))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1  # eight episodes, 2 x 4 a step
    moved = {name for name, value in weights(tmp_path / "last.ckpt").items() if not torch.equal(value, before[name])}
    assert any(name.startswith("decoder.") for name in moved)
    assert not any(name.startswith("encoder.") for name in moved)


def test_two_processes_count_each_validation_episode_once(tmp_path) -> None:
    """Five episodes do not divide by two; the best threshold must not depend on how many devices a run has."""
    scores = []
    for devices, strategy in ((1, "auto"), (2, "ddp_fork_find_unused_parameters_true")):
        module = _module()
        trainer = _trainer(tmp_path, 1, devices=devices, strategy=strategy)
        scores += trainer.validate(module, _data(module, num_val=5), verbose=False)
    for name in ("val/miou", "val/fb_iou", "val/miou_at_half", "val/threshold"):
        assert scores[0][name] == pytest.approx(scores[1][name], abs=1e-6)


def test_cached_maps_belong_to_the_images_of_the_episode(tmp_path) -> None:
    """A cache of more images, in another order: its list says where each lies."""
    model, index = small_segmenter(), SyntheticWorld("base", 3)
    images = ImageList("more", tuple(reversed(index.all_images()))[:60], index.load_image)
    cache = write_cache(model.frozen_maps(), images, CachePart(), folder=tmp_path)
    view = SubsetIndex(index, {c: [p for p in index.images(c) if p in images.ids] for c in range(60)})
    chosen = train_set(view, [c for c in range(60) if len(view.images(c)) == 3][:4])
    part = TrainPart(epoch_length=4, batch_size=4)
    pixels = next(iter(EpisodeDataModule(chosen, part, model.resize).train_dataloader()))
    data = EpisodeDataModule(chosen, part, model.resize, maps=CachedMaps(cache, images))
    maps = next(iter(data.train_dataloader()))
    assert maps["query_id"] == pixels["query_id"] and "query_image" not in maps
    expected = torch.stack(model.encoder(pixels["query_image"]), dim=1)
    assert torch.allclose(maps["query_feats"].float(), expected, atol=1e-2)
    refuses("give the list that the cache was made of", CachedMaps, cache, replace(images, ids=images.ids[:9]))
    with pytest.raises(ValueError, match="crops and colours need pixels"):
        EpisodeDataModule(chosen, replace(part, augment=True), model.resize, maps=CachedMaps(cache, images))


@torch.no_grad()
def test_training_reads_maps_beside_the_images_in_place_of_the_encoder(tmp_path) -> None:
    method = registry.build("fssam", **METHOD_ARGS["fssam"])
    source, index = method.frozen_maps(), SyntheticWorld("base", 2)
    images = ImageList("few", tuple(index.images(0) + index.images(1)), index.load_image)
    cache = write_cache(source, images, CachePart(), folder=tmp_path, views=("plain", "hflip"))
    specs = tuple(EpisodeSpec(c, index.images(c)[0], (index.images(c)[1],)) for c in (0, 1))
    plain = EpisodeData(index, EpisodeList(index.name, 0, 1, 0, specs, "test"), method.resize)
    maps = CachedMaps(cache, images, source.in_place_of_images)
    assert not maps.mirrored  # the images beside them are not
    batch, cached = collate_episodes([*plain]), collate_episodes([*EpisodesWithMaps(plain, maps)])
    assert cached["support_feats"].shape == (2, 1, *source.entry_shape)
    found = method.features(batch["query_image"])
    torch.testing.assert_close(cached["query_feats"].float(), found, atol=5e-3, rtol=5e-3)  # stored in half
    exact = {"query_feats": found, "support_feats": method.features(batch["support_images"].flatten(0, 1))[:, None]}
    expected = method.predict_episodes(batch)
    method.encoder = torch.nn.Identity()  # type: ignore[assignment]
    assert_same(method.predict_episodes(batch | exact), expected, 1e-6)


def test_errors_say_what_to_do() -> None:
    sansa = registry.build("sansa", **METHOD_ARGS["sansa"])
    refuses("loss: expected .* got 'mse'", TrainPart, loss="mse")
    refuses("AllForeground has nothing to train", EpisodeModule, registry.build("all_foreground"))
    with pytest.raises(ValueError, match="Fssam has no chain of targets"):
        fssam = registry.build("fssam", **METHOD_ARGS["fssam"])
        EpisodeModule(fssam, part=TrainPart(num_targets=3)).training_step(_batch(fssam), 0)
    with pytest.raises(ValueError, match="3 targets need episodes of at least 3 shots"):
        EpisodeModule(sansa, part=TrainPart(num_targets=3)).training_step(_batch(sansa, 2), 0)
