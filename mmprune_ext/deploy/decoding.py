"""From an image to the inputs of a deployed model, and from its outputs to what they mean, in numpy alone.

`tools/deploy.py` copies this file beside every model that it writes: a program that runs the model imports it from
there, and needs numpy and the runtime, no torch and none of the libraries that the model was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Settings = Mapping[str, Any]
# What became of an image on its way into the model: see `prepare`.
Place = Mapping[str, Any]


def read(folder: str | Path) -> dict[str, Any]:
    """Return the description of a deployed model, the content of ``deploy.json`` in its folder."""
    return json.loads((Path(folder) / 'deploy.json').read_text())


def prepare(image: Array, settings: Settings, box: Sequence[float] | None = None) -> tuple[Array, dict[str, Any]]:
    """Return the input of the model for one image, and the place of the image in it.

    Args:
        image: ``(H, W, 3)``, uint8, channels in the order of OpenCV: blue, green, red.
        settings: Of :func:`read`.
        box: Of one person, ``(left, top, right, bottom)`` in pixels, for pose estimation; all of the image by default.

    Returns:
        ``(1, 3, height, width)``, float32, and what :func:`decode` needs to find back to the image.
    """
    inputs = settings['input']
    if inputs['resize'] == 'person':
        pixels, place = _cut_out(image, inputs, box)
    else:
        pixels, place = _resized(image, inputs)
    if inputs['channels'] == 'rgb':
        pixels = pixels[..., ::-1]
    values = (pixels - np.array(inputs['mean'], np.float32)) / np.array(inputs['std'], np.float32)
    height, width = values.shape[:2]
    full = _full_size(height, width, inputs)
    padded = np.full((*full, values.shape[2]), inputs['pad_value'], np.float32)
    padded[:height, :width] = values
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None]), {**place, 'input': full}


def decode(outputs: Sequence[Array], settings: Settings, places: Sequence[Place]) -> list[dict[str, Any]]:
    """Return what the outputs of the model say about each image of a batch.

    Args:
        outputs: In the order of ``settings['outputs']``, the images in the first dimension.
        settings: Of :func:`read`.
        places: Of :func:`prepare`, one an image.

    Returns:
        One dict an image. Classification: ``label``, ``scores (classes,)``. Detection: ``boxes (n, 4)`` as left, top,
        right and bottom in pixels of the image, ``scores (n,)``, ``labels (n,)``. Segmentation: ``labels (H, W)``.
        Pose: ``keypoints (K, 2)`` as x and y in pixels of the image, ``scores (K,)``.

    Raises:
        ValueError: If the model was written with raw outputs, whose meaning this file does not know.
    """
    decoding = settings['decoding']
    if decoding['type'] not in _DECODERS:
        raise ValueError(f'outputs of this model are raw ({decoding.get("reason", "")}); see settings["outputs"]')
    values = [np.asarray(output) for output in outputs]
    named = dict(zip((output['name'] for output in settings['outputs']), values))
    return [_DECODERS[decoding['type']]({name: value[i] for name, value in named.items()}, decoding, place)
            for i, place in enumerate(places)]


def resize(values: Array, size: Sequence[int], align_corners: bool = False) -> Array:
    """Return a picture ``(H, W)`` or ``(H, W, C)`` in another size ``(h, w)``, by bilinear interpolation.

    Args:
        values: The picture.
        size: Its new height and width.
        align_corners: Whether the centres of the corners stay in the corners, as torch calls it.
    """
    (top, bottom, down), (left, right, along) = (
        _neighbours(old, new, align_corners) for old, new in zip(values.shape[:2], size))
    shape = (-1, 1, *[1] * (values.ndim - 2))
    rows = values[top] + (values[bottom].astype(np.float32) - values[top]) * down.reshape(shape)
    along = along.reshape(1, *shape[:1], *shape[2:])
    return rows[:, left] + (rows[:, right] - rows[:, left]) * along


def _neighbours(old: int, new: int, align_corners: bool) -> tuple[Array, Array, Array]:
    """Return for each new place the two old ones beside it, and the share of the second."""
    places = np.arange(new, dtype=np.float64)
    places = places * ((old - 1) / max(new - 1, 1)) if align_corners else (places + 0.5) * (old / new) - 0.5
    places = np.clip(places, 0, old - 1)
    first = places.astype(int)
    return first, np.minimum(first + 1, old - 1), (places - first).astype(np.float32)


def _resized(image: Array, inputs: Settings) -> tuple[Array, dict[str, Any]]:
    old, (height, width) = image.shape[:2], inputs['size']
    if inputs['resize'] == 'stretch':
        new = (height, width)
    elif inputs['resize'] == 'fit':
        # A model of any size takes a scale of either orientation; one of a fixed size holds what fits.
        wanted = (height, width)
        if inputs['dynamic_size'] and (old[0] > old[1]) != (height > width):
            wanted = (width, height)
        factor = min(wanted[0] / old[0], wanted[1] / old[1])
        new = tuple(int(side * factor + 0.5) for side in old)
    else:  # the shorter edge, before the centre is cut out
        factor = inputs['edge'] / min(old)
        new = tuple(max(int(side * factor + 0.5), inputs['edge']) for side in old)
    pixels = image.astype(np.float32) if new == tuple(old) else np.round(resize(image, new))
    scale = (new[1] / old[1], new[0] / old[0])
    if inputs['resize'] == 'edge':
        top, left = (max(round((side - want) / 2), 0) for side, want in zip(new, (height, width)))
        pixels = pixels[top:top + height, left:left + width]
    return pixels, {'size': pixels.shape[:2], 'scale': scale, 'original': tuple(old)}


def _full_size(height: int, width: int, inputs: Settings) -> tuple[int, int]:
    if not inputs['dynamic_size']:
        return tuple(inputs['size'])
    divisor = inputs['pad_divisor']
    return (-(-height // divisor) * divisor, -(-width // divisor) * divisor)


def _cut_out(image: Array, inputs: Settings, box: Sequence[float] | None) -> tuple[Array, dict[str, Any]]:
    """Return the region of one person in the size of the input, as mmpose's top-down pipeline cuts it out."""
    height, width = inputs['size']
    left, top, right, bottom = (0, 0, image.shape[1], image.shape[0]) if box is None else box
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    side = np.array([right - left, bottom - top], float) * inputs['padding']
    ratio = width / height
    region = np.array([side[0], side[0] / ratio] if side[0] > side[1] * ratio else [side[1] * ratio, side[1]])
    step = region[0] / width  # the same in both directions
    columns = centre[0] + (np.arange(width) - width / 2) * step
    rows = centre[1] + (np.arange(height) - height / 2) * step
    return _sampled(image, rows, columns), {'centre': centre.tolist(), 'region': region.tolist()}


def _sampled(image: Array, rows: Array, columns: Array) -> Array:
    """Return an image at places between its pixels, 0 outside of it."""
    padded = np.pad(image.astype(np.float32), ((1, 1), (1, 1), (0, 0)))
    shares = []
    for places, end in ((rows, padded.shape[0] - 2), (columns, padded.shape[1] - 2)):
        places = np.clip(places + 1, 0, end + 1)
        first = np.minimum(places.astype(int), end)
        shares.append((first, (places - first).astype(np.float32)))
    (top, down), (left, along) = shares
    down, along = down[:, None, None], along[None, :, None]
    upper = padded[top][:, left] * (1 - along) + padded[top][:, left + 1] * along
    lower = padded[top + 1][:, left] * (1 - along) + padded[top + 1][:, left + 1] * along
    return np.round(upper * (1 - down) + lower * down)


def _class(outputs: Mapping[str, Array], decoding: Settings, place: Place) -> dict[str, Any]:
    logits = outputs['logits'].astype(np.float64)
    if decoding['activation'] == 'sigmoid':  # several classes at once
        scores = 1 / (1 + np.exp(-logits))
    else:
        powers = np.exp(logits - logits.max())
        scores = powers / powers.sum()
    return {'label': int(scores.argmax()), 'scores': scores.astype(np.float32)}


def _boxes(outputs: Mapping[str, Array], decoding: Settings, place: Place) -> dict[str, Any]:
    """Return the boxes of one image: the best of each level, then non-maximum suppression a class."""
    found = []
    for level in range(decoding['levels']):
        scores = outputs[f'scores_{level}']
        anchors, labels = np.nonzero(scores > decoding['score_threshold'])
        values = scores[anchors, labels]
        order = np.argsort(-values, kind='stable')[:decoding['per_level'] or None]
        anchors, labels, values = anchors[order], labels[order], values[order]
        if decoding['factors']:
            values = values * outputs[f'factors_{level}'][anchors]
        found.append((outputs[f'boxes_{level}'][anchors], values, labels))
    boxes, scores, labels = (np.concatenate(parts) for parts in zip(*found))
    height, width = place['size']
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32) if decoding['clip'] else boxes
    boxes = boxes / np.tile(np.array(place['scale'], np.float32), 2)
    if decoding['min_size'] >= 0:
        large = ((boxes[:, 2:] - boxes[:, :2]) > decoding['min_size']).all(1)
        boxes, scores, labels = boxes[large], scores[large], labels[large]
    kept = suppress(boxes, scores, labels * (not decoding['class_agnostic']), decoding['iou_threshold'])
    kept = kept[:decoding['max_per_image'] or None]
    return {'boxes': boxes[kept], 'scores': scores[kept], 'labels': labels[kept]}


def suppress(boxes: Array, scores: Array, groups: Array, threshold: float) -> Array:
    """Return the places of the boxes that no better one of their group overlaps by more than a threshold, best first.

    Args:
        boxes: ``(n, 4)`` as left, top, right, bottom.
        scores: ``(n,)``.
        groups: ``(n,)``; boxes of different groups never suppress each other.
        threshold: Intersection over union.
    """
    order = np.argsort(-scores, kind='stable')
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(boxes[rest, 2:], boxes[best, 2:]) - np.maximum(boxes[rest, :2], boxes[best, :2])
        shared = np.maximum(sides, 0).prod(1)
        union = np.maximum(areas[rest] + areas[best] - shared, 1e-12)
        order = rest[(shared / union <= threshold) | (groups[rest] != groups[best])]
    return np.array(kept, int)


def _labels(outputs: Mapping[str, Array], decoding: Settings, place: Place) -> dict[str, Any]:
    height, width = place['size']
    logits = outputs['logits'][:, :height, :width].transpose(1, 2, 0)
    if tuple(place['original']) != (height, width):
        logits = resize(logits, place['original'], decoding['align_corners'])
    if logits.shape[2] > 1:
        return {'labels': logits.argmax(2)}
    return {'labels': (1 / (1 + np.exp(-logits[..., 0])) > decoding['threshold']).astype(int)}


def _heatmaps(outputs: Mapping[str, Array], decoding: Settings, place: Place) -> dict[str, Any]:
    """Return the places of the maxima, moved by a quarter towards the larger neighbour."""
    maps = outputs['heatmaps']
    count, height, width = maps.shape
    rows, columns = np.unravel_index(maps.reshape(count, -1).argmax(1), (height, width))
    scores = maps.reshape(count, -1).max(1)
    keypoints = np.stack([columns, rows], 1).astype(np.float32)
    keypoints[scores <= 0] = -1
    for map_, point in zip(maps, keypoints):
        x, y = point.astype(int)
        slope_x = map_[y, x + 1] - map_[y, x - 1] if 1 < x < width - 1 and 0 < y < height else 0
        slope_y = map_[y + 1, x] - map_[y - 1, x] if 1 < y < height - 1 and 0 < x < width else 0
        point += np.sign([slope_x, slope_y], dtype=np.float32) * 0.25
    return _in_image(keypoints * np.array(decoding['stride'], np.float32), scores, place)


def _two_axes(outputs: Mapping[str, Array], decoding: Settings, place: Place) -> dict[str, Any]:
    """Return the places of the maxima along both axes (SimCC)."""
    axes = outputs['simcc_x'], outputs['simcc_y']
    keypoints = np.stack([axis.argmax(1) for axis in axes], 1).astype(np.float32)
    scores = np.minimum(*(axis.max(1) for axis in axes))
    keypoints[scores <= 0] = -1
    return _in_image(keypoints / decoding['split_ratio'], scores, place)


def _in_image(keypoints: Array, scores: Array, place: Place) -> dict[str, Any]:
    """Return keypoints in pixels of the image; in those of the input for a place that is of no image."""
    if 'region' in place:
        height, width = place['input']
        region = np.array(place['region'])
        keypoints = keypoints / [width, height] * region + place['centre'] - region / 2
    return {'keypoints': keypoints, 'scores': scores}


_DECODERS = {'class': _class, 'boxes': _boxes, 'labels': _labels, 'heatmaps': _heatmaps, 'simcc': _two_axes}
