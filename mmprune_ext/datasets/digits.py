"""Real images that need no download: the handwritten digits that scikit-learn ships.

1797 grey images of 8x8 pixels, ten classes (E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998).
"""
import os
from pathlib import Path

import numpy as np
from PIL import Image

from mmprune_ext.datasets.folders import write_class_folders
from mmprune_ext.errors import ConfigError

SIZE = 32  # pixels: what CIFAR networks take
FULL_SCALE = 16  # grey levels of the original run from 0 to 16


def write_digits(root: str | os.PathLike, val_share: float = 0.2, seed: int = 0) -> Path:
    """Write the digits as 32x32 RGB class folders `root/{train,val}/<digit>/<index>.png`.

    The split is stratified by class and a function of `seed` alone. A folder that is already there
    and complete is kept as it is.

    Args:
        root: folder to make.
        val_share: share of each class that goes to `val`, in (0, 1).
        seed: seed of the split.

    Returns:
        `root`.

    Raises:
        ConfigError: scikit-learn is not installed; `val_share` is out of range; `root` cannot be
            written or holds something else.
    """
    if not 0 < val_share < 1:
        raise ConfigError(f'val_share must be in (0, 1), got {val_share}')
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError('the digits need scikit-learn: pip install scikit-learn') from error
    digits = load_digits()
    images = np.stack([_enlarge(image) for image in digits.images])
    val = stratified(digits.target, val_share, seed)
    splits = {split: (images[mask], digits.target[mask])
              for split, mask in (('train', ~val), ('val', val))}
    return write_class_folders(root, splits, [str(name) for name in digits.target_names])


def stratified(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a bool mask `(N,)` that picks `round(share * n)` of the n members of each class."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        mask[members[:round(share * len(members))]] = True
    return mask


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Return an 8x8 image in [0, 16] as uint8 (SIZE, SIZE, 3), bilinear."""
    grey = Image.fromarray(np.round(image * (255 / FULL_SCALE)).astype(np.uint8))
    return np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert('RGB'))
