"""Small images that lie on a device as one tensor: a batch is cut out, cropped and flipped there in one go."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS, FUNCTIONS
from mmpretrain.structures import DataSample
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from mmprune_ext.datasets.sheets import SPLIT_FOLDERS, read_sheets
from mmprune_ext.errors import ConfigError

PAD = 4  # pixels of zeros on each side, out of which training images are cut again


class BatchLabels:
    """The labels of a whole batch in the place of a list of samples, one an image.

    Heads of classifiers concatenate ``gt_label`` of all samples. To make, fill and read 128 samples takes a processor
    milliseconds, a good part of what it takes to launch a training step of a small network.
    """

    def __init__(self, labels: Tensor) -> None:
        self.gt_label = labels

    def __contains__(self, key: str) -> bool:
        return key == 'gt_label'


@FUNCTIONS.register_module()
def whole_batch(batch: Any) -> Any:
    """Return a batch as the dataset gave it: there is nothing to collate."""
    return batch


@DATASETS.register_module()
class DeviceImages(Dataset):
    """Images of a split on a device, given by batches.

    A dataloader of mmengine asks for all indices of a batch at once; give it ``collate_fn=dict(type='whole_batch')``
    and no workers.

    Args:
        root: Folder of sheets with ``labels.npz``, or of class folders ``train`` and ``val``.
        split: ``train`` or ``val``.
        device: Where the images lie.
        augment: Whether images are padded by 4, cropped at random and flipped every other time, as CIFAR is trained.
        samples: Whether a batch has one ``DataSample`` an image, or one :class:`BatchLabels` for all.
        limit: The first so many images; all by default.
    """

    def __init__(self, root: str, split: str, device: str, augment: bool = False, samples: bool = True,
                 limit: int | None = None) -> None:
        images, labels, classes = images_on(root, split, device)
        self.images, self.labels = images[:limit], labels[:limit]
        self.metainfo = {'classes': classes}
        self.augment = augment
        self.samples = samples

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a batch of one image."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return ``inputs``, uint8 ``(N, 3, H, W)`` in the order BGR, as images are read, and ``data_samples``."""
        places = torch.as_tensor(indices, device=self.images.device)
        images, labels = self.images[places], self.labels[places]
        if self.augment:
            images = cropped_and_flipped(images)
        samples = labelled(labels) if self.samples else [BatchLabels(labels)]
        return {'inputs': images, 'data_samples': samples}


def labelled(labels: Tensor) -> list[DataSample]:
    """Return a data sample for each of some labels ``(N,)``, where these are."""
    # Of a scalar the sample would make a number, which waits for a device, and a label on the CPU.
    return [DataSample().set_gt_label(label) for label in labels.split(1)]


def cropped_and_flipped(images: Tensor, pad: int = PAD) -> Tensor:
    """Return images padded with zeros, each cut out at a place of its own, every other one flipped.

    Args:
        images: ``(N, C, H, W)``.
        pad: Pixels on each side.

    Returns:
        The same shape. All that is drawn comes from the default generator of the images' device.
    """
    number, channels, height, width = images.shape
    device = images.device
    padded = functional.pad(images, [pad] * 4)
    above, left = torch.randint(2 * pad + 1, (2, number, 1), device=device)
    rows, columns = above + torch.arange(height, device=device), left + torch.arange(width, device=device)
    columns = torch.where(torch.rand(number, 1, device=device) < 0.5, columns.flip(1), columns)
    image, channel = torch.arange(number, device=device), torch.arange(channels, device=device)
    return padded[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None],
                  columns[:, None, None, :]]


@functools.cache
def images_on(root: str, split: str, device: str) -> tuple[Tensor, Tensor, list[str]]:
    """Return the images of a split on a device, uint8 ``(N, 3, H, W)`` BGR, int64 labels ``(N,)`` and the classes.

    Raises:
        ConfigError: If the folder holds neither sheets nor class folders.
    """
    images, labels, classes = read_images(root, split)
    # Channels in the order in which images are read from files: configs turn it round.
    planes = torch.from_numpy(np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2)))
    return planes.to(device), torch.from_numpy(labels).to(device), classes


@functools.cache
def read_images(root: str, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the images of a split, uint8 ``(N, H, W, 3)`` RGB, int64 labels ``(N,)`` and the classes.

    Raises:
        ConfigError: If the folder holds neither sheets nor class folders.
    """
    if (Path(root) / 'labels.npz').is_file():
        name = next(name for name, folder in SPLIT_FOLDERS.items() if folder == split)
        images, labels, classes = read_sheets(root, name)
        return images, labels.astype(np.int64), classes
    classes = sorted(path.name for path in (Path(root) / split).glob('*') if path.is_dir())
    files = [(number, path) for number, name in enumerate(classes)
             for path in sorted((Path(root) / split / name).glob('*.png'))]
    if not files:
        raise ConfigError(f'{root}: no images: neither labels.npz with its sheets, nor {split}/<class>/*.png; '
                          'name such a folder with --data')
    images = np.stack([np.asarray(Image.open(path).convert('RGB')) for _, path in files])
    return images, np.array([number for number, _ in files], dtype=np.int64), classes
