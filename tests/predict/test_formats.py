"""Masks as polygons and annotations: what is read back is the same mask."""

import time

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle_tools

from fsdino.predict.formats import annotation, polygons, yolo_lines


def ring() -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    mask[5:50, 10:60], mask[15:25, 20:30], mask[30:40, 40:50] = 1, 0, 0
    mask[52:58, 70:79], mask[0, 0] = 1, 1
    return mask


def test_polygons_fill_to_the_same_mask() -> None:
    filled = np.zeros((60, 80), np.uint8)
    for polygon in polygons(ring()):
        cv2.fillPoly(filled, [polygon.astype(np.int32)], 1)
    expected = ring()
    expected[0, 0] = 0  # one pixel has no area
    assert np.array_equal(filled, expected)


def test_yolo_lines_read_back_to_the_same_mask() -> None:
    labels = ring() * 2
    filled = np.zeros((60, 80), np.uint8)
    for line in yolo_lines(labels, ["cat", "dog"]).splitlines():
        kind, *values = line.split()
        assert kind == "1"
        points = np.asarray(values, float).reshape(-1, 2) * (80, 60)
        cv2.fillPoly(filled, [points.astype(np.int32)], 1)  # as YOLO's own loaders do
    assert (filled != ring()).sum() <= 1


def test_coco_annotations_hold_the_mask_exactly() -> None:
    entry = annotation(ring(), 3, 0.75)
    assert np.array_equal(rle_tools.decode(entry["segmentation"]), ring())
    assert entry["area"] == ring().sum() and entry["bbox"] == [0, 0, 79, 58] and entry["category_id"] == 3


@pytest.mark.parametrize("seed", range(6))
def test_polygons_with_any_holes_fill_to_the_same_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random((90, 120)), (0, 0), 0.6 + 0.4 * seed)
    mask = (noise > np.quantile(noise, 0.3)).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    mask[stats[parts, cv2.CC_STAT_AREA] < 20] = 0  # some of these are lines, which have no area
    filled = np.zeros_like(mask)
    for polygon in polygons(mask):
        cv2.fillPoly(filled, [polygon.astype(np.int32)], 1)
    assert np.array_equal(filled, mask)


def test_many_holes_take_no_longer_than_their_pixels() -> None:
    mask = np.ones((1000, 1000), np.uint8)
    mask[2:-2:4, 2:-2:4] = 0  # 62 001 holes
    start = time.perf_counter()
    (outline,) = polygons(mask)
    assert time.perf_counter() - start < 20
    filled = np.zeros_like(mask)
    cv2.fillPoly(filled, [outline.astype(np.int32)], 1)
    assert np.array_equal(filled, mask)
