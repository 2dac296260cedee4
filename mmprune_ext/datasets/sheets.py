"""Unpack small images that are stored as tiles of large lossless sheets."""
import os
from pathlib import Path

import numpy as np
from PIL import Image

from mmprune_ext.datasets.folders import write_class_folders
from mmprune_ext.errors import ConfigError

# What mmpretrain's configs call the held-out split, by the name that CIFAR-10 gives it.
SPLIT_FOLDERS = {'train': 'train', 'test': 'val'}


def unpack_sheets(source: str | os.PathLike, root: str | os.PathLike, limit: int | None = None,
                  tile: int = 32) -> Path:
    """Write class folders `root/{train,val}/<class>/<index>.png` from tiled sheets.

    Args:
        source: folder with `labels.npz` (`train_labels`, `test_labels`: int `(N,)`; `classes`:
            names in sorted order) and sheets `train_00.webp` (or .png), `train_01.webp`, ...,
            `test_00.webp`, ...: tiles row by row, the last sheet padded at its end.
        root: folder to make; `test` becomes `val`.
        limit: images of each class and split at most, the first ones; None takes all.
        tile: side of a tile in pixels.

    Returns:
        `root`.

    Raises:
        ConfigError: `source` is incomplete or not of this form; see also write_class_folders.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f'limit must be at least 1, got {limit}')
    splits, classes = {}, []
    for split, folder in SPLIT_FOLDERS.items():
        images, labels, classes = read_sheets(source, split, tile)
        keep = _first(labels, limit)
        splits[folder] = (images[keep], labels[keep])
    return write_class_folders(root, splits, classes)


def read_sheets(source: str | os.PathLike, split: str,
                tile: int = 32) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the images of a split, its labels and the names of the classes.

    Args:
        source: as of `unpack_sheets`.
        split: `train` or `test`.
        tile: side of a tile in pixels.

    Returns:
        uint8 `(N, tile, tile, 3)` RGB, int `(N,)`, and the names in the order of the labels.

    Raises:
        ConfigError: `source` is incomplete or not of this form.
    """
    source = Path(source)
    try:
        with np.load(source / 'labels.npz') as arrays:
            labels = {name: arrays[f'{name}_labels'].astype(int) for name in SPLIT_FOLDERS}
            classes = [str(name) for name in arrays['classes']]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f'{source / "labels.npz"}: cannot be read, or lacks train_labels, '
                          f'test_labels or classes: {error}') from error
    return _read_tiles(source, split, len(labels[split]), tile), labels[split], classes


def _read_tiles(source: Path, split: str, count: int, tile: int) -> np.ndarray:
    """Return the first `count` tiles of a split's sheets, uint8 `(count, tile, tile, 3)` RGB."""
    sheets = []
    for path in sorted([*source.glob(f'{split}_*.webp'), *source.glob(f'{split}_*.png')]):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert('RGB'))
        except OSError as error:
            raise ConfigError(f'{path}: not a readable image: {error}') from error
        rows, rest_rows = divmod(pixels.shape[0], tile)
        columns, rest_columns = divmod(pixels.shape[1], tile)
        if rest_rows or rest_columns:
            raise ConfigError(f'{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels are not whole '
                              f'tiles of {tile} x {tile}')
        tiles = pixels.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
        sheets.append(tiles.reshape(-1, tile, tile, 3))
    found = sum(map(len, sheets))
    if not sheets or found < count:
        raise ConfigError(f'{source}: {len(sheets)} sheets {split}_* hold {found} tiles, '
                          f'labels.npz has {count} labels')
    return np.concatenate(sheets)[:count]


def _first(labels: np.ndarray, limit: int | None) -> np.ndarray:
    """Return the ascending indices of the first `limit` members of each class."""
    if limit is None:
        return np.arange(len(labels))
    members = [np.flatnonzero(labels == label)[:limit] for label in np.unique(labels)]
    return np.sort(np.concatenate(members))
