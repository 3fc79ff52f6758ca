"""References of every kind: an image with a mask, or with points, a box or a scribble. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fsdino.base.image import to_mask, to_rgb

ImageLike = Image.Image | np.ndarray | Any  # Any: a torch tensor (3, H, W), which this file must not import

OFF, ON, BOX_START, BOX_END = 0, 1, 2, 3  # SAM's labels of points; -1 stands for no point
RANGE_SLACK = 0.25  # that a float image may go below 0 and above 1
SCRIBBLE_POINTS = 8  # points that a scribble becomes: SAM has learnt from a few clicks, not from hundreds


@dataclass
class Reference:
    """One annotated image of the object to find.

    A mask says everything, so what else is given beside one is not used; points, a box and a scribble add up. Positions
    are pixels of the image, x from the left and y from the top, pixel centres at whole numbers.

    Args:
        image: PIL image as a viewer shows it (see `to_rgb`), numpy (H, W, 3) uint8, or tensor (3, H, W) float in
            [0, 1].
        mask: same height and width as the image: numpy or tensor (H, W), of which anything but 0 is the object, or
            a black and white PIL image, read as `to_mask` says.
        points: (N, 2) clicks as x, y.
        labels: N numbers, 1 for a click on the object and 0 for one off it; None: all are on it.
        box: x0, y0, x1, y1 around the object.
        scribble: A stroke on the object: the corners (N, 2) of a line as x, y, or an image (H, W) of the stroke.
        negative: the reference shows what is not meant: "not this".
        name: what error messages call it, for instance the file's name.
    """

    image: ImageLike
    mask: ImageLike | None = None
    points: Any = None
    labels: Any = None
    box: Sequence[float] | None = None
    scribble: Any = None
    negative: bool = False
    name: str = "reference"


def image_array(image: ImageLike, name: str) -> np.ndarray:
    """Turn an image of any accepted kind (see `Reference.image`) into an array; `name` is for error messages.

    Returns:
        (H, W, 3): uint8, or float32 in [0, 1] where a tensor was given.

    Raises:
        ValueError: if shape, dtype or range is another.
    """
    if isinstance(image, str | Path):
        raise ValueError(f"{name}: expected an image, got the path '{image}'; open it: PIL.Image.open('{image}').")
    if is_tensor(image):
        return _from_tensor(image, name)
    array = to_rgb(image) if isinstance(image, Image.Image) else np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"{name}: expected a uint8 array (H, W, 3), got {array.dtype} {array.shape}; convert it to RGB uint8."
        )
    return array


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor, told without importing torch."""
    return hasattr(value, "is_floating_point") and hasattr(value, "detach")


def _from_tensor(image: Any, name: str) -> np.ndarray:
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or not image.numel():
        raise ValueError(
            f"{name}: expected a float tensor (3, H, W), got {image.dtype} {tuple(image.shape)}; "
            "convert it, or give a PIL image or a uint8 array (H, W, 3)."
        )
    low, high = float(image.min()), float(image.max())
    # Resampling goes a little over both ends. "not within" rather than "below or above" refuses NaN as well.
    if not (low >= -RANGE_SLACK and high <= 1.0 + RANGE_SLACK):
        advice = "divide by 255" if low >= 0.0 else "undo its normalisation"
        raise ValueError(f"{name}: expected values in [0, 1], got {low:.3g} to {high:.3g}; {advice}.")
    array: np.ndarray = image.detach().cpu().float().permute(1, 2, 0).numpy()
    return array


def reference_list(references: Any) -> list[Reference]:
    """What `remember` is given, as a list.

    Raises:
        ValueError: if there is no reference, or something else stands among them.
    """
    if isinstance(references, Reference) or not isinstance(references, Sequence):
        raise ValueError(
            f"remember() expected a list of references, got {type(references).__name__}; give "
            "[Reference(image, mask=mask)]."
        )
    if not references:
        raise ValueError("remember() got no reference; give at least one Reference(image, mask=mask).")
    for one in references:
        if not isinstance(one, Reference):
            kind = type(one).__name__
            raise ValueError(f"remember() expected references, got {kind} among them; give Reference(image, mask=...).")
    return list(references)


def mask_only(reference: Reference, kind: str) -> Reference:
    """The reference, if all that it says is a mask of the object; for methods (`kind` names one) that take no other.

    Raises:
        ValueError: if it says something else.
    """
    if reference.negative:
        raise ValueError(f"{reference.name}: {kind} has no use for what is not meant; leave it out or use FS-DINO.")
    pointed = (reference.points, reference.box, reference.scribble)
    if reference.mask is None and any(given is not None for given in pointed):
        raise ValueError(
            f"{reference.name}: {kind} learns from masks alone; give a mask, or use FS-DINO for points, boxes and "
            "scribbles."
        )
    return reference


def reference_arrays(reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Check a reference with a mask: its image, as `image_array` gives it, and its mask (H, W) bool.

    Raises:
        ValueError: if the mask is missing, empty, of another size, or not a single plane.
    """
    name = reference.name
    image = image_array(reference.image, name)
    if reference.mask is None:
        raise ValueError(f"{name}: a reference needs a mask; give Reference(image, mask=mask).")
    mask = _plane(reference.mask, name)
    if mask.ndim != 2:
        raise ValueError(f"{name}: expected a mask (H, W), got shape {mask.shape}; give a single plane.")
    if mask.shape != image.shape[:2]:
        raise ValueError(
            f"{name}: the mask is {mask.shape} but its image {image.shape[:2]} (rows, columns); "
            "resize the mask with nearest neighbour."
        )
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected a mask of numbers or booleans, got {mask.dtype}; give 0 and 1.")
    if mask.dtype.kind == "f" and not np.isfinite(mask).all():
        raise ValueError(f"{name}: the mask holds NaN or infinity; give 0 and 1.")
    if not mask.any():
        raise ValueError(f"mask {name!r} has no foreground pixel; a reference needs at least one.")
    return image, mask != 0


def _plane(mask: Any, name: str) -> np.ndarray:
    """A mask of any accepted kind as an array, not 0 on the object."""
    if isinstance(mask, str | Path):
        raise ValueError(f"{name}: expected a mask, got the path '{mask}'; open it: PIL.Image.open('{mask}').")
    if is_tensor(mask):
        return np.asarray((mask.detach().float() if mask.is_floating_point() else mask.detach()).cpu())
    return to_mask(mask) == 1 if isinstance(mask, Image.Image) else np.asarray(mask)


def prompt_points(
    reference: Reference, size: tuple[int, int], content_size: tuple[int, int], on_object: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """All that a reference without a mask points at, as SAM's points in the network's square.

    Args:
        reference: with points, a box or a scribble.
        size: (H, W) of its image.
        content_size: (rows, columns) that the image takes in the square, see `Resize.content_size`.
        on_object: whether one of the points has to be on the object; a correction may be off it alone.

    Returns:
        Points (P, 2) float32 as x, y in pixels of the square, and labels (P,) int64: 1 on the object, 0 off it, 2 and 3
        the corners of a box.

    Raises:
        ValueError: if nothing is given, nothing points at the object, a position is outside the image, or a shape or
            a label is wrong.
    """
    points, labels = _clicks(reference)
    if reference.scribble is not None:
        stroke = _stroke(reference, size)
        points, labels = np.concatenate([points, stroke]), np.concatenate([labels, np.full(len(stroke), ON)])
    if reference.box is not None:
        points = np.concatenate([points, _corners(reference)])
        labels = np.concatenate([labels, [BOX_START, BOX_END]])
    if not len(points):
        raise ValueError(f"{reference.name}: a reference needs a mask, points, a box or a scribble with a stroke.")
    if on_object and not (labels != OFF).any():
        raise ValueError(f"{reference.name}: all points are off the object (label 0); add one that is on it, label 1.")
    height, width = size
    inside = (points >= -0.5).all(1) & (points[:, 0] <= width - 0.5) & (points[:, 1] <= height - 0.5)
    # Not "x < 0 or x > width": a NaN is inside of nothing, so it lands here as well.
    outside = ~inside
    if outside.any():
        x, y = points[outside.argmax()]
        raise ValueError(
            f"{reference.name}: position ({x:g}, {y:g}) is outside the image of {width}x{height} pixels (width x "
            "height); give x, y in its pixels."
        )
    return to_square(points, size, content_size), labels


def to_square(points: np.ndarray, size: tuple[int, int], content_size: tuple[int, int]) -> np.ndarray:
    """Positions (P, 2) in an image of size (H, W) as float32 positions in the network's square, x and y in pixels.

    Pixel centres are at whole numbers in both; `content_size` is (rows, columns) that the image takes in the square.
    """
    scale = np.array([content_size[1] / size[1], content_size[0] / size[0]], np.float32)
    # half a pixel is added before scaling and taken away after it: a pixel's centre, not its corner, keeps its place
    return (points.astype(np.float32) + np.float32(0.5)) * scale - np.float32(0.5)


def _clicks(reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    if reference.points is None:
        if reference.labels is not None:
            raise ValueError(f"{reference.name}: labels came without points; give both or neither.")
        return np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    points = to_numbers(reference.points, f"{reference.name}: points")
    labels: np.ndarray = np.ones(points.shape[:1], np.int64)
    if reference.labels is not None:
        labels = to_numbers(reference.labels, f"{reference.name}: labels", "a 1 or 0 for every point")
    if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
        raise ValueError(
            f"{reference.name}: expected points (N, 2) and N labels, got {points.shape} and {labels.shape}; give "
            "x, y and a 1 or 0 for every point."
        )
    if not np.isin(labels, (OFF, ON)).all():
        raise ValueError(f"{reference.name}: labels are 1 (on the object) or 0 (off it), got {labels.tolist()}.")
    return points, labels.astype(np.int64)


def to_numbers(values: Any, name: str, wanted: str = "x, y in pixels") -> np.ndarray:
    """Positions, or an image of a stroke, as float32; `name` is for error messages.

    Raises:
        ValueError: if they are not numbers.
    """
    # numpy would read "12" as a number and fail at "a" without saying where.
    try:
        array = np.asarray(values.detach().cpu() if is_tensor(values) else values)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" and array.size:
        raise ValueError(f"{name}: expected numbers, got {values!r:.80}; give {wanted}.")
    return array.astype(np.float32)


def _corners(reference: Reference) -> np.ndarray:
    box = to_numbers(reference.box, f"{reference.name}: box")
    if box.shape != (4,) or box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(
            f"{reference.name}: expected a box x0, y0, x1, y1 with x0 < x1 and y0 < y1, got {box.tolist()}."
        )
    return box.reshape(2, 2)


def _stroke(reference: Reference, size: tuple[int, int]) -> np.ndarray:
    """A few points along a scribble, (P, 2) float32."""
    given = reference.scribble
    stroke = to_numbers(given, f"{reference.name}: scribble")
    if stroke.shape == size:
        return _spread(np.argwhere(stroke != 0)[:, ::-1].astype(np.float32))
    if stroke.ndim == 2 and stroke.shape[1] == 2 and len(stroke):
        return _along(stroke.astype(np.float32))
    raise ValueError(
        f"{reference.name}: expected a scribble of corners (N, 2) or an image {size} of a stroke, got {stroke.shape}."
    )


def _along(corners: np.ndarray) -> np.ndarray:
    """Evenly spaced points on a line through its corners."""
    lengths = np.hypot(*np.diff(corners, axis=0).T)
    way = np.concatenate([[0.0], np.cumsum(lengths)])
    # In the middle of equal pieces: the ends of a stroke are where it most likely leaves the object.
    places = (np.arange(SCRIBBLE_POINTS) + 0.5) / SCRIBBLE_POINTS * way[-1]
    spread = np.stack([np.interp(places, way, corners[:, axis]) for axis in (0, 1)], axis=1).astype(np.float32)
    return spread if way[-1] > 0 else corners[:1]


def _spread(pixels: np.ndarray) -> np.ndarray:
    """Pixels of a stroke that lie far from each other."""
    if not len(pixels):
        return pixels
    centre = pixels.mean(0)
    # Starts nearest the centre, and each time takes the farthest from those chosen, so that a wide stroke is covered.
    chosen = [int(((pixels - centre) ** 2).sum(1).argmin())]
    distance = np.full(len(pixels), np.inf)
    while len(chosen) < min(SCRIBBLE_POINTS, len(pixels)):
        distance = np.minimum(distance, ((pixels - pixels[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(distance.argmax()))
    return pixels[chosen]
