"""Many processes fill one cache: each shard once and whole, whoever is killed, on a full disk, after old versions."""

import errno
import json
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from fsdino.base.digest import file_sha256
from fsdino.cache import claims
from fsdino.cache import store as store_module
from fsdino.cache.cache import EmbeddingCache
from fsdino.cache.seen import note_seen, was_seen
from fsdino.cache.shards import read_manifest, shard_path
from fsdino.cache.store import ShardStore
from tests.cache.filling import files, fill, killed_at_random, numbers, row
from tests.small import refuses


def _held_by(folder, **told):
    """A claim of shard 0 as another process would hold it."""
    path = folder / "shard-00000.claim-3"
    path.write_text(json.dumps(told))
    return path


def _claim(folder):
    return claims.claim(folder, "shard-00000", os.listdir(folder))


def test_processes_killed_at_random_make_the_cache_of_one(tmp_path):
    fill(tmp_path / "alone")
    computed = killed_at_random(tmp_path / "shared", 3, 4, 0.02, np.random.default_rng(0))
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    assert set(computed) == set(range(83))
    cache = EmbeddingCache(tmp_path / "shared")
    assert [int(cache[place].flatten()[0]) for place in range(83)] == list(range(83))


def test_a_claim_has_one_holder(tmp_path):
    first = _claim(tmp_path)
    assert first is not None and first.name == "shard-00000.claim-0"
    assert _claim(tmp_path) is None
    # As one that listed the folder before the first was there.
    assert claims.claim(tmp_path, "shard-00000", []) is None


def test_a_process_of_this_machine_that_is_gone_loses_its_claim_at_once(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    told = claims._process(ended.pid)
    ended.wait()
    if told["machine"] is None:
        pytest.skip("the system does not say which machine it is")
    _held_by(tmp_path, **claims._process(os.getpid()))
    assert _claim(tmp_path) is None
    _held_by(tmp_path, **told)
    taken = _claim(tmp_path)
    assert taken is not None and [path.name for path in tmp_path.iterdir()] == ["shard-00000.claim-4"]
    # A later process with the number of one that is gone.
    _held_by(tmp_path, **{**claims._process(os.getpid()), "start": "1"})
    taken.unlink()
    assert _claim(tmp_path) is not None


@pytest.mark.parametrize("told", [{"machine": "another", "pid": 1, "start": "1"}, {"machine": None}, {}])
def test_a_claim_of_another_machine_is_taken_over_without_a_sign_of_life(tmp_path, told):
    path = _held_by(tmp_path, **told)
    assert _claim(tmp_path) is None
    claims.beat(path)
    late = time.time() - claims.STALE - 1
    os.utime(path, (late, late))
    assert _claim(tmp_path) is not None and not path.exists()
    claims.beat(path)  # of one that was only asleep


def test_what_is_published_is_never_replaced(tmp_path):
    for text in ("first", "second"):
        (tmp_path / text).write_text(text)
        assert claims.publish(tmp_path / text, tmp_path / "file") == (text == "first")
    assert files(tmp_path) == {"file": b"first"}
    assert not claims.publish(tmp_path / "cleared away", tmp_path / "other")


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    fill(tmp_path / "cache")
    assert len(EmbeddingCache(tmp_path / "cache")) == 83
    (tmp_path / "late").write_text("late")
    assert not claims.publish(tmp_path / "late", tmp_path / "cache" / "manifest.json")


def test_one_that_was_taken_over_while_it_slept_leaves_the_other_s_shard(tmp_path):
    slow, fast = (ShardStore(tmp_path, numbers(4)) for _ in range(2))
    rows = np.stack([row(place, (1, 16, 16)) for place in range(4)])
    assert slow.claim() == range(4) and fast.claim() is None
    late = time.time() - claims.STALE - 1
    os.utime(tmp_path / "shard-00000.claim-0", (late, late))
    assert fast.claim() == range(4)
    fast.put([0, 1, 2, 3], rows)
    fast.close()
    slow.put([0, 1, 2, 3], rows + 1)
    slow.close()
    assert list(fast.written) == ["shard-00000.npy"] and slow.written == {}
    assert (EmbeddingCache(tmp_path)[2].numpy() == rows[2].astype(np.float16)).all()


def test_what_a_killed_process_left_of_a_shard(tmp_path):
    whole = files(fill(tmp_path).folder)
    mark, data = (shard_path(tmp_path, 5, suffix) for suffix in (".json", ".npy"))
    mark.unlink()
    (tmp_path / "shard-00005.npy.0.tmp").write_bytes(b"half")
    assert ShardStore(tmp_path, numbers()).claim() is None  # its rows are whole, so only the mark is made
    assert files(tmp_path) == whole
    # An earlier version writes rows in place and notes which are done.
    mark.unlink()
    data.write_bytes(bytes(len(data.read_bytes())))
    shard_path(tmp_path, 5, ".part").write_bytes(b"\1\0\0\0")
    assert files(fill(tmp_path).folder) == whole


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    wanted = files(fill(tmp_path / "alone").folder)
    synced, real = [], os.fsync

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    store = ShardStore(tmp_path / "cache", numbers())
    try:
        refuses(
            r"the disk of '.+cache' is full; 3 of 21 shards are whole and stay: make room and run the same command",
            lambda: _all(store), kind=OSError,
        )  # fmt: skip
    finally:
        store.abandon()
    assert len(files(tmp_path / "cache")) == 3 * 2 + 1 and read_manifest(tmp_path / "cache")[1] == {}
    monkeypatch.setattr(os, "fsync", real)
    assert files(fill(tmp_path / "cache").folder) == wanted


def _all(store):
    while images := store.claim():
        store.put(list(images), np.stack([row(place, (1, 16, 16)) for place in images]))
    store.close()


def test_signs_of_life_are_shown_while_the_network_works(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "BEAT", 0.01)
    store = pickle.loads(pickle.dumps(ShardStore(tmp_path, numbers())))
    store.claim()
    path = tmp_path / "shard-00000.claim-0"
    os.utime(path, (1, 1))
    end = time.monotonic() + 20
    while path.stat().st_mtime == 1 and time.monotonic() < end:
        time.sleep(0.01)
    assert path.stat().st_mtime > 1
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_shard_is_read_for_its_digest_once_on_a_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    path = shard_path(fill(tmp_path / "cache").folder, 0)
    digest = file_sha256(path)
    note_seen(path, digest)
    assert not was_seen(path, digest)  # it may still be changed without another time
    os.utime(path, (1, 1))
    EmbeddingCache(tmp_path / "cache", verify=False)[0]
    assert not was_seen(path, digest)
    EmbeddingCache(tmp_path / "cache")[0]
    assert was_seen(path, digest) and not was_seen(path, digest[::-1])
    path.touch()
    assert not was_seen(path, digest)
