"""Scenes of coloured shapes and stick figures on textured backgrounds, drawn by numpy and OpenCV."""
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from mmprune_ext.datasets.figures import Figure, paint_figure, random_figure

# In sorted order, since class folders are numbered by it; person first, since COCO's keypoint
# files give people the category 1.
CLASSES = ('person', 'plus', 'ring', 'square', 'star', 'triangle')
SHAPES = CLASSES[1:]
TRIES = 20  # places tried for one item; each try is a little smaller
LEAST_SHOWN = 0.75  # share of every item that others leave visible


@dataclass(frozen=True)
class Item:
    """One thing in a scene.

    Attributes:
        category: index into CLASSES.
        mask: bool `(H, W)`, where it is visible.
        keypoints: float `(17, 3)` for a person: x, y, and COCO's flag (0 not labelled, 1 hidden
            behind another item, 2 visible); `None` for a shape.
    """

    category: int
    mask: np.ndarray
    keypoints: np.ndarray | None

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the mask in pixels."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return (int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1),
                int(rows[-1] - rows[0] + 1))


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 `(H, W, 3)` BGR, and what it shows."""

    image: np.ndarray
    items: list[Item]

    def labels(self) -> np.ndarray:
        """Return a uint8 map `(H, W)`: 0 for the background, 1 + category elsewhere."""
        labels = np.zeros(self.image.shape[:2], dtype=np.uint8)
        for item in self.items:
            labels[item.mask] = 1 + item.category
        return labels


def draw_scene(rng: np.random.Generator, size: tuple[int, int], first_shape: int) -> Scene:
    """Draw a scene of one or two figures and two to four shapes.

    Args:
        rng: source of everything random.
        size: height and width in pixels.
        first_shape: index into SHAPES of a shape that is drawn in any case.
    """
    background = _background(rng, size)
    canvas = background.copy()
    canvas_colour = background.mean(axis=(0, 1))
    others = [0] * int(rng.integers(0, 2)) + [
        1 + int(kind) for kind in rng.integers(0, len(SHAPES), rng.integers(1, 4))]
    # A figure and the wanted shape come first, while there is room.
    wanted = [0, 1 + first_shape, *rng.permutation(others).tolist()]
    masks: list[np.ndarray] = []
    areas: list[int] = []
    drawn: list[tuple[int, Figure | None]] = []
    for category in wanted:
        for attempt in range(TRIES):
            scale = min(size) * 0.95 ** attempt
            colours = tuple(_colour(rng, canvas_colour) for _ in range(3))
            layer, mask = background.copy(), np.zeros(size, dtype=np.uint8)
            figure = _PAINTERS[category](rng, scale, size, layer, mask, colours)
            shown = mask.astype(bool)
            left = [other & ~shown for other in masks]
            if all(rest.sum() >= LEAST_SHOWN * area
                   for rest, area in zip(left, areas, strict=True)):
                canvas[shown] = _shaded(rng, layer, size)[shown]
                masks = [*left, shown]
                areas.append(int(shown.sum()))
                drawn.append((category, figure))
                break
    items = [Item(category, mask, None if figure is None else _keypoints(figure, mask))
             for (category, figure), mask in zip(drawn, masks, strict=True)]
    return Scene(_photographed(rng, canvas), items)


def _keypoints(figure: Figure, mask: np.ndarray) -> np.ndarray:
    """Return `(17, 3)`: places, and visibility by what is left visible of the figure."""
    x, y = np.round(figure.joints).astype(int).T
    flags = np.where(figure.shown, np.where(mask[y, x], 2, 1), 0)
    places = np.where(flags[:, None] > 0, figure.joints, 0)
    return np.concatenate([places, flags[:, None]], axis=1)


def _paint_person(rng: np.random.Generator, scale: float, size: tuple[int, int], canvas: np.ndarray,
                  mask: np.ndarray, colours: tuple[np.ndarray, ...]) -> Figure:
    figure = random_figure(rng, scale * rng.uniform(0.45, 0.75))
    low, high = figure.extent()
    room = np.array(size[::-1]) - 1 - (high - low)
    figure = figure.moved(rng.uniform(0, 1, 2) * np.maximum(room, 0) - low)
    paint_figure(figure, canvas, mask, colours)
    return figure


def _shape_painter(name: str) -> Callable[..., None]:
    """Return a function that paints one kind of shape at a random place, size and angle."""
    def paint(rng: np.random.Generator, scale: float, size: tuple[int, int], canvas: np.ndarray,
              mask: np.ndarray, colours: tuple[np.ndarray, ...]) -> None:
        radius = scale * rng.uniform(0.1, 0.19)
        angle = rng.uniform(0, 2 * np.pi)
        stretch = np.diag([rng.uniform(0.8, 1), 1]) * radius
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        middle = rng.uniform(radius + 1, np.array(size[::-1]) - radius - 2)
        outlines = [np.round(outline @ stretch @ turn + middle).astype(np.int32)
                    for outline in _OUTLINES[name]]
        # Two outlines in one call: the inner one is a hole.
        cv2.fillPoly(canvas, outlines, colours[0].tolist())
        cv2.fillPoly(mask, outlines, 1)
        if rng.random() < 0.5:
            cv2.polylines(canvas, outlines, True, (colours[0] * 0.4).tolist())
    return paint


def _around(corners: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """Return a polygon `(corners, 2)` around the origin, its corners at the radii in turn."""
    angles = np.arange(corners) * 2 * np.pi / corners
    radius = np.resize(radii, corners)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _plus(arm: float = 0.3, reach: float = 0.95) -> np.ndarray:
    """Return the twelve corners of a plus sign."""
    quarter = np.array([[reach, -arm], [reach, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, n) for n in range(4)])


# Outlines of unit radius; what lies in an even number of them is outside.
_OUTLINES = {'plus': [_plus()], 'ring': [_around(32), _around(32, (0.5,))],
             'square': [_around(4)], 'star': [_around(10, (1.0, 0.42))], 'triangle': [_around(3)]}
_PAINTERS = {0: _paint_person, **{1 + n: _shape_painter(name) for n, name in enumerate(SHAPES)}}


def _colour(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Return a strong colour, BGR `(3,)`, that differs from the background's mean."""
    for _ in range(10):
        hsv = np.array([[[rng.integers(0, 180), rng.integers(120, 256), rng.integers(150, 256)]]])
        colour = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)[0, 0].astype(float)
        if np.linalg.norm(colour - background) > 110:
            break
    return colour


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return blotches of a dull colour, uint8 `(H, W, 3)`, some with stripes, with thin lines."""
    hsv = np.array([[[rng.integers(0, 180), rng.integers(10, 110), rng.integers(50, 200)]]])
    image = np.tile(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR).astype(np.float32),
                    (*size, 1))
    for cell, strength in ((24, 22), (6, 9)):
        grid = rng.normal(0, strength, (size[0] // cell + 2, size[1] // cell + 2, 3))
        image += cv2.resize(grid.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        angle, wave = rng.uniform(0, np.pi), 2 * np.pi / rng.uniform(6, 24)
        rows, columns = np.mgrid[:size[0], :size[1]]
        across = np.sin(wave * (rows * np.sin(angle) + columns * np.cos(angle)))
        image += (rng.uniform(6, 16) * across)[..., None].astype(np.float32)
    image = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 5)):
        ends = rng.integers(0, size[::-1], (2, 2))
        colour = rng.integers(0, 256, 3).tolist()
        cv2.line(image, ends[0].tolist(), ends[1].tolist(), colour, 1)
    return image


def _shaded(rng: np.random.Generator, layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the painted layer lit from one side."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
    slope = (np.linspace(-1, 1, size[0], dtype=np.float32)[:, None] * np.float32(np.sin(angle))
             + np.linspace(-1, 1, size[1], dtype=np.float32) * np.float32(np.cos(angle)))
    return np.clip(layer * (1 + strength * slope[..., None]), 0, 255).astype(np.uint8)


def _photographed(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Return the canvas blurred a little, with random contrast, brightness and noise."""
    image = cv2.GaussianBlur(canvas, (3, 3), rng.uniform(0.3, 0.8)).astype(np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(2, 10)
    image = (image - 128) * rng.uniform(0.8, 1.15) + 128 + rng.uniform(-20, 20) + noise
    return np.clip(image, 0, 255).astype(np.uint8)
