"""Overlays, strips and sheets: what is drawn, where, and with which inputs."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fsdino.visualize import PALETTE, episode_strip, mask_iou, overlay, palette_color, sheet, to_image, write_png
from tests.small import refuses


def disc(size: int = 64, radius: int = 16, shift: int = 0) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return ((rows - size // 2) ** 2 + (columns - size // 2 - shift) ** 2 < radius**2).astype(np.uint8)


@pytest.mark.parametrize("tone", [0, 128, 255])
def test_outline_shows_on_any_tone(tone: int) -> None:
    image, mask = np.full((64, 64, 3), tone, np.uint8), disc()
    drawn = overlay(image, mask).astype(int)
    changed = np.abs(drawn - tone).max(axis=-1)
    rim = (np.asarray(changed) > 100).sum()
    assert rim > 60, "one of the two outline tones contrasts with every image"
    assert (drawn[0] == tone).all(), "far from the mask nothing changes"
    assert (drawn[32, 32] != tone).any(), "the inside is filled"


def test_inputs_of_every_kind_draw_the_same() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1) / 255
    mask = disc()[:, :48]
    expected = overlay(image, mask)
    assert np.array_equal(overlay(Image.fromarray(image), Image.fromarray(mask)), expected)
    assert np.array_equal(overlay(tensor, torch.from_numpy(mask)[None] > 0), expected)
    assert np.array_equal(overlay(image, mask.astype(np.float32)), expected)
    assert np.array_equal(to_image(image.astype(np.float32) / 255), image)
    grey = to_image(image[..., 0])
    assert grey.shape == (64, 48, 3) and np.array_equal(grey[..., 2], image[..., 0])


def test_label_maps_get_a_colour_each_and_captions() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[100:150, :60], labels[100:150, 100:160], labels[160:, 160:] = 1, 2, 255
    grey = np.full((200, 200, 3), 90, np.uint8)
    drawn = overlay(grey, labels, opacity=1.0)
    assert tuple(drawn[125, 30]) == PALETTE[0] and tuple(drawn[125, 130]) == PALETTE[1]
    assert set(np.unique(drawn[165:, 165:])) == {0, 90, 255}, "ignored areas are hatched, not coloured"
    captioned = overlay(grey, labels, captions={1: "a cat", 2: "x" * 300}, opacity=1.0)
    assert (captioned[:20, :60] != drawn[:20, :60]).any()
    assert (grey == 90).all(), "the input is left alone"


def test_twenty_classes_have_twenty_colours() -> None:
    colours = np.asarray([palette_color(label) for label in range(1, 21)], np.float32)
    lab = cv2.cvtColor(colours[None] / 255, cv2.COLOR_RGB2LAB)[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 100 * np.eye(20)
    assert apart.min() > 25, "ten times what an eye just sees"
    assert palette_color(21) == palette_color(1)


def test_tiny_and_empty_images_are_drawn() -> None:
    assert overlay(np.zeros((3, 2, 3), np.uint8), np.ones((3, 2)), captions={1: "cat"}).shape == (3, 2, 3)
    assert not overlay(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9))).any()


def test_iou_leaves_ignored_pixels_out() -> None:
    truth, prediction = np.zeros((4, 4), np.uint8), np.zeros((4, 4), bool)
    truth[0], truth[1], prediction[:2, :2] = 1, 255, True
    assert mask_iou(prediction, truth) == pytest.approx(0.5)
    assert np.isnan(mask_iou(np.zeros((4, 4)), np.zeros((4, 4))))


def test_strip_shows_support_query_truth_and_prediction() -> None:
    images = [np.full((64, 64, 3), 200, np.uint8), np.full((40, 80, 3), 30, np.uint8)]
    masks = [disc(), disc(80)[20:60]]
    strip = episode_strip(images, masks, images[0], disc(), disc(shift=4), class_name="cat", score=0.7, size=96)
    assert strip.dtype == np.uint8 and strip.shape[2] == 3
    assert strip.shape[1] == 5 * (96 + 4) + 4
    bare = episode_strip(images[:1], masks[:1], images[0], None, disc(), size=96)
    assert bare.shape[1] == 3 * (96 + 4) + 4, "no truth, no panel for it"
    many = episode_strip(images * 5, masks * 5, images[0], disc(), disc(), size=96, max_support=2)
    assert many.shape[1] == strip.shape[1]


def test_truth_and_prediction_are_drawn_alike() -> None:
    image, mask = np.full((96, 96, 3), 120, np.uint8), disc(96)
    strip = episode_strip([image], [mask], image, mask, mask, size=96)
    panels = [strip[4:100, 4 + i * 100 : 100 + i * 100] for i in range(4)]
    assert np.array_equal(panels[0], panels[2]) and np.array_equal(panels[2], panels[3])
    assert np.array_equal(panels[1], image)


def test_sheet_keeps_every_strip() -> None:
    strips = [np.full((20 + i, 30, 3), 40 * i, np.uint8) for i in range(5)]
    drawn = sheet(strips, columns=2, title="fold 0")
    for strip in strips[1:]:
        assert (drawn == strip[0, 0]).all(axis=-1).sum() >= strip.shape[0] * strip.shape[1]


def test_png_is_written_whole(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = write_png(tmp_path / "new" / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(path)), image)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


def test_wrong_inputs_are_named() -> None:
    refuses(r"shape \(4, 4, 7\) cannot be drawn", to_image, np.zeros((4, 4, 7)))
    refuses(r"the mask is \(4, 5\) and the image \(4, 4\)", overlay, np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5)))
    refuses(r"mask of shape \(2, 4, 4\)", overlay, np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 4)))
    refuses("2 support images and 1 masks", episode_strip, [0, 0], [0], 0, None, 0)
    refuses("no strips", sheet, [])


def test_drawing_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import fsdino.visualize"
    subprocess.run([sys.executable, "-c", code], check=True)
