"""Stage 4: only what draws learns, from prompts on the object and on the error, resumed bit for bit."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from fsdino.base.checkpoint import CHECKPOINT_KEY
from fsdino.base.resize import Resize
from fsdino.base.storage import load, save
from fsdino.data.class_index import ClassIndex
from fsdino.models import clicks
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.training.cache_writer import CachePart, write_cache
from fsdino.training.drawing import DrawData, DrawModule, DrawPart, with_sight_
from fsdino.training.episode_data import CachedMaps
from fsdino.training.prompted import PromptedLoss
from tests.contract import assert_same, episodes
from tests.small import randn, refuses, small_segmenter
from tests.training.small import Losses, small_trainer, train_set

PART = DrawPart(epochs=2, epoch_length=8, batch_size=4, correct_prob=0.5)


class Squares(ClassIndex):
    """A bright square (class 0) and a dark one (class 1) beside each other on grey."""

    name = "squares"

    def __init__(self) -> None:
        self.class_names = {0: "bright", 1: "dark"}
        self.folds = [[1]]

    def images(self, class_id: int) -> list[str]:
        return [str(i) for i in range(6)]

    def load_image(self, image_id: str) -> np.ndarray:
        image = np.full((56, 56, 3), 120, np.uint8)
        image[self.load_mask(image_id, 0) == 1], image[self.load_mask(image_id, 1) == 1] = 250, 10
        return image

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        mask, start = np.zeros((56, 56), np.uint8), 4 + 3 * int(image_id)
        mask[start : start + 20, 4 + 26 * class_id : 26 + 26 * class_id] = 1
        return mask

    def classes_in(self, image_id: str) -> set[int]:
        return {0, 1}


def promptable(**overrides) -> FewShotSegmenter:
    return small_segmenter(variant="full", promptable=True, **overrides)


def fit(folder, module, data, callbacks=(), ckpt_path=None, **kwargs):
    trainer = small_trainer(folder, max_epochs=PART.epochs, callbacks=list(callbacks), **kwargs)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def drawing_data(model: FewShotSegmenter, part=PART, **kwargs) -> DrawData:
    return DrawData(train_set(Squares(), [0, 1]), part, model.resize, **kwargs)


class WithoutGradient(Callback):
    """Names of parameters that should learn and that some step gave no gradient."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_after_backward(self, trainer, pl_module) -> None:
        self.names |= {n for n, p in pl_module.named_parameters() if p.requires_grad and p.grad is None}


def test_only_what_draws_learns_and_segments_as_before(tmp_path) -> None:
    model = promptable()
    inputs = episodes(model, 2, 1)
    with torch.no_grad():
        # Frozen, as after the stage: torch multiplies by weights that learn in another way, to the last digit.
        before = deepcopy(model).requires_grad_(False)(*inputs)
        state = {key: value.clone() for key, value in model.state_dict().items()}
    missing = WithoutGradient()
    fit(tmp_path, DrawModule(model, PART), drawing_data(model), [missing])
    changed = {key for key, value in model.state_dict().items() if key not in state or not value.equal(state[key])}
    assert changed and all(key.startswith(("sam.sight.", "sam.mask_decoder.")) for key in changed)
    assert not any("output_hypernetworks_mlps.1" in key for key in changed)  # of the masks that nobody uses
    with torch.no_grad():
        assert_same(model.eval().requires_grad_(False)(*inputs), before, 0.0)
    assert missing.names == set()  # plain DDP refuses parameters that no loss reaches


def test_it_learns_to_draw(tmp_path) -> None:
    model, losses = promptable(), Losses()
    part = DrawPart(epochs=2, epoch_length=160, batch_size=8, correct_prob=0.0, lr=1e-2)
    fit(tmp_path, DrawModule(model, part), drawing_data(model, part), [losses])
    assert sum(losses.values[-5:]) < 0.7 * sum(losses.values[:5])


@torch.no_grad()
def test_before_training_sam_s_answer_is_the_same() -> None:
    model, points, labels = promptable(), torch.tensor([[[10.0, 20.0]]]), torch.tensor([[1]])
    feats = model.encoder(torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(5)))
    before = clicks.draw(model, feats, points, labels)
    model.threshold = 0.4
    whole = with_sight_(model)
    assert whole.config.learnt_drawing and whole.config.threshold == 0.4
    model.threshold = 0.5
    assert torch.equal(clicks.draw(whole, feats, points, labels), before)
    assert with_sight_(whole).sam is whole.sam  # a second stage goes on with the first's


@torch.no_grad()
def test_it_is_saved_and_drawn_with(tmp_path) -> None:
    model = with_sight_(promptable()).eval()
    assert model.sam is not None and model.sam.sight is not None
    model.sam.sight.head.bias.normal_(generator=torch.Generator().manual_seed(0))
    again = load(save(model, tmp_path / "model"))
    feats, points = model.encoder(torch.rand(1, 3, 56, 56)), torch.tensor([[[10.0, 20.0]]])
    drawn = clicks.draw(model, feats, points, torch.tensor([[1]]))
    assert torch.equal(clicks.draw(again, feats, points, torch.tensor([[1]])), drawn)
    model.sam.sight.head.bias.zero_()
    assert not torch.equal(clicks.draw(model, feats, points, torch.tensor([[1]])), drawn)


def test_killed_and_resumed_equals_uninterrupted(tmp_path) -> None:
    def run(name, resume=None, die_at_step=None):
        model = promptable()
        callbacks = [ModelCheckpoint(dirpath=tmp_path / name, save_last=True), Losses(die_at_step)]
        module = DrawModule(model, PART, seed=3)
        fit(tmp_path, module, drawing_data(model, seed=3), callbacks, resume, enable_checkpointing=True)
        return module.state_dict()

    whole = run("whole")
    with pytest.raises(RuntimeError, match="killed"):
        run("cut", die_at_step=3)  # in the middle of the second epoch
    resumed = run("cut", resume=tmp_path / "cut" / "last.ckpt")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    saved = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert saved[CHECKPOINT_KEY]["stage"] == "trained" and saved[CHECKPOINT_KEY]["args"]["learnt_drawing"]
    assert load(tmp_path / "cut" / "last.ckpt").config.learnt_drawing


def test_cached_maps_stand_for_the_images(tmp_path) -> None:
    model, chosen = promptable(), train_set(Squares(), [0])
    cache = write_cache(model.frozen_maps(), chosen.annotated, CachePart(), folder=tmp_path, views=("plain", "hflip"))
    maps = CachedMaps(cache, chosen.annotated)
    pixels, cached = (DrawData(chosen, PART, model.resize, maps=m).train_dataset(1) for m in (None, maps))
    for i in range(4):
        one, other = pixels[i], cached[i]
        assert torch.equal(one["masks"], other["masks"]) and int(one["valid"].sum()) == 1
        with torch.no_grad():
            stacked = torch.stack(model.encoder(one["image"][None]), dim=1)[0]
        torch.testing.assert_close(other["feats"].float(), stacked, atol=2e-2, rtol=1e-2)
    with torch.no_grad():
        module = DrawModule(model, PART)
        batch = {key: value[None] for key, value in cached[0].items()}
        assert module.embed(batch).shape == (1, 32, 8, 8) and "image" not in batch
    assert not torch.equal(
        cached[0]["feats"], DrawData(chosen, PART, model.resize, maps=maps).train_dataset(0)[0]["feats"]
    )


class Tall(Squares):
    """The left half of the images: a square of the network is filled up beside them."""

    def load_mask(self, image_id: str, class_id: int) -> np.ndarray:
        return np.ascontiguousarray(super().load_mask(image_id, class_id)[:, :28])

    def load_image(self, image_id: str) -> np.ndarray:
        return np.where(self.load_mask(image_id, 0)[..., None] == 1, np.uint8(250), np.uint8(120)).repeat(3, axis=2)


def test_masks_lie_on_mirrored_images_that_were_filled_up() -> None:
    scenes = DrawData(train_set(Tall(), [0]), PART, Resize(56, "pad")).train_dataset(0)
    sides = set()
    for i in range(8):
        item = scenes[i]
        mask = item["masks"][0] == 1
        assert bool((item["image"][:, mask] > 0.9).all())
        sides.add(bool(mask[:, 28:].any()))
    assert sides == {False, True}  # as they are, and mirrored


def test_images_without_an_object_are_no_error(tmp_path) -> None:
    module = DrawModule(promptable(), PART)
    batch = {"image": torch.zeros(2, 3, 56, 56), "masks": torch.zeros(2, 1, 56, 56, dtype=torch.uint8)}
    loss = module.training_step(batch | {"valid": torch.zeros(2, 1, dtype=torch.bool)}, 0)
    loss.backward()
    assert float(loss.detach()) == 0 and all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_a_model_without_the_prompted_half_is_refused() -> None:
    refuses("build it with promptable: true", DrawModule, small_segmenter(variant="full"))
    refuses("correct_prob: expected .* got 2.0", DrawPart, correct_prob=2.0)


class Answers:
    """A network that always answers with the same masks, and keeps what it was asked."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.asked = logits, []

    def __call__(self, embedding, image, points, labels, *, boxes, masks):
        self.asked.append((image, points, labels, boxes, masks))
        logits = self.logits[image][:, None].repeat(1, 4, 1, 1)
        return logits + 0 * embedding.sum(), torch.zeros(len(image), 4)


@pytest.mark.parametrize("number", [1, 4])
def test_clicks_fall_on_the_object_and_corrections_on_the_error(number: int) -> None:
    masks = torch.zeros(12, 32, 32, dtype=torch.uint8)
    answer = torch.full((12, 32, 32), -5.0)
    for k in range(12):
        masks[k, 4:20, 2 + k : 18 + k] = 1
        # The upper half is found; below the object something is drawn that is not there.
        answer[k, 4:12, 2 + k : 18 + k] = 5.0
        answer[k, 24:28] = 5.0
    network = Answers(answer)
    loss = PromptedLoss(network, correct_prob=1.0, clicks=(number,), ambiguous=False)
    losses = loss(randn(12, 2, 4, 4), torch.arange(12), masks, torch.Generator().manual_seed(0))
    assert losses.shape == (24,) and len(network.asked) == 6  # three kinds of prompt, two rounds
    seen = set()
    for (image, points, labels, boxes, previous), after in zip(network.asked[::2], network.asked[1::2]):
        assert previous is None and torch.equal(after[4], answer[image][:, None])
        count = 0
        if points is not None:
            count = points.shape[1]
            assert count == number and bool((labels == 1).all())
            x, y = points.long().unbind(-1)
            assert bool((masks[image[:, None], y, x] == 1).all())
        assert points is not None or boxes is not None
        x, y = after[1][:, count].long().unbind(-1)
        truth, said = masks[image, y, x] == 1, answer[image, y, x] > 0
        assert bool((truth != said).all()) and torch.equal(after[2][:, count] == 1, truth)
        seen |= set(after[2][:, count].tolist())
    assert seen == {0.0, 1.0}
