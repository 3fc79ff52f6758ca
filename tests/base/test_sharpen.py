"""A coarse mask gets nearer to its object's outline, and nothing is moved where the image has no edge."""

import tracemalloc

import cv2
import numpy as np
import pytest

import fsdino
from fsdino.base.result import Segmentation
from fsdino.base.sharpen import Guide, all_sharpened, sharpened
from tests.small import refuses

GRID = 28


def disc(size: tuple[int, int], radius: float = 0.3) -> np.ndarray:
    """A disc (H, W) bool off the middle; its radius is a share of the shorter side."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.hypot(rows - 0.45 * size[0], columns - 0.55 * size[1]) < radius * min(size)


def coloured(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """A photograph-like image of a mask: two colours, a slope of light, noise."""
    light = np.linspace(-20, 20, mask.shape[1])[None, :, None]
    noise = np.random.default_rng(seed).normal(0, 6, (*mask.shape, 3))
    return (np.where(mask[..., None], (170, 120, 60), (90, 110, 130)) + light + noise).clip(0, 255).astype(np.uint8)


def coarse(mask: np.ndarray, score: float = 0.8) -> Segmentation:
    """What a method with cells of 1/28 of the image finds of a mask."""
    cells = cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    logits = cv2.resize(8 * (cells - 0.5), mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    probs = 1 / (1 + np.exp(-logits))
    return Segmentation(probs > 0.5, probs, score, True, 0.9)


def wrong(found: Segmentation, truth: np.ndarray) -> float:
    return float((found.mask != truth).sum() / truth.sum())


@pytest.mark.parametrize("size", [(300, 400), (200, 180), (900, 1200)])
def test_edges_come_nearer_to_the_object(size: tuple[int, int]) -> None:
    # Fine teeth on the outline, which no cell can show.
    rows, columns = np.mgrid[: size[0], : size[1]]
    angle = np.arctan2(rows - 0.45 * size[0], columns - 0.55 * size[1])
    distance = np.hypot(rows - 0.45 * size[0], columns - 0.55 * size[1])
    truth = distance < min(size) * (0.3 + 0.03 * np.sin(20 * angle))
    before = coarse(truth)
    after = sharpened(before, coloured(truth))
    assert wrong(after, truth) < 0.6 * wrong(before, truth)
    assert after.probs.shape == after.mask.shape == size and after.probs.dtype == np.float32
    assert after.probs.min() >= 0 and after.probs.max() <= 1
    assert (after.score, after.present, after.presence) == (before.score, True, before.presence)


def test_a_flat_image_changes_next_to_nothing() -> None:
    truth = disc((240, 320))
    before = coarse(truth)
    after = sharpened(before, np.full((240, 320, 3), 128, np.uint8))
    assert (before.mask != after.mask).sum() < 0.03 * truth.sum()


@pytest.mark.parametrize("size", [(160, 160), (641, 853)])
def test_nothing_moves_sideways(size: tuple[int, int]) -> None:
    """Mirrored and turned, image and mask give the mirrored and turned result; a half-pixel shift would not."""
    truth = disc(size)
    image, before = coloured(truth), coarse(truth).probs
    expected = Guide(image).filtered(before)
    for turn in (np.fliplr, np.flipud, lambda x: np.rot90(x, 2)):
        turned = Guide(np.ascontiguousarray(turn(image))).filtered(np.ascontiguousarray(turn(before)))
        assert np.abs(turn(turned) - expected).max() < 0.02
    centres = [np.argwhere(probs > 0.5).mean(0) for probs in (before, expected)]
    assert np.abs(centres[0] - centres[1]).max() < 0.3


def test_what_is_absent_stays_as_it_is_and_the_threshold_counts() -> None:
    truth = disc((120, 150))
    image, there = coloured(truth), coarse(truth)
    absent = Segmentation(np.zeros_like(truth), there.probs, 0.2, False, 0.1)
    found = list(all_sharpened([absent, there], image, threshold=0.8))
    assert found[0] is absent
    assert np.array_equal(found[1].mask, found[1].probs > 0.8) and 0 < found[1].mask.sum() < truth.sum()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (700, 1), (3, 2)])
def test_any_size(size: tuple[int, int]) -> None:
    probs = Guide(np.full((*size, 3), 9, np.uint8)).filtered(np.full(size, 0.7, np.float32))
    assert probs.shape == size and probs == pytest.approx(0.7, abs=1e-3)


def test_a_large_image_takes_little_more_than_its_result() -> None:
    image, probs = np.zeros((1500, 2000, 3), np.uint8), np.full((1500, 2000), 0.3, np.float32)
    tracemalloc.start()
    Guide(image).filtered(probs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The result's 12 MB, and what the smaller image needs, whatever the size of the large one.
    assert probs.nbytes < peak < probs.nbytes + 20_000_000


def test_another_image_is_refused() -> None:
    found = coarse(disc((60, 80)))
    refuses(
        r"expected an image \(60, 80, 3\) uint8, got \(80, 60, 3\)", sharpened, found, np.zeros((80, 60, 3), np.uint8)
    )
    refuses("give the mask's image", fsdino.sharpened, found, np.zeros((60, 80, 3), np.float32))
