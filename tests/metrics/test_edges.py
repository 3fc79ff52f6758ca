"""Boundary IoU: intersection and union along the outlines."""

import numpy as np
import pytest

from fsdino.metrics.edges import band_counts, inner_band
from tests.data.small import block
from tests.small import refuses


def test_the_band_is_the_rim_of_the_mask() -> None:
    mask = block(1, 2, 3, 10, size=(20, 20)) == 1
    for width in (1, 3):
        band = inner_band(mask, width)
        assert band.sum() == 100 - (10 - 2 * width) ** 2 and not (band & ~mask).any()
    # The image's rim is an outline too, as in the published measure.
    assert inner_band(np.ones((6, 6), bool), 1).sum() == 20


def test_counts_match_a_slow_reference() -> None:
    """A pixel is in the band when the square of the band's width around it leaves the mask or the image."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        truth = block(1, *rng.integers(0, 40, 2), int(rng.integers(1, 30)))
        pred = block(1, *rng.integers(0, 40, 2), int(rng.integers(1, 30)))
        width = round(0.02 * np.hypot(*truth.shape))
        bands = []
        for mask in (pred == 1, truth == 1):
            padded = np.pad(mask, width)
            views = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1, 2 * width + 1))
            bands.append(mask & ~views.all((2, 3)))
        assert band_counts(pred, truth) == ((bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum())


def test_a_shift_costs_more_along_the_outline_than_in_the_area() -> None:
    truth, pred = block(1, 10, 10, 40), block(1, 12, 10, 40)
    area = ((pred == 1) & (truth == 1)).sum() / ((pred == 1) | (truth == 1)).sum()
    inter, union = band_counts(pred, truth)
    assert 0 < inter / union < area
    assert band_counts(truth, truth)[0] == band_counts(truth, truth)[1] > 0
    assert band_counts(np.zeros_like(truth), np.zeros_like(truth)) == (0, 0)


def test_ignored_pixels_count_nowhere() -> None:
    truth, pred = block(1, 10, 10, 20), block(1, 10, 10, 20)
    truth[truth.shape[0] // 2 :, :] = 255
    pred[truth == 255] = 1  # whatever is said there
    inter, union = band_counts(pred, truth)
    # The rows of the object above the ignored part: the prediction has no outline where the truth is not known.
    assert union <= (truth == 1).sum() and inter > 0


def test_different_shapes_are_refused() -> None:
    refuses("must be one", band_counts, np.zeros((2, 2)), np.zeros((2, 3)))


@pytest.mark.parametrize("size", [(3, 3), (1, 50)])
def test_tiny_images_have_a_band_of_a_pixel(size: tuple[int, int]) -> None:
    full = np.ones(size, np.uint8)
    inter, union = band_counts(full, full)
    assert inter == union > 0
