"""Forty texture variants of twenty families, each drawn once as a large grey tile.

A texture is a scalar field in [0, 1]; colour comes from the scene's random palette, so it carries no class. Tiles are
sampled by scenes with a random rotation, scale and offset.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

TILE_SIZE = 256  # pixels; a scene samples it at about one tile pixel an image pixel

Array = np.ndarray


def _grid() -> tuple[Array, Array]:
    y, x = np.mgrid[0:TILE_SIZE, 0:TILE_SIZE].astype(np.float32)
    return x, y


def _step(field: Array, sharpness: float) -> Array:
    """Soft threshold at 0."""
    # A hard one would alias under the rotation and scale of a scene; the clip keeps exp from overflowing.
    return 1 / (1 + np.exp(-np.clip(field * sharpness, -30, 30)))


def _noise(rng: np.random.Generator, scale: float) -> Array:
    """Smooth noise of the given wavelength in pixels, about zero mean and unit deviation."""
    field = cv2.GaussianBlur(rng.standard_normal((TILE_SIZE, TILE_SIZE)).astype(np.float32), (0, 0), scale / 2.5)
    return (field - field.mean()) / field.std()


def _stripes(period: float, duty: float) -> Array:
    x, _ = _grid()
    return _step(np.cos(2 * np.pi * x / period) - duty, 5)


def _checker(px: float, py: float) -> Array:
    x, y = _grid()
    return _step(np.sin(2 * np.pi * x / px) * np.sin(2 * np.pi * y / py), 8)


def _dots(period: float, radius: float, hexagonal: bool) -> Array:
    x, y = _grid()
    row = np.floor(y / period)
    x = x + (row % 2) * period / 2 if hexagonal else x  # every other row is shifted by half a period
    distance = np.hypot((x % period) - period / 2, (y % period) - period / 2)
    return _step(radius - distance, 2)


def _rings(period: float) -> Array:
    x, y = _grid()
    x, y = x % 64 - 32, y % 64 - 32
    return _step(np.cos(2 * np.pi * np.hypot(x, y) / period), 4)


def _spokes(count: int) -> Array:
    x, y = _grid()
    return _step(np.sin(count * np.arctan2(y % 64 - 32, x % 64 - 32)), 4)


def _clouds(scale: float) -> Array:
    # Seeded by its own parameter, here and below: a tile must not depend on which tiles were drawn before it.
    return _step(_noise(np.random.default_rng(int(scale * 10)), scale), 1.6)


def _wavy(period: float, amplitude: float, triangle: bool) -> Array:
    x, y = _grid()
    wave = 2 / np.pi * np.arcsin(np.sin(2 * np.pi * y / 20)) if triangle else np.sin(2 * np.pi * y / 28)
    return _step(np.cos(2 * np.pi * (x + amplitude * wave) / period), 4)


def _hatch(angle: float, period: float) -> Array:
    x, y = _grid()
    u = x * np.cos(angle) + y * np.sin(angle)
    return np.maximum(_step(np.cos(2 * np.pi * x / period) - 0.6, 8), _step(np.cos(2 * np.pi * u / period) - 0.6, 8))


def _bricks(width: float, height: float) -> Array:
    x, y = _grid()
    row = np.floor(y / height)
    u, v = (x + (row % 2) * width / 2) % width, y % height
    return 1 - np.minimum(_step(u - 1.5, 3), _step(v - 1.5, 3))


def _gradient(period: float, saw: bool) -> Array:
    x, _ = _grid()
    return (x % period) / period if saw else 0.5 + 0.5 * np.sin(2 * np.pi * x / period)


def _speckle(count: int, radius: float) -> Array:
    rng = np.random.default_rng(count)
    tile = np.zeros((TILE_SIZE, TILE_SIZE), np.float32)
    for cx, cy, r in np.c_[rng.uniform(0, TILE_SIZE, (count, 2)), rng.uniform(0.6, 1.4, count) * radius]:
        centre = (round(cx * 16), round(cy * 16))
        cv2.circle(tile, centre, round(r * 16), color=1.0, thickness=cv2.FILLED, lineType=cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(tile, (0, 0), 0.6)


def _voronoi(count: int, edges: bool) -> Array:
    rng = np.random.default_rng(7 * count)
    points = rng.uniform(0, TILE_SIZE, (count, 2)).astype(np.float32)
    x, y = _grid()
    first = np.full(x.shape, np.inf, np.float32)
    second, owner = first.copy(), np.zeros(x.shape, np.int32)
    for i, (px, py) in enumerate(points):
        d = np.hypot(x - px, y - py)
        nearer = d < first
        second = np.where(nearer, first, np.minimum(second, d))
        owner[nearer], first = i, np.where(nearer, d, first)
    # The two nearest points are equally far on a cell's border: their difference draws it, about three pixels wide.
    return _step(1.6 - (second - first), 3) if edges else rng.uniform(0, 1, count).astype(np.float32)[owner]


def _spiral(arms: int, period: float) -> Array:
    x, y = _grid()
    x, y = x % 64 - 32, y % 64 - 32
    return _step(np.sin(arms * np.arctan2(y, x) + 2 * np.pi * np.hypot(x, y) / period), 4)


def _plaid(period: float, levels: int) -> Array:
    x, y = _grid()
    bands = _step(np.cos(2 * np.pi * x / period), 5) + _step(np.cos(2 * np.pi * y / period), 5)
    if levels == 3:
        bands = bands + 0.7 * _step(np.cos(4 * np.pi * (x + y) / period) - 0.5, 5)
    return bands / bands.max()


def _scales(period: float, diamond: bool) -> Array:
    x, y = _grid()
    if diamond:
        return _step(np.cos(2 * np.pi * x / period) + np.cos(2 * np.pi * y / (1.8 * period)) - 0.2, 5)
    row = np.floor(y / (period / 2))
    u = (x + (row % 2) * period / 2) % period - period / 2
    v = y % (period / 2)
    return np.clip(np.hypot(u, v) / (period * 0.7), 0, 1)


def _grain(rings: bool, period: float) -> Array:
    rng = np.random.default_rng(int(period) + 100 * rings)
    x, y = _grid()
    bend = 3.5 * _noise(rng, 26)  # pixels
    base = np.hypot(x % 128 - 64, (y % 128 - 64) * 0.35) if rings else x * 0.9 + 0.1 * y
    return 0.5 + 0.5 * np.sin(2 * np.pi * (base + bend) / period)


def _marble(veins: bool) -> Array:
    rng = np.random.default_rng(11 + veins)
    turbulence = sum(np.abs(_noise(rng, s)) * s for s in (32.0, 16.0, 8.0)) / 30
    if veins:
        return np.clip(1 - 2.5 * np.abs(_noise(rng, 18)), 0, 1)
    x, _ = _grid()
    return 0.5 + 0.5 * np.sin(x / 9 + 5 * turbulence)


def _triangles(period: float, rhombus: bool) -> Array:
    x, y = _grid()
    # Two families of slanted lines, 60 degrees apart: 0.577 is tan 30.
    u, v = (x + y * 0.577) / period, (x - y * 0.577) / period
    if rhombus:
        return (np.floor(u) % 2 * 0.6 + np.floor(v) % 2 * 0.4).astype(np.float32)
    return (((u % 1) + (v % 1)) > 1).astype(np.float32)


def _signs(period: float, diagonal: bool) -> Array:
    x, y = _grid()
    u, v = x % period - period / 2, y % period - period / 2
    if diagonal:
        u, v = (u + v) / np.sqrt(2), (u - v) / np.sqrt(2)
    arm, width = period * 0.36, period * 0.1
    across = np.minimum(_step(arm - np.abs(u), 3), _step(width - np.abs(v), 3))
    down = np.minimum(_step(arm - np.abs(v), 3), _step(width - np.abs(u), 3))
    return np.maximum(across, down)


def _plain(level: float, grain: float) -> Array:
    rng = np.random.default_rng(int(1000 * level))
    return np.clip(level + grain * rng.standard_normal((TILE_SIZE, TILE_SIZE)), 0, 1)


# One row a family, two variants each: variant 2 f and 2 f + 1 belong to family f, in an order that is part of the world
# (see `shapes.FAMILIES`). Periods and sizes are in tile pixels.
FAMILIES: tuple[tuple[str, Callable[[], Array], Callable[[], Array]], ...] = (
    ("stripes", lambda: _stripes(9, 0.0), lambda: _stripes(14, 0.75)),
    ("checker", lambda: _checker(12, 12), lambda: _checker(10, 30)),
    ("dots", lambda: _dots(10, 3.4, False), lambda: _dots(15, 3.6, True)),
    ("rings", lambda: _rings(8), lambda: _rings(16)),
    ("spokes", lambda: _spokes(6), lambda: _spokes(13)),
    ("clouds", lambda: _clouds(6), lambda: _clouds(16)),
    ("waves", lambda: _wavy(11, 4, False), lambda: _wavy(10, 6, True)),
    ("hatch", lambda: _hatch(np.pi / 2, 11), lambda: _hatch(np.pi / 3, 14)),
    ("bricks", lambda: _bricks(20, 9), lambda: _bricks(9, 24)),
    ("gradient", lambda: _gradient(40, True), lambda: _gradient(26, False)),
    ("speckle", lambda: _speckle(420, 2.4), lambda: _speckle(1500, 1.4)),
    ("voronoi", lambda: _voronoi(420, False), lambda: _voronoi(300, True)),
    ("spiral", lambda: _spiral(1, 11), lambda: _spiral(3, 22)),
    ("plaid", lambda: _plaid(16, 2), lambda: _plaid(24, 3)),
    ("scales", lambda: _scales(14, False), lambda: _scales(11, True)),
    ("grain", lambda: _grain(True, 9), lambda: _grain(False, 7)),
    ("marble", lambda: _marble(False), lambda: _marble(True)),
    ("tiling", lambda: _triangles(13, False), lambda: _triangles(15, True)),
    ("signs", lambda: _signs(13, False), lambda: _signs(15, True)),
    ("plain", lambda: _plain(0.25, 0.0), lambda: _plain(0.5, 0.22)),
)
NUM_TEXTURES = 2 * len(FAMILIES)


def texture_name(texture: int) -> str:
    """Name of a variant, such as `waves-a`."""
    return f"{FAMILIES[texture // 2][0]}-{'ab'[texture % 2]}"


@cache
def texture_tile(texture: int) -> Array:
    """Grey tile of a variant, float32 (TILE_SIZE, TILE_SIZE) in [0, 1]."""
    _, *variants = FAMILIES[texture // 2]
    return np.ascontiguousarray(np.clip(variants[texture % 2](), 0, 1), np.float32)
