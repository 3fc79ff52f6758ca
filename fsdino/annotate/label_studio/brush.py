"""The run lengths in which Label Studio keeps what a brush has drawn.

The bits are those of the public format of @thi.ng/rle-pack: 32 bits with the number of words, 5 with the bits of a word
less one, four times 4 with the bits of a length less one; then pieces of a flag (1: one word repeated, 0: words as they
are), 2 bits that say which of the four lengths follows, the length less one, and the word or words. The words are the
bytes of an RGBA image, row by row; a pixel is drawn where its last byte, the opacity, is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHANNELS = 4
LENGTH_BITS = (3, 4, 8, 16)  # what Label Studio's own editor writes
HEADER_BITS = 32 + 5 + 4 * 4
LONGEST = 1 << max(LENGTH_BITS)


def encode_brush(mask: np.ndarray) -> list[int]:
    """A mask (H, W) bool as the bytes of Label Studio's `rle`."""
    flat = np.asarray(mask, bool).reshape(-1)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size) if flat.size else np.zeros(0, np.int64)
    header = f"{flat.size * CHANNELS:032b}" + f"{7:05b}" + "".join(f"{bits - 1:04b}" for bits in LENGTH_BITS)
    pieces, start = [header], 0
    for end in ends.tolist():
        word = "11111111" if flat[start] else "00000000"
        left = (end - start) * CHANNELS
        while left:
            length = min(left, LONGEST)
            kind = next(i for i, bits in enumerate(LENGTH_BITS) if length <= 1 << bits)
            pieces.append(f"1{kind:02b}{length - 1:0{LENGTH_BITS[kind]}b}{word}")
            left -= length
        start = end
    text = "".join(pieces)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of Label Studio's `rle` for an image of that size.

    Raises:
        ValueError: if the bytes are cut, damaged, or of another size.
    """
    height, width = size
    try:
        data = bytes(rle)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a brush's rle is not a list of bytes ({error}); draw the region again.") from error
    # As text: slices of it read far faster than bits of an array, and a mask has thousands of pieces.
    bits = f"{int.from_bytes(data, 'big'):0{len(data) * 8}b}" if data else ""
    count = int(bits[:32], 2) if len(bits) >= HEADER_BITS else -1
    # Compared before anything of that size is made: four bytes can promise four gigabytes.
    if count != height * width * CHANNELS:
        raise ValueError(
            f"a brush's rle holds {max(count, 0) // CHANNELS} pixels, its image has {width}x{height} (width x height); "
            "draw the region again."
        )
    word = int(bits[32:37], 2) + 1
    lengths = [int(bits[at : at + 4], 2) + 1 for at in range(37, HEADER_BITS, 4)]
    words, filled, at = np.zeros(count, bool), 0, HEADER_BITS
    while filled < count:
        field = lengths[int(bits[at + 1 : at + 3] or "0", 2)]
        body = at + 3 + field
        length = int(bits[at + 3 : body] or "0", 2) + 1
        end = body + word * (1 if bits[at : at + 1] == "1" else length)
        if end > len(bits) or filled + length > count:
            raise ValueError(f"a brush's rle of {len(data)} bytes is cut or damaged; draw the region again.")
        if bits[at] == "1":
            words[filled : filled + length] = "1" in bits[body:end]
        else:
            values = np.frombuffer(bits[body:end].encode("ascii"), np.uint8).reshape(length, word)
            words[filled : filled + length] = (values == ord("1")).any(1)
        filled, at = filled + length, end
    return words.reshape(height, width, CHANNELS)[..., -1]
