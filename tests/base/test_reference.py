"""References of every kind: what they come down to, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsdino.base.memory import image_tensor
from fsdino.base.reference import (
    SCRIBBLE_POINTS,
    ImageLike,
    Reference,
    image_array,
    prompt_points,
    reference_arrays,
    to_square,
)
from fsdino.base.resize import Resize
from tests.small import rand, refuses

IMAGE = np.zeros((40, 80, 3), np.uint8)
SQUARE = (40, 40)  # the image's place in a square of 40 pixels, squashed


def points_of(**kinds: Any) -> tuple[np.ndarray, np.ndarray]:
    return prompt_points(Reference(IMAGE, name="dog.png", **kinds), (40, 80), SQUARE)


def mask_of(share: float, height: int = 40, width: int = 80) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[: round(share * height)] = 255
    return mask


def test_every_kind_of_image_is_the_same_image() -> None:
    array = (255 * rand(12, 10, 3)).numpy().astype(np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    kinds: list[ImageLike] = [array, Image.fromarray(array), tensor]
    for kind in kinds:
        torch.testing.assert_close(image_tensor(image_array(kind, "x")), tensor)


def test_every_kind_of_mask_is_the_same_mask() -> None:
    mask = mask_of(0.5)
    masks: list[ImageLike] = [
        mask,
        mask > 0,
        mask.astype(np.float32) / 255,
        torch.from_numpy(mask),
        Image.fromarray(mask),
    ]
    for kind in masks:
        out = reference_arrays(Reference(IMAGE, mask=kind))[1]
        assert out.dtype == bool and np.array_equal(out, mask > 0)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Reference(IMAGE), "reference: a reference needs a mask; give Reference"),
        (Reference(IMAGE, mask=mask_of(0), name="dog.png"), "mask 'dog.png' has no foreground pixel"),
        (Reference(IMAGE, mask=mask_of(1, 10)), r"mask is \(10, 80\) but its image \(40, 80\).*resize the"),
        (Reference(IMAGE, mask=IMAGE), r"expected a mask \(H, W\), got shape \(40, 80, 3\); give a single plane"),
        (Reference(IMAGE[..., 0], mask=mask_of(1)), r"expected a uint8 array \(H, W, 3\), got uint8 \(40, 80\)"),
        (Reference(IMAGE / 255.0, mask=mask_of(1)), r"got float64 \(40, 80, 3\); convert it to RGB uint8"),
        (Reference(torch.ones(40, 80, 3), mask=mask_of(1)), r"expected a float tensor \(3, H, W\)"),
        (Reference(torch.ones(3, 40, 80).long(), mask=mask_of(1)), "got torch.int64"),
        (Reference(torch.full((3, 8, 8), 255.0)), r"in \[0, 1\], got 255 to 255; divide by 255"),
        (Reference(torch.full((3, 8, 8), float("nan"))), r"expected values in \[0, 1\], got nan to nan"),
        (Reference(torch.full((3, 8, 8), -2.0)), r"got -2 to -2; undo its normalisation"),
        (Reference(IMAGE, mask=np.full((40, 80), np.nan)), "the mask holds NaN or infinity; give 0 and 1"),
        (Reference(IMAGE, mask=np.full((40, 80), "x")), "expected a mask of numbers or booleans, got <U1"),
        (Reference(IMAGE, mask="m.png"), r"expected a mask, got the path 'm.png'; open it: PIL.Image.open\('m.png'\)"),
        (Reference(IMAGE[:0], mask=mask_of(1)), r"expected a uint8 array \(H, W, 3\), got uint8 \(0, 80, 3\)"),
        (Reference("cat.jpg"), r"got the path 'cat.jpg'; open it: PIL.Image.open\('cat.jpg'\)"),
    ],
)
def test_what_is_not_an_image_with_a_mask_is_refused(reference: Reference, message: str) -> None:
    refuses(message, reference_arrays, reference)


def test_points_box_and_scribble_add_up() -> None:
    kinds = {"points": [(10, 5), (70, 30)], "labels": [1, 0], "box": (4, 2, 60, 30), "scribble": [(20, 10), (20, 10)]}
    points, labels = points_of(**kinds)
    assert labels.tolist() == [1, 0, 1, 2, 3] and points.dtype == np.float32 and labels.dtype == np.int64
    expected = np.array([[10, 5], [70, 30], [20, 10], [4, 2], [60, 30]])
    np.testing.assert_allclose(points, (expected + 0.5) * [0.5, 1.0] - 0.5)


def test_positions_follow_the_image_into_the_square() -> None:
    """Pixel centres stay pixel centres: what is pointed at is where the resized image shows it."""
    for mode in ("squash", "pad"):
        resize = Resize(20, mode)  # type: ignore[arg-type]
        image = torch.zeros(1, 40, 80)
        image[..., 12:16, 32:36] = 1.0
        square = resize.soft_mask(image)[0]
        x, y = to_square(np.array([[33.5, 13.5]]), (40, 80), resize.content_size(40, 80))[0].tolist()
        rows, cols = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
        assert x == pytest.approx(float((square * cols).sum() / square.sum()), abs=0.05)
        assert y == pytest.approx(float((square * rows).sum() / square.sum()), abs=0.05)


def test_scribbles_become_a_few_points_along_the_stroke() -> None:
    points, labels = points_of(scribble=[(8, 20), (72, 20)])
    assert len(points) == SCRIBBLE_POINTS and set(labels.tolist()) == {1}
    steps = np.diff(points[:, 0])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)  # evenly spaced
    stroke = np.zeros((40, 80), np.uint8)
    stroke[20, 8:72] = 255
    drawn, _ = points_of(scribble=stroke)
    assert len(drawn) == SCRIBBLE_POINTS and (drawn[:, 1] == 20).all()
    assert np.ptp(drawn[:, 0]) > 30  # from end to end of the square's 32 columns
    assert np.array_equal(points_of(scribble=torch.from_numpy(stroke))[0], drawn)
    assert len(points_of(scribble=stroke * (np.arange(80) == 9))[0]) == 1


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({}, "dog.png: a reference needs a mask, points, a box or a scribble"),
        ({"scribble": np.zeros((40, 80))}, "needs a mask, points, a box or a scribble with a stroke"),
        ({"points": [(1, 1)], "labels": [0]}, "all points are off the object"),
        ({"points": [1, 2]}, r"expected points \(N, 2\) and N labels"),
        ({"points": [(1, 2)], "labels": [1, 0]}, r"expected points \(N, 2\) and N labels"),
        ({"points": [(1, 2)], "labels": [2]}, r"labels are 1 \(on the object\) or 0"),
        ({"labels": [1]}, "labels came without points"),
        ({"points": [(80, 2)]}, r"position \(80, 2\) is outside the image of 80x40 pixels"),
        ({"points": [(-1, 2)]}, "outside the image"),
        ({"points": [(float("nan"), 2)]}, r"position \(nan, 2\) is outside the image"),
        ({"box": (5, 5, 5, 9)}, "x0 < x1 and y0 < y1"),
        ({"box": (5, 5, 9)}, "expected a box x0, y0, x1, y1"),
        ({"scribble": np.zeros((3, 4))}, r"expected a scribble of corners \(N, 2\) or an image \(40, 80\)"),
    ],
)
def test_what_cannot_be_used_is_refused(kinds: dict[str, Any], message: str) -> None:
    refuses(message, points_of, **kinds)


def test_a_correction_may_be_off_the_object_alone() -> None:
    reference = Reference(IMAGE, points=[(3, 4)], labels=[0])
    assert prompt_points(reference, (40, 80), SQUARE, on_object=False)[1].tolist() == [0]
