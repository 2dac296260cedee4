"""Drawn scenes on disk, for all four tasks: nothing to download, the same bytes for the same seed."""
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from mmprune_ext.atomic import atomic_path
from mmprune_ext.datasets.drawing import CLASSES, SHAPES, Item, Scene, draw_scene
from mmprune_ext.datasets.figures import JOINTS, SKELETON
from mmprune_ext.errors import ConfigError

CROP_SIZE = 64  # pixels of a side of the classification images
CROP_MARGIN = 1.25  # side of a crop, in longer sides of the item's box
SMALLEST = 64  # pixels; in less a figure's face cannot be drawn
VERSION = 1  # of the drawings; another version draws other pictures from the same seed


def write_scenes(root: str | os.PathLike, train: int = 400, val: int = 100,
                 size: tuple[int, int] = (128, 128), seed: int = 0) -> Path:
    """Draw scenes of coloured shapes and stick figures, with ground truth for the four tasks.

    Under `root`, for both splits:

    * `images/<split>/*.png`;
    * `annotations/<split>.json`: COCO json of all items, with boxes and instance masks (RLE);
    * `annotations/person_keypoints_<split>.json`: the stick figures, with COCO's 17 joints;
    * `segmentation/<split>/*.png`: 0 for the background, else the category of the COCO json;
    * `classes/<split>/<class>/*.png`: one item an image, 64 x 64, a class folder each.

    Picture n of a split is a function of `size`, `seed` and n alone. A folder that was written with
    the same settings is kept as it is.

    Args:
        root: folder to make.
        train: number of scenes to train on, at least 5: every class occurs.
        val: number of scenes to validate on, at least 5.
        size: height and width in pixels, at least 64 each.
        seed: seed of all drawings, at least 0.

    Returns:
        `root`.

    Raises:
        ConfigError: an argument is out of range; `root` holds something else, or scenes of other
            settings; it cannot be written.
    """
    root = Path(root)
    _check(train, val, size, seed)
    settings = {'version': VERSION, 'train': train, 'val': val, 'size': list(size), 'seed': seed}
    if root.exists() and _is_written(root, settings):
        return root
    try:
        with atomic_path(root) as temporary:
            for number, (split, count) in enumerate((('train', train), ('val', val))):
                scenes = (draw_scene(np.random.default_rng([seed, number, index]), tuple(size),
                                     index % len(SHAPES)) for index in range(count))
                text = f'drawing {count} scenes to {root} ({split})'
                _write_split(temporary, split, track(scenes, text, total=count))
            (temporary / 'scenes.json').write_text(json.dumps(settings) + '\n')
    except OSError as error:
        raise ConfigError(f'{root}: cannot be written: {error.strerror or error}') from error
    return root


def _check(train: int, val: int, size: tuple[int, int], seed: int) -> None:
    for name, count in (('train', train), ('val', val)):
        if count < len(SHAPES):
            raise ConfigError(f'{name} must be at least {len(SHAPES)}, so that every class occurs; '
                              f'got {count}')
    if len(size) != 2 or min(size) < SMALLEST:
        raise ConfigError(f'size must be height and width of at least {SMALLEST} pixels, got '
                          f'{" x ".join(map(str, size))}')
    if seed < 0:
        raise ConfigError(f'seed must be at least 0, got {seed}')


def _is_written(root: Path, settings: dict[str, Any]) -> bool:
    """Whether `root` holds these scenes; False for an empty folder."""
    if root.is_dir() and not any(root.iterdir()):
        return False
    try:
        found = json.loads((root / 'scenes.json').read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f'{root}: exists and does not hold drawn scenes; remove it or choose '
                          'another folder') from error
    if found != settings:
        raise ConfigError(f'{root}: holds scenes of other settings, {found} instead of {settings}; '
                          'remove it or choose another folder')
    for split in ('train', 'val'):
        images = sum(1 for _ in (root / 'images' / split).glob('*.png'))
        if images != settings[split]:
            raise ConfigError(f'{root}: images/{split} holds {images} of {settings[split]} images; '
                              'remove the folder, and it is drawn again')
    return True


def _write_split(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write all files of one split."""
    for folder in ('images', 'segmentation'):
        (root / folder / split).mkdir(parents=True)
    for name in CLASSES:
        (root / 'classes' / split / name).mkdir(parents=True)
    (root / 'annotations').mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    crops: Counter[int] = Counter()
    for index, scene in enumerate(scenes):
        name = f'{index:05d}.png'
        height, width = scene.image.shape[:2]
        images.append({'id': index + 1, 'file_name': name, 'height': height, 'width': width})
        _write_image(root / 'images' / split / name, scene.image)
        _write_image(root / 'segmentation' / split / name, scene.labels())
        for item in scene.items:
            annotations.append(_annotation(item, len(annotations) + 1, index + 1))
            crop = f'{crops[item.category]:05d}.png'
            crops[item.category] += 1
            _write_image(root / 'classes' / split / CLASSES[item.category] / crop,
                         _crop(scene.image, item.box))
    plain = [{key: value for key, value in annotation.items() if 'keypoints' not in key}
             for annotation in annotations]
    _write_json(root / 'annotations' / f'{split}.json', images, plain,
                [{'id': 1 + number, 'name': name} for number, name in enumerate(CLASSES)])
    _write_json(root / 'annotations' / f'person_keypoints_{split}.json', images,
                [annotation for annotation in annotations if 'keypoints' in annotation],
                [{'id': 1, 'name': CLASSES[0], 'keypoints': JOINTS, 'skeleton': SKELETON}])


def _annotation(item: Item, number: int, image: int) -> dict[str, Any]:
    """Return an item as COCO writes it; a person with keypoints."""
    annotation: dict[str, Any] = {
        'id': number, 'image_id': image, 'category_id': 1 + item.category, 'iscrowd': 0,
        'bbox': item.box, 'area': int(item.mask.sum()), 'segmentation': run_lengths(item.mask)}
    if item.keypoints is not None:
        annotation['keypoints'] = item.keypoints.ravel().round(1).tolist()
        annotation['num_keypoints'] = int((item.keypoints[:, 2] > 0).sum())
    return annotation


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Return a mask as COCO's uncompressed run-length encoding.

    Args:
        mask: bool `(H, W)`.

    Returns:
        `size`, and `counts`: lengths of the runs of 0, 1, 0, ... down the columns, one after the
        other, the first of zeros, perhaps of length 0.
    """
    pixels = np.concatenate([[False], mask.ravel(order='F')])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {'size': list(mask.shape), 'counts': counts.tolist()}


def _crop(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return a square around a box, CROP_SIZE pixels a side; the image's edge is continued."""
    left, top, width, height = box
    scale = CROP_SIZE / (CROP_MARGIN * max(width, height))
    matrix = np.array([[scale, 0, CROP_SIZE / 2 - scale * (left + width / 2)],
                       [0, scale, CROP_SIZE / 2 - scale * (top + height / 2)]])
    return cv2.warpAffine(image, matrix, (CROP_SIZE, CROP_SIZE), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write a PNG; OpenCV itself only returns False when the disk is full."""
    path.write_bytes(cv2.imencode('.png', image)[1].tobytes())


def _write_json(path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]],
                categories: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({'images': images, 'annotations': annotations,
                                'categories': categories}))
