"""One scene of the embedded world: textured clutter, objects that occlude each other, light, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fsdino.data.world.shapes import TEMPLATE_SIZE, shape_template
from fsdino.data.world.textures import TILE_SIZE, texture_tile

SCENE_SIZE = 112  # pixels a side
MIN_VISIBLE = 60  # pixels; an object with fewer left is dropped from the annotation
MIN_VISIBLE_FRACTION = 0.35

Array = np.ndarray


@dataclass(frozen=True)
class ObjectSpec:
    """What to paint: a class is the pair of a shape variant and a texture variant."""

    shape: int
    texture: int


@dataclass(frozen=True)
class Scene:
    """A painted scene.

    Attributes:
        image: uint8 (SCENE_SIZE, SCENE_SIZE, 3), RGB.
        objects: the specs that stayed visible, painting order; `None` for a piece of clutter without a class.
        masks: bool (len(objects), SCENE_SIZE, SCENE_SIZE), the visible part of each.
    """

    image: Array
    objects: tuple[ObjectSpec | None, ...]
    masks: Array


def _palette(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two random colours that differ enough to see a texture; float32 (3,) in [0, 1] each."""
    # Brightness has to differ as well as hue: the texture must survive in grey.
    while True:
        first, second = rng.uniform(0.03, 0.97, (2, 3)).astype(np.float32)
        if np.abs(first - second).sum() > 0.7 and abs(first.mean() - second.mean()) > 0.12:
            return first, second


def _textured(rng: np.random.Generator, texture: int, size: tuple[int, int]) -> Array:
    """A patch (H, W, 3) of one texture in a random palette, rotation, scale and offset; float32 in [0, 1]."""
    angle, scale = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(0.75), np.log(1.35)))
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    dx, dy = rng.uniform(0, TILE_SIZE, 2)
    matrix = np.array([[c, -s, dx], [s, c, dy]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    # Reflected at the border: most tiles are not periodic, and a seam would be a feature of its own.
    field = cv2.warpAffine(texture_tile(texture), matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT)
    # Both colours are drawn anew for every patch, so colour says nothing about the class.
    first, second = _palette(rng)
    return first + (second - first) * field[..., None]


def _silhouette(rng: np.random.Generator, shape: int, radius: float, bend: float) -> Array:
    """A shape under a random affine and a smooth non-rigid warp; float32 (2 r + 1, 2 r + 1) coverage in [0, 1]."""
    half = int(np.ceil(radius * 1.25))  # room for what the warp pushes outwards
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32) / radius
    angle, shear = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25)
    stretch = np.exp(rng.uniform(-0.22, 0.22))
    c, s = np.cos(angle), np.sin(angle)
    u, v = (c * x + s * y) * stretch, (-s * x + c * y) / stretch
    u = u + shear * v
    # The map runs from the patch to the template, so each pixel is read once and no hole can open. At these frequencies
    # (per radius) a shape gets about one bend across, which leaves its corners and holes recognisable.
    phase, frequency = rng.uniform(0, 2 * np.pi, 2), rng.uniform(1.5, 3.5, 2)
    amplitude = rng.uniform(-bend, bend, 2)
    warped_u = u + amplitude[0] * np.sin(frequency[0] * v + phase[0])
    warped_v = v + amplitude[1] * np.sin(frequency[1] * u + phase[1])
    # The unit disc fills 0.40 of the template; minus a half, since OpenCV has pixel centres at whole numbers.
    to_template = 0.40 * TEMPLATE_SIZE
    map_x = (warped_u * to_template + TEMPLATE_SIZE / 2 - 0.5).astype(np.float32)
    map_y = (warped_v * to_template + TEMPLATE_SIZE / 2 - 0.5).astype(np.float32)
    return cv2.remap(shape_template(shape), map_x, map_y, cv2.INTER_LINEAR, borderValue=0.0)


def _blob(rng: np.random.Generator, radius: float) -> Array:
    """A random smooth outline that belongs to no class; float32 coverage like `_silhouette`'s."""
    half = int(np.ceil(radius * 1.25))
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    outline = 1 + sum(rng.uniform(-0.22, 0.22) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (1, 2, 3, 4))
    aspect = np.exp(rng.uniform(-0.5, 0.5))
    points = np.stack([np.cos(angle) * outline * aspect, np.sin(angle) * outline / aspect], 1) * radius * 0.8 + half
    canvas = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    # Four fractional bits (x 16): on whole pixels, small outlines would be jagged.
    cv2.fillPoly(canvas, [np.round(points * 16).astype(np.int32)], 1.0, lineType=cv2.LINE_AA, shift=4)
    return canvas


class _Canvas:
    """Painter's algorithm that keeps the visible part of every object."""

    def __init__(self, image: Array) -> None:
        self.image = image
        self.objects: list[ObjectSpec | None] = []
        self.masks: list[Array] = []
        self.areas: list[int] = []  # in pixels before occlusion, cut-off parts included

    def paint(
        self, rng: np.random.Generator, coverage: Array, texture: int, at: tuple[float, float], spec: ObjectSpec | None
    ) -> None:
        """Paint a patch centred at (x, y) pixels over all that is there, under a light of its own."""
        half = coverage.shape[0] // 2
        left, top = round(at[0]) - half, round(at[1]) - half
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + coverage.shape[1], SCENE_SIZE), min(top + coverage.shape[0], SCENE_SIZE)
        if x0 >= x1 or y0 >= y1:
            return
        alpha = coverage[y0 - top : y1 - top, x0 - left : x1 - left]
        colour = _textured(rng, texture, alpha.shape)
        tilt = rng.uniform(-0.25, 0.25, 2)
        ramp_y, ramp_x = np.linspace(-1, 1, alpha.shape[0])[:, None], np.linspace(-1, 1, alpha.shape[1])[None]
        colour = colour * (1 + tilt[0] * ramp_y + tilt[1] * ramp_x).astype(np.float32)[..., None]
        window = self.image[y0:y1, x0:x1]  # a view: the blend happens in the image
        window += (colour - window) * alpha[..., None]
        solid = alpha > 0.5
        # What is painted later lies in front, so it takes its pixels away from all masks before it.
        for mask in self.masks:
            mask[y0:y1, x0:x1] &= ~solid
        mask = np.zeros((SCENE_SIZE, SCENE_SIZE), bool)
        mask[y0:y1, x0:x1] = solid
        self.objects.append(spec)
        self.masks.append(mask)
        self.areas.append(int((coverage > 0.5).sum()))

    def visible(self) -> tuple[tuple[ObjectSpec | None, ...], Array]:
        """Objects and masks as in `Scene`; a mask of a few leftover pixels would teach and test nothing."""
        least = [max(MIN_VISIBLE, MIN_VISIBLE_FRACTION * area) for area in self.areas]
        kept = [i for i, mask in enumerate(self.masks) if mask.sum() >= least[i]]
        masks = np.stack([self.masks[i] for i in kept]) if kept else np.zeros((0, SCENE_SIZE, SCENE_SIZE), bool)
        return tuple(self.objects[i] for i in kept), masks


def _background(rng: np.random.Generator, textures: Sequence[int]) -> Array:
    size = (SCENE_SIZE, SCENE_SIZE)
    image = _textured(rng, int(rng.choice(textures)), size)
    if rng.random() < 0.6:  # a second material behind a wavy border
        x = np.arange(SCENE_SIZE, dtype=np.float32)
        border = SCENE_SIZE * rng.uniform(0.25, 0.75) + 8 * np.sin(x / rng.uniform(8, 30) + rng.uniform(0, 6.3))
        side = np.arange(SCENE_SIZE)[:, None] > border[None]
        side = side.T if rng.random() < 0.5 else side  # the border runs across or down
        image = np.where(side[..., None], _textured(rng, int(rng.choice(textures)), size), image)
    # Paler than the objects, so that they stand out as they do in photographs; never so pale that edges vanish.
    contrast = rng.uniform(0.35, 1.0)
    return np.ascontiguousarray(image.mean() + (image - image.mean()) * contrast, np.float32)


def _light(rng: np.random.Generator, image: Array) -> Array:
    """Illumination ramp, exposure, blur and sensor noise; returns uint8."""
    ramp_y, ramp_x = np.linspace(-1, 1, SCENE_SIZE)[:, None], np.linspace(-1, 1, SCENE_SIZE)[None]
    tilt = rng.uniform(-0.3, 0.3, 2)
    image = image * (rng.uniform(0.75, 1.15) * (1 + tilt[0] * ramp_y + tilt[1] * ramp_x)).astype(np.float32)[..., None]
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.9))
    image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.005, 0.035))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def paint_scene(rng: np.random.Generator, specs: Sequence[ObjectSpec], textures: Sequence[int]) -> Scene:
    """Paint objects on textured clutter, in a random order; an object that ends up mostly hidden is not in the scene.

    Args:
        rng: the only source of randomness; the same state gives the same scene.
        specs: objects.
        textures: variants that background and clutter may use, so that held-out textures stay unseen.
    """
    canvas = _Canvas(_background(rng, textures))
    margin = 14

    def place() -> tuple[float, float]:
        return float(rng.uniform(margin, SCENE_SIZE - margin)), float(rng.uniform(margin, SCENE_SIZE - margin))

    def clutter() -> None:
        canvas.paint(rng, _blob(rng, rng.uniform(7, 20)), int(rng.choice(textures)), place(), None)

    for _ in range(int(rng.integers(0, 5))):
        clutter()
    spots: list[tuple[float, float]] = []
    for index in rng.permutation(len(specs)):
        spec = specs[int(index)]
        # Of four random places take the one farthest from the objects so far: overlaps stay partial.
        choices = [place() for _ in range(4)]
        at = max(choices, key=lambda p: min((np.hypot(p[0] - q[0], p[1] - q[1]) for q in spots), default=0.0))
        spots.append(at)
        radius = float(np.exp(rng.uniform(np.log(16), np.log(36))))  # pixels; as many small objects as large ones
        canvas.paint(rng, _silhouette(rng, spec.shape, radius, 0.09), spec.texture, at, spec)
    if rng.random() < 0.3:
        clutter()
    objects, masks = canvas.visible()
    return Scene(_light(rng, canvas.image), objects, masks)
