"""References of every kind: what they come down to, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fsdino.base.reference import SCRIBBLE_POINTS, Reference, image_tensor, prompt_points, to_square
from fsdino.base.resize import Resize

IMAGE = np.zeros((40, 80, 3), np.uint8)
SAME = Resize(40)


def points_of(resize: Resize = SAME, **kinds: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return prompt_points(Reference(IMAGE, name="dog.png", **kinds), (40, 80), resize)


def test_points_box_and_scribble_add_up() -> None:
    kinds = {"points": [(10, 5), (70, 30)], "labels": [1, 0], "box": (4, 2, 60, 30), "scribble": [(20, 10), (20, 10)]}
    points, labels = points_of(**kinds)
    assert labels.tolist() == [1, 0, 1, 2, 3] and points.dtype == torch.float32
    expected = torch.tensor([[10, 5], [70, 30], [20, 10], [4, 2], [60, 30]]).float()
    torch.testing.assert_close(points, (expected + 0.5) * torch.tensor([0.5, 1.0]) - 0.5)


def test_positions_follow_the_image_into_the_square() -> None:
    """Pixel centres stay pixel centres: what is pointed at is where the resized image shows it."""
    for mode in ("squash", "pad"):
        resize = Resize(20, mode)  # type: ignore[arg-type]
        image = torch.zeros(1, 40, 80)
        image[..., 12:16, 32:36] = 1.0
        square = resize.soft_mask(image)[0]
        (x, y) = to_square(torch.tensor([[33.5, 13.5]]), (40, 80), resize)[0].tolist()
        rows, cols = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
        assert x == pytest.approx(float((square * cols).sum() / square.sum()), abs=0.05)
        assert y == pytest.approx(float((square * rows).sum() / square.sum()), abs=0.05)


def test_scribbles_become_a_few_points_along_the_stroke() -> None:
    points, labels = points_of(scribble=[(8, 20), (72, 20)])
    assert len(points) == SCRIBBLE_POINTS and labels.unique().tolist() == [1]
    steps = points[1:, 0] - points[:-1, 0]
    torch.testing.assert_close(steps, steps[:1].expand(len(steps)))  # evenly spaced
    stroke = np.zeros((40, 80), np.uint8)
    stroke[20, 8:72] = 255
    drawn, _ = points_of(scribble=stroke)
    assert len(drawn) == SCRIBBLE_POINTS and float((drawn[:, 1] - 20).abs().max()) == 0
    assert float(drawn[:, 0].max() - drawn[:, 0].min()) > 30  # from end to end of the square's 32 columns
    assert torch.equal(points_of(scribble=torch.from_numpy(stroke))[0], drawn)
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
    with pytest.raises(ValueError, match=message):
        points_of(**kinds)


def test_a_correction_may_be_off_the_object_alone() -> None:
    reference = Reference(IMAGE, points=[(3, 4)], labels=[0])
    assert prompt_points(reference, (40, 80), SAME, on_object=False)[1].tolist() == [0]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.jpg", r"got the path 'cat.jpg'; open it: PIL.Image.open\('cat.jpg'\)"),
        (torch.full((3, 8, 8), float("nan")), r"expected values in \[0, 1\], got up to nan"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_tensor(image, "image 0")
