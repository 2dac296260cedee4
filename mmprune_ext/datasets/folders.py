"""Write arrays of images as class folders, the layout that mmpretrain's CustomDataset reads."""
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from mmprune_ext.atomic import atomic_path
from mmprune_ext.errors import ConfigError

# split name -> images uint8 (N, H, W, 3) RGB, labels int (N,)
Splits = Mapping[str, tuple[np.ndarray, np.ndarray]]


def write_class_folders(root: str | os.PathLike, splits: Splits, classes: Sequence[str]) -> Path:
    """Write `root/<split>/<class>/<index>.png`, all of it or nothing.

    A `root` that already holds exactly these folders with these numbers of images is left alone, so
    that a second call costs a listing.

    Args:
        root: folder to make.
        splits: images and labels of each split.
        classes: name of each label.

    Returns:
        `root`.

    Raises:
        ConfigError: `classes` are not in sorted order (CustomDataset numbers folders by their
            sorted names); images or labels do not fit; `root` holds something else; it cannot be
            written.
    """
    root = Path(root)
    _check(splits, classes)
    wanted = {(split, classes[label]): count for split, (_, labels) in splits.items()
              for label, count in Counter(labels.tolist()).items()}
    if root.is_dir() and any(root.iterdir()):
        if _counts(root) == wanted:
            return root
        raise ConfigError(f'{root}: exists and is not the data set that was to be written there; '
                          'remove it or choose another folder')
    try:
        with atomic_path(root) as temporary:
            for split, name in wanted:
                (temporary / split / name).mkdir(parents=True)
            tasks = [(split, index) for split, (images, _) in splits.items()
                     for index in range(len(images))]
            for split, index in track(tasks, f'writing {len(tasks)} images to {root}'):
                images, labels = splits[split]
                path = temporary / split / classes[labels[index]] / f'{index:05d}.png'
                Image.fromarray(images[index]).save(path)
    except OSError as error:
        raise ConfigError(f'{root}: cannot be written: {error.strerror or error}') from error
    return root


def _check(splits: Splits, classes: Sequence[str]) -> None:
    if list(classes) != sorted(set(classes)):
        raise ConfigError('class names must be unique and in sorted order, since CustomDataset '
                          f'numbers folders by it; got {list(classes)}')
    for split, (images, labels) in splits.items():
        if (images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8
                or labels.shape != images.shape[:1]):
            raise ConfigError(f'split {split}: expected uint8 images (N, H, W, 3) and N labels, '
                              f'got {images.dtype} {images.shape} and {labels.shape}')
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise ConfigError(f'split {split}: labels must be in [0, {len(classes)}), got '
                              f'{labels.min()} to {labels.max()}')


def _counts(root: Path) -> dict[tuple[str, str], int]:
    """Return the number of PNG files in each `(split, class)` folder under `root`."""
    return {(folder.parent.name, folder.name): sum(1 for _ in folder.glob('*.png'))
            for folder in root.glob('*/*') if folder.is_dir()}
