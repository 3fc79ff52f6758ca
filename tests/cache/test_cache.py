"""The embedding cache: written once, resumed, shared by processes, refused when it is another's, read back exactly."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from lightning import Trainer

from fsdino.base.resize import Resize
from fsdino.cache.cache import EmbeddingCache, FrozenTaps, cache_recipe, write_cache
from fsdino.cache.image_list import ImageData, ImageList
from fsdino.cache.shards import ShardStore, read_manifest, shard_path
from fsdino.models.encoder import FeatureEncoder
from fsdino.teachers.architecture import build_sam
from fsdino.teachers.sam import SamTeacher
from tests.small import SAM as SMALL


def noise(image_id):
    return np.random.default_rng(int(image_id)).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def image_list(count=7):
    return ImageList("noise", tuple(str(i) for i in range(count)), noise)


def teacher(seed=0):
    return SamTeacher(build_sam(SMALL, seed=seed), SMALL, name=f"small-{seed}")


class CountingTeacher(SamTeacher):
    """Counts what it embeds and can be killed on the way."""

    def __init__(self, die_after=None):
        super().__init__(build_sam(SMALL, seed=0), SMALL)
        self.embedded, self.die_after = 0, die_after

    def embed(self, images):
        if self.embedded == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.embedded += len(images)
        return super().embed(images)


def run_script(text, folder):
    """Runs Python source in a process of its own, with the cache folder as its argument."""
    script = folder / "script.py"
    script.write_text(text)
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder / "cache")]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=env)


def test_a_list_is_known_by_its_images(tmp_path):
    names = tuple(str(i) for i in range(7))
    other = ImageList("noise", names, lambda name: noise(name)[::-1])
    assert image_list().sha256 == ImageList("renamed", names, noise).sha256
    assert len({image_list().sha256, other.sha256, ImageList("noise", names[::-1], noise).sha256}) == 3


def test_precision_is_part_of_what_was_cached(tmp_path):
    half = Trainer(accelerator="cpu", devices=1, precision="bf16-mixed", logger=False, enable_checkpointing=False)
    write_cache(teacher(), image_list(), tmp_path, half)
    with pytest.raises(ValueError, match="precision = 'bf16-mixed', this run needs '32-true'"):
        write_cache(teacher(), image_list(), tmp_path)


def test_round_trip(tmp_path):
    source, images = teacher(), image_list()
    cache = write_cache(source, images, tmp_path, shard_size=3, batch_size=2, views=("plain", "hflip"))
    assert len(cache) == 7 and cache.recipe.num_shards == 3
    for place in range(7):
        image = Resize(32).image(images.tensor(place))[None]
        torch.testing.assert_close(cache[place].float(), source.embed(image)[0], atol=2e-3, rtol=1e-3)
        mirrored = source.embed(image.flip(-1))[0]
        torch.testing.assert_close(cache.view(place, "hflip").float(), mirrored, atol=2e-3, rtol=1e-3)
    assert cache[0].dtype == torch.float16 and cache[0].shape == source.entry_shape
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy[6], cache[6])
    assert len(pickle.dumps(cache)) < 5000  # the numbers stay on disk


def test_second_start_computes_nothing(tmp_path):
    write_cache(CountingTeacher(), image_list(), tmp_path, shard_size=3)
    again = CountingTeacher()
    write_cache(again, image_list(), tmp_path, shard_size=5)  # a cache that exists keeps its shard size
    assert again.embedded == 0


KILLED = """
import sys
from fsdino.cache.cache import write_cache
from tests.cache.test_cache import CountingTeacher, image_list
write_cache(CountingTeacher(die_after=6), image_list(), sys.argv[1], shard_size=4, batch_size=1)
"""


def test_killed_writer_goes_on_where_it_stood(tmp_path):
    whole = write_cache(CountingTeacher(), image_list(), tmp_path / "whole", shard_size=4, batch_size=1)
    assert run_script(KILLED, tmp_path).returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match=r"is unfinished; run the same `fsdino cache` command again, it goes on"):
        EmbeddingCache(tmp_path / "cache")
    rest = CountingTeacher()
    cut = write_cache(rest, image_list(), tmp_path / "cache", shard_size=4, batch_size=1)
    assert rest.embedded == 1
    for shard in range(2):
        assert shard_path(whole.folder, shard).read_bytes() == shard_path(cut.folder, shard).read_bytes()
    assert not list(cut.folder.glob("*.part")) and not list(cut.folder.glob("*.tmp"))


def test_killed_between_the_last_image_and_its_mark(tmp_path):
    recipe = cache_recipe(teacher(), image_list(4), shard_size=4)
    store = ShardStore(tmp_path, recipe)
    store._finish = lambda shard: None
    store.put([0, 1, 2, 3], np.zeros((4, *recipe.entry_shape)))
    store = ShardStore(tmp_path, recipe)
    assert store.pending() == []
    store.finalize()
    assert store.is_finished


def test_work_is_split_by_shards():
    recipe = cache_recipe(teacher(), image_list(10), shard_size=2)
    assert [list(recipe.shard_images(4)), recipe.num_shards] == [[8, 9], 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher", r"fingerprint = '.+', this run needs '.+'; give another cache folder or delete this one"),
        ("images", r"images_sha256 = '.+', this run needs '.+'"),
        ("views", r"views = \('plain',\), this run needs \('plain', 'hflip'\)"),
        ("mode", r"resize_mode = 'squash', this run needs 'pad'"),
    ],
    ids=["teacher", "images", "views", "mode"],
)
def test_cache_of_another_recipe_is_refused(tmp_path, change, message):
    write_cache(teacher(), image_list(), tmp_path)
    with pytest.raises(ValueError, match=message):
        write_cache(
            teacher(seed=int(change == "teacher")),
            ImageList("noise", tuple("6543210"), noise) if change == "images" else image_list(),
            tmp_path,
            views=("plain", "hflip") if change == "views" else ("plain",),
            resize_mode="pad" if change == "mode" else "squash",
        )


def test_damage_is_noticed(tmp_path):
    write_cache(teacher(), image_list(), tmp_path, shard_size=3)
    path = shard_path(tmp_path, 1)
    good = path.read_bytes()
    path.write_bytes(good[:-50])
    with pytest.raises(ValueError, match=r"shard-00001.npy is damaged: \d+ bytes, expected"):
        EmbeddingCache(tmp_path, verify=False)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"is damaged: sha256 .+; delete shard-00001.npy and shard-00001.json"):
        EmbeddingCache(tmp_path)
    with pytest.raises(ValueError, match=r"is damaged: sha256"):
        write_cache(teacher(), image_list(), tmp_path)  # a cache that is found is checked too
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001.npy is gone; run the same"):
        EmbeddingCache(tmp_path)
    counting = CountingTeacher()
    counting.name = "small-0"
    write_cache(counting, image_list(), tmp_path)
    assert counting.embedded == 3
    assert shard_path(tmp_path, 1).read_bytes() == good


def test_reader_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no embedding cache \(no manifest.json\)"):
        EmbeddingCache(tmp_path)
    cache = write_cache(teacher(), image_list(), tmp_path / "a")
    with pytest.raises(IndexError, match="image 7 is outside the cache's 7 images"):
        cache[7]
    with pytest.raises(ValueError, match=r"holds the views \('plain',\), not 'hflip'"):
        cache.view(0, "hflip")
    other = dataclasses.replace(cache.recipe, img_size=64)
    with pytest.raises(ValueError, match="img_size = 32, this run needs 64"):
        EmbeddingCache(tmp_path / "a", expected=other)
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        EmbeddingCache(tmp_path / "a")


def test_writer_errors(tmp_path):
    recipe = cache_recipe(teacher(), image_list())
    store = ShardStore(tmp_path, recipe)
    with pytest.raises(ValueError, match=r"expected rows of shape \(1, 32, 8, 8\), got \(3,\)"):
        store.put([0], np.zeros((1, 3)))
    rows = np.zeros((2, *recipe.entry_shape))
    rows[1, 0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match="embedding of image 5 is not finite in float16"):
        store.put([4, 5], rows)
    with pytest.raises(ValueError, match="unknown view 'vflip'"):
        cache_recipe(teacher(), image_list(), views=("vflip",))


def test_image_list_errors():
    with pytest.raises(ValueError, match="image list 'none' is empty"):
        ImageList("none", (), noise)
    with pytest.raises(ValueError, match="names '1' twice"):
        ImageList("twice", ("1", "2", "1"), noise)
    item = ImageData(image_list(), Resize(16), [5])[0]
    assert item["index"] == 5 and item["image"].shape == (3, 16, 16)


def test_encoder_taps_can_be_cached(tmp_path):
    kwargs = {"embed_dim": 16, "depth": 3, "num_heads": 2}
    encoder = FeatureEncoder("vit_small_patch14_dinov2", 28, (0, 2), kwargs)
    source = FrozenTaps(encoder)
    cache = write_cache(source, image_list(3), tmp_path)
    maps = encoder(Resize(28).image(image_list().tensor(1))[None])
    assert cache[1].shape == (2, 16, 2, 2)
    torch.testing.assert_close(cache[1].float(), torch.cat(maps), atol=5e-3, rtol=1e-3)
    other = FrozenTaps(FeatureEncoder("vit_small_patch14_dinov2", 28, (0, 1), kwargs))
    assert other.fingerprint != source.fingerprint


TWO_PROCESSES = """
import sys
from lightning import Trainer
from fsdino.cache.cache import write_cache
from fsdino.training.distill import DistillModule
from fsdino.training.distill_data import DistillData
from tests.cache.test_cache import image_list, teacher
from tests.training.small import STUDENT
options = dict(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, enable_checkpointing=False,
               enable_progress_bar=False, enable_model_summary=False)
cache = write_cache(teacher(), image_list(), sys.argv[1], Trainer(**options), shard_size=2, batch_size=2)
trainer = Trainer(max_epochs=2, reload_dataloaders_every_n_epochs=1, **options)
trainer.fit(DistillModule(STUDENT), DistillData(image_list(), [14, 28], cache=cache, batch_size=2))
print("loss", float(trainer.callback_metrics["train/loss"]))
"""


def test_two_processes_write_one_cache_and_distill_from_it(tmp_path):
    alone = write_cache(teacher(), image_list(), tmp_path / "alone", shard_size=2, batch_size=2)
    done = run_script(TWO_PROCESSES, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < float(done.stdout.split("loss ")[-1]) < 100
    assert read_manifest(tmp_path / "cache") == read_manifest(alone.folder)
    assert json.loads(shard_path(tmp_path / "cache", 3, ".json").read_text())["images"] == 1
    EmbeddingCache(tmp_path / "cache")  # every digest is right


def test_any_trainer_sees_every_image_once(tmp_path):
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    counting = CountingTeacher()
    write_cache(counting, image_list(), tmp_path, trainer=trainer, batch_size=4)
    assert counting.embedded == 7


def test_a_second_run_waits_for_the_first_and_takes_its_cache(tmp_path, capsys):
    counting, found = CountingTeacher(), []
    other = threading.Thread(target=lambda: found.append(write_cache(counting, image_list(), tmp_path)))
    with FileLock(tmp_path / ".lock"):  # as a first run that is still writing
        other.start()
        other.join(1.0)
        assert other.is_alive() and counting.embedded == 0
    other.join(60)
    assert len(found[0]) == 7 and counting.embedded == 7
    assert "waiting for another process" in capsys.readouterr().out
    write_cache(counting, image_list(), tmp_path)
    assert counting.embedded == 7
