"""The embedding cache: written once, resumed, shared by processes, refused when it is another's, read back exactly."""

import dataclasses
import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from fsdino.base.resize import Resize
from fsdino.cache import append
from fsdino.cache.cache import EmbeddingCache
from fsdino.cache.image_list import ImageList
from fsdino.cache.shards import read_manifest, shard_path
from fsdino.teachers.architecture import build_sam
from fsdino.teachers.sam import SamTeacher
from fsdino.training.cache_writer import CachePart, OnGrid, write_cache
from fsdino.training.losses import resize_embedding
from tests.small import SAM, refuses, small_segmenter
from tests.training.small import image_list, noise, small_teacher, small_trainer


def cached(source, images, folder, trainer=None, *, shard_size=512, batch_size=8, **options):
    part = CachePart(shard_size=shard_size, batch_size=batch_size)
    return write_cache(source, images, part, folder=folder, trainer=trainer, **options)


class CountingTeacher(SamTeacher):
    """Counts what it embeds and can be killed on the way, once there is a file."""

    def __init__(self, die_after=None, once=None):
        super().__init__(build_sam(SAM, seed=0), SAM)
        self.embedded, self.die_after, self.once = 0, die_after, once

    def embed(self, images):
        if self.embedded == self.die_after:
            while not self.once.is_file():
                time.sleep(0.01)
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


def test_precision_is_part_of_what_was_cached(tmp_path):
    cached(small_teacher(), image_list(7), tmp_path, small_trainer(tmp_path, precision="bf16-mixed"))
    refuses("precision = 'bf16-mixed', this run needs '32-true'", cached, small_teacher(), image_list(7), tmp_path)


def test_round_trip(tmp_path):
    source, images = small_teacher(), image_list(7)
    cache = cached(source, images, tmp_path, shard_size=3, batch_size=2, views=("plain", "hflip"))
    assert len(cache) == 7 and cache.recipe.num_shards == 3
    for place in range(7):
        image = Resize(32).image(images.tensor(place))[None]
        torch.testing.assert_close(cache[place].float(), source.embed(image)[0], atol=2e-3, rtol=1e-3)
        mirrored = source.embed(image.flip(-1))[0]
        torch.testing.assert_close(cache.view(place, "hflip").float(), mirrored, atol=2e-3, rtol=1e-3)
    counting = CountingTeacher()
    cached(counting, images, tmp_path / "any", small_trainer(tmp_path), batch_size=4)
    assert counting.embedded == 7
    assert cache[0].dtype == torch.float16 and cache[0].shape == source.entry_shape
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy[6], cache[6])
    assert len(pickle.dumps(cache)) < 5000  # the numbers stay on disk


def test_second_start_computes_nothing(tmp_path):
    cached(CountingTeacher(), image_list(7), tmp_path, shard_size=3)
    again = CountingTeacher()
    cached(again, image_list(7), tmp_path, shard_size=5)  # a cache that exists keeps its shard size
    assert again.embedded == 0


def _dies(folder):
    torch.set_num_threads(1)  # those of the process that is forked are not there
    cached(CountingTeacher(6, folder / "shard-00000.json"), image_list(7), folder, shard_size=4, batch_size=1)


def test_killed_writer_goes_on_where_it_stood(tmp_path):
    whole = cached(CountingTeacher(), image_list(7), tmp_path / "whole", shard_size=4, batch_size=1)
    writer = multiprocessing.get_context("fork").Process(target=_dies, args=[tmp_path / "cache"])
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    refuses(r"is unfinished; run the same `fsdino run` command again, it goes on", EmbeddingCache, tmp_path / "cache")
    rest = CountingTeacher()
    cut = cached(rest, image_list(7), tmp_path / "cache", shard_size=4, batch_size=1)
    assert rest.embedded == 3  # the shard that it was at
    for shard in range(2):
        assert shard_path(whole.folder, shard).read_bytes() == shard_path(cut.folder, shard).read_bytes()
    assert {path.suffix for path in cut.folder.iterdir()} == {".json", ".npy"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher", r"fingerprint = '.+', this run needs '.+'; give another cache folder or delete this one"),
        ("images", r"images_sha256 = '.+', this run needs '.+'"),
        ("views", r"views = \('plain',\), this run needs \('plain', 'hflip'\)"),
        ("mode", r"resize_mode = 'squash', this run needs 'pad'"),
    ],
)
def test_cache_of_another_recipe_is_refused(tmp_path, change, message):
    cached(small_teacher(), image_list(7), tmp_path)
    with pytest.raises(ValueError, match=message):
        cached(
            small_teacher(seed=int(change == "teacher")),
            ImageList("noise", tuple("6543210"), noise) if change == "images" else image_list(7),
            tmp_path,
            views=("plain", "hflip") if change == "views" else ("plain",),
            resize_mode="pad" if change == "mode" else "squash",
        )


def test_damage_is_noticed(tmp_path):
    cached(small_teacher(), image_list(7), tmp_path, shard_size=3)
    path = shard_path(tmp_path, 1)
    good = path.read_bytes()
    path.write_bytes(good[:-50])
    refuses(r"shard-00001.npy is damaged: \d+ bytes, expected", EmbeddingCache, tmp_path, verify=False)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    cache = EmbeddingCache(tmp_path)
    cache[2]
    refuses(r"is damaged: sha256 .+; delete shard-00001.npy and shard-00001.json", lambda: cache[3])
    cache = cached(small_teacher(), image_list(7), tmp_path)  # a cache that is found is checked too
    refuses("is damaged: sha256", lambda: pickle.loads(pickle.dumps(cache))[5])
    path.unlink()
    refuses(r"shard-00001.npy is gone; run the same", EmbeddingCache, tmp_path, kind=FileNotFoundError)
    counting = CountingTeacher()
    counting.name = "small-0"
    cached(counting, image_list(7), tmp_path)
    assert counting.embedded == 3
    assert shard_path(tmp_path, 1).read_bytes() == good


def test_reader_errors(tmp_path):
    refuses(r"is not an embedding cache \(no manifest.json\)", EmbeddingCache, tmp_path, kind=FileNotFoundError)
    cache = cached(small_teacher(), image_list(7), tmp_path / "a")
    with pytest.raises(IndexError, match="image 7 is outside the cache's 7 images"):
        cache[7]
    refuses(r"holds the views \('plain',\), not 'hflip'", cache.view, 0, "hflip")
    other = dataclasses.replace(cache.recipe, img_size=64)
    refuses("img_size = 32, this run needs 64", EmbeddingCache, tmp_path / "a", expected=other)
    (tmp_path / "a" / "manifest.json").write_text("{")
    refuses(r"manifest.json is damaged", EmbeddingCache, tmp_path / "a")


def test_frozen_maps_can_be_cached(tmp_path):
    model = small_segmenter()
    source = model.frozen_maps()
    cache = cached(source, image_list(3), tmp_path)
    maps = model.encoder(Resize(56).image(image_list(7).tensor(1))[None])
    assert cache[1].shape == source.entry_shape == (3, 32, 8, 8)
    torch.testing.assert_close(cache[1].float(), torch.cat(maps), atol=5e-3, rtol=1e-3)
    assert small_segmenter(reader_taps=(2,)).frozen_maps().fingerprint != source.fingerprint


def test_more_images_are_appended(tmp_path):
    part = CachePart(str(tmp_path), shard_size=3, batch_size=2)
    first, rest = CountingTeacher(), CountingTeacher()
    old = write_cache(first, image_list(8), part, kind="teacher")
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in old.folder.iterdir()}
    new = write_cache(rest, image_list(11), part, kind="teacher")
    assert (first.embedded, rest.embedded) == (8, 5)  # two full shards of three need nothing
    assert before == {path.name: (path.stat().st_ino, path.read_bytes()) for path in old.folder.iterdir()}
    for shard in range(2):
        assert shard_path(new.folder, shard).stat().st_ino == shard_path(old.folder, shard).stat().st_ino
    whole = cached(CountingTeacher(), image_list(11), tmp_path / "whole", shard_size=3, batch_size=2)
    assert read_manifest(new.folder) == read_manifest(whole.folder)
    assert len(EmbeddingCache(old.folder)) == 8
    # Another list, another view, another shard size: nothing of it fits.
    changed = ImageList("noise", tuple("7654321089"), noise)
    for images, options in ((changed, {}), (image_list(11), {"views": ("hflip",)})):
        other = CountingTeacher()
        write_cache(other, images, part, kind="teacher", **options)
        assert other.embedded == len(images)


def test_what_cannot_be_linked_is_made_again(tmp_path, monkeypatch, capsys):
    part = CachePart(str(tmp_path), shard_size=3)
    write_cache(small_teacher(), image_list(4), part, kind="teacher")
    monkeypatch.setattr(append.os, "link", _no_links)
    cache = write_cache(small_teacher(), image_list(5), part, kind="teacher")
    assert len(cache) == 5 and "cannot be linked" in capsys.readouterr().out


def _no_links(*_):
    raise OSError(errno.EPERM, "no links")


def test_a_smaller_grid_is_stored(tmp_path):
    own = cached(small_teacher(), image_list(4), tmp_path / "own")
    small = cached(OnGrid(small_teacher(), 3), image_list(4), tmp_path / "small")
    assert small.recipe.entry_shape == (1, 32, 3, 3) and small.recipe.fingerprint == own.recipe.fingerprint
    for place in range(4):
        # What a step would make of the whole grid, up to the rounding to float16.
        wanted = resize_embedding(own[place].float()[None], (3, 3))[0]
        torch.testing.assert_close(small[place].float(), wanted, atol=2e-3, rtol=2e-3)
    same = cached(OnGrid(small_teacher(), 8), image_list(4), tmp_path / "same")
    assert read_manifest(same.folder) == read_manifest(own.folder)


TWO_PROCESSES = """
import sys
from lightning import Trainer
from fsdino.training.distill import DistillModule, DistillPart
from fsdino.training.distill_data import DistillData
from tests.training.small import student
from tests.training.test_cache_writer import cached, image_list, small_teacher
options = dict(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, enable_checkpointing=False,
               enable_progress_bar=False, enable_model_summary=False)
cache = cached(small_teacher(), image_list(7), sys.argv[1], Trainer(**options), shard_size=2, batch_size=2)
trainer = Trainer(max_epochs=2, **options)
part = DistillPart(sizes=[14, 28], batch_size=2, val_count=0)
trainer.fit(DistillModule(student(), part), DistillData(image_list(7), part, cache=cache))
print("loss", float(trainer.callback_metrics["train/loss"]))
"""


@pytest.mark.slow
def test_two_processes_write_one_cache_and_distill_from_it(tmp_path):
    alone = cached(small_teacher(), image_list(7), tmp_path / "alone", shard_size=2, batch_size=2)
    done = run_script(TWO_PROCESSES, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < float(done.stdout.split("loss ")[-1]) < 100
    assert read_manifest(tmp_path / "cache") == read_manifest(alone.folder)
    assert json.loads(shard_path(tmp_path / "cache", 3, ".json").read_text())["images"] == 1
    EmbeddingCache(tmp_path / "cache")  # every digest is right


def test_runs_at_the_same_time_share_the_work(tmp_path):
    teachers = [CountingTeacher() for _ in range(3)]

    def run(teacher):
        cached(teacher, image_list(40), tmp_path, small_trainer(tmp_path), shard_size=2, batch_size=2)

    threads = [threading.Thread(target=run, args=[teacher]) for teacher in teachers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(teacher.embedded for teacher in teachers) == 40
    again = cached(teachers[0], image_list(40), tmp_path)
    assert sum(teacher.embedded for teacher in teachers) == 40 and len(again) == 40
