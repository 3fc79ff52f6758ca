"""Training checkpoints: written again with other weights, and read with the checksums that they carry."""

from pathlib import Path

import torch

from fsdino.base.checkpoint import CHECKPOINT_KEY, read_checkpoint
from fsdino.base.storage import describe, fingerprint, load, rewrite_checkpoint
from tests.base.test_storage import flip, model, prefixed
from tests.small import refuses, small_segmenter

__all__ = ["model"]  # the fixture


def test_a_checkpoint_is_written_again_with_other_weights(model, tmp_path: Path) -> None:
    state = {**prefixed(small_segmenter(seed=1)), "loss.weight": torch.ones(2)}
    torch.save({"state_dict": state, CHECKPOINT_KEY: describe(model), "epoch": 7}, tmp_path / "a.ckpt")
    rewrite_checkpoint(model, tmp_path / "a.ckpt", tmp_path / "deep" / "b.ckpt")
    assert fingerprint(load(tmp_path / "deep" / "b.ckpt")) == fingerprint(model)
    content = read_checkpoint(tmp_path / "deep" / "b.ckpt")
    assert content["epoch"] == 7 and torch.equal(content["state_dict"]["loss.weight"], torch.ones(2))


def test_a_flipped_bit_of_a_checkpoint_is_seen(model, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": prefixed(model), CHECKPOINT_KEY: describe(model)}, path)
    assert fingerprint(load(path)) == fingerprint(model)
    flip(path, path.stat().st_size // 2)
    refuses("a.ckpt' cannot be read .the checksum of its part .* is another.; copy it again", load, path)
