"""Brush run lengths: there and back, what the format's own example says, and what is damaged."""

import numpy as np
import pytest

from fsdino.annotate.label_studio.brush import decode_brush, encode_brush
from tests.small import refuses

RANDOM = np.random.default_rng(0).random((37, 53)) > 0.5
LARGE = np.kron(np.eye(4, dtype=bool), np.ones((90, 110), bool))  # its runs are longer than the longest length


@pytest.mark.parametrize("mask", [np.zeros((3, 5), bool), np.ones((3, 5), bool), RANDOM, LARGE])
def test_what_is_encoded_is_decoded(mask: np.ndarray) -> None:
    assert (decode_brush(encode_brush(mask), mask.shape) == mask).all()


def test_single_words_and_repeated_ones_are_read() -> None:
    # Written by hand after the format's description: 8 words of 8 bits, first four as they are (of which the last, the
    # opacity, is 200), then one 0 four times.
    bits = f"{8:032b}" + f"{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    bits += "0" + "00" + "011" + "".join(f"{n:08b}" for n in (10, 20, 30, 200)) + "1" + "00" + "011" + f"{0:08b}"
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert decode_brush(rle, (1, 2)).tolist() == [[True, False]]


def test_damage_is_one_sentence() -> None:
    rle = encode_brush(RANDOM)
    refuses("cut or damaged", decode_brush, rle[: len(rle) // 2], RANDOM.shape)
    refuses("holds 1961 pixels, its image has 4x3", decode_brush, rle, (3, 4))
    refuses("holds 0 pixels", decode_brush, [], (3, 4))
    refuses("not a list of bytes", decode_brush, [1, 2, 999], (3, 4))
    refuses("not a list of bytes", decode_brush, "abc", (3, 4))


def test_a_promise_of_gigabytes_is_not_believed() -> None:
    refuses("its image has 2x2", decode_brush, [255] * 16, (2, 2))
