"""What all measurements on a device share: networks with their weights, images, sizes."""

from __future__ import annotations

import copy
import functools
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from benchmarks.gpu.images import DeviceImages, labelled
from benchmarks.networks import ROOT
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import CheckpointError
from mmprune_ext.settings import reading

SIZE = (32, 32)


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Attributes:
        network: That is looked at.
        batch: Images of a batch.
        batches: Of a calibration.
        repair: Images of a repair.
        tested: Test images that a metric is measured on.
        iterations: Of a short training.
        repeats: Of what is timed.
        passes: Batches of the passes that are timed.
        stripes: A network, by the name that ``benchmarks/networks.py`` has for it, that loses stripes.
        large: A network of images of 224 x 224 for the times of steps and passes, and its batch; none in a quick run.
    """

    network: str
    batch: int
    batches: int
    repair: int
    tested: int
    iterations: int
    repeats: int
    passes: tuple[int, int]
    stripes: str
    large: tuple[str, int] | None

    @property
    def is_quick(self) -> bool:
        """Whether the script is tried, and nothing measured."""
        return self.large is None


FULL = Sizes('resnet56', 128, 3, 512, 2000, 20, 20, (1, 256), 'VGG-16-BN (CIFAR)', ('ResNet-50', 64))
QUICK = Sizes('resnet20', 8, 1, 16, 32, 2, 2, (1, 4), 'ResNet-20 (CIFAR)', None)


class Bench:
    """Networks and images for measurements.

    Args:
        data: Folder of the images (:class:`benchmarks.gpu.images.DeviceImages`).
        weights: Folder of the dense weights, ``resnet56_cifar10.pth`` and the like.
        device: The device.
        sizes: How much is computed.
    """

    def __init__(self, data: str, weights: str, device: str, sizes: Sizes) -> None:
        self.data, self.weights, self.device, self.sizes = data, weights, device, sizes

    def checkpoint(self, network: str | None = None) -> str:
        """Return the path of a network's dense weights.

        Raises:
            CheckpointError: If there is no such file.
        """
        path = Path(self.weights) / f'{network or self.sizes.network}_cifar10.pth'
        if not path.is_file():
            raise CheckpointError(f'{path}: no such file; tools/convert_checkpoint.py writes it from published '
                                  'weights; name its folder with --weights')
        return str(path)

    def config(self, network: str | None = None, device: str = 'cpu', augment: bool = False,
               samples: bool = True) -> Config:
        """Return the config of a dense network on images that lie on a device, of a run that writes next to nothing."""
        return self.with_images(reading.read_config(str(ROOT / self.config_path(network))), device, augment, samples)

    def config_path(self, network: str | None = None) -> str:
        """Return the path of a dense network's config in the checkout."""
        return f'configs/cifar/{network or self.sizes.network}_cifar10.py'

    def with_images(self, config: Config, device: str, augment: bool, samples: bool = True) -> Config:
        """Return a config whose dataloaders give images that lie on a device."""
        images = dict(type='DeviceImages', root=self.data, device=device)
        common = dict(num_workers=0, persistent_workers=False, collate_fn=dict(type='whole_batch'))
        config.train_dataloader = dict(
            batch_size=config.train_dataloader.batch_size, sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(images, split='train', augment=augment, samples=samples), **common)
        for split in ('val', 'test'):
            config[f'{split}_dataloader'] = dict(batch_size=500, sampler=dict(type='DefaultSampler', shuffle=False),
                                                 dataset=dict(images, split='val'), **common)
        config.merge_from_dict({'visualizer.vis_backends': [], 'log_level': 'WARNING',
                                'experiment_name': uuid.uuid4().hex})
        return config

    def dense(self, network: str | None = None) -> nn.Module:
        """Return a dense network with its weights, on the CPU."""
        config = self.config(network)
        model = build_architecture(config.model.to_dict(), config.data_preprocessor)
        load_weights(model, self.checkpoint(network))
        return model

    def pruning(self, kind: str, network: str | None = None, **settings: Any) -> nn.Module:
        """Return a network in the hands of a method, as it was trained before.

        Args:
            kind: The algorithm, such as ``L1Norm``.
            network: The network.
            settings: Of the algorithm.
        """
        config = self.config(network)
        torch.manual_seed(0)
        return MODELS.build({**self.section(config, kind, network, **settings),
                             'data_preprocessor': config.data_preprocessor})

    def section(self, config: Config, kind: str, network: str | None = None, **settings: Any) -> dict[str, Any]:
        """Return the model section of a method."""
        mutator = MODELS.get(f'mmprune_ext.{kind}').mutator_type
        return {'type': f'mmprune_ext.{kind}', 'architecture': config.model.to_dict(),
                'checkpoint': self.checkpoint(network), 'mutator': {'type': mutator, 'demo_inputs': SIZE}, **settings}

    def batches(self, number: int, split: str = 'train') -> list[dict[str, Any]]:
        """Return batches as a dataloader gives them, on the CPU, the same in each call; models change them in place."""
        images = DeviceImages(self.data, split, 'cpu')
        places = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        size = min(self.sizes.batch, len(images) // number)
        return [images.__getitems__(places[first * size:(first + 1) * size].tolist()) for first in range(number)]

    @functools.cached_property
    def normalised(self) -> tuple[Tensor, Tensor]:
        """A training batch as the network sees it, ``(N, 3, 32, 32)`` in float32, and its labels ``(N,)``."""
        batch, = self.batches(1)
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        return self.dense().data_preprocessor(batch, True)['inputs'], labels

    def batch(self, device: str, dtype: torch.dtype) -> tuple[Tensor, list[DataSample]]:
        """Return that batch on a device, with its data samples."""
        inputs, labels = self.normalised
        return inputs.to(device, dtype), labelled(labels.to(device))

    @functools.cached_property
    def tested(self) -> list[dict[str, Any]]:
        """A share of the test images, in batches."""
        count = -(-self.sizes.tested // self.sizes.batch)
        return self.batches(count, 'val')

    def logits(self, model: nn.Module, device: str, dtype: torch.dtype) -> tuple[Tensor, float]:
        """Return what a network gives for the test images, ``(N, 10)`` on the CPU, and its accuracy in per cent."""
        model = copy.deepcopy(model).to(device=device, dtype=dtype).eval()
        found, labels = [], []
        with torch.no_grad():
            for batch in self.tested:
                labels += [sample.gt_label.cpu() for sample in batch['data_samples']]
                found.append(model(model.data_preprocessor(batch)['inputs'], mode='tensor').cpu())
        logits = torch.cat(found)
        return logits, 100 * float((logits.argmax(1) == torch.cat(labels)).double().mean())

    def run_config(self, config: Config, iterations: int, folder: str | Path) -> Config:
        """Return the config of a run of some iterations that neither validates nor writes a checkpoint."""
        config.merge_from_dict({'work_dir': str(folder), 'default_hooks.checkpoint': None})
        config.train_cfg = dict(by_epoch=False, max_iters=iterations, val_interval=iterations + 1)
        config.param_scheduler = []
        for split in ('val', 'test'):
            for key in ('dataloader', 'evaluator', 'cfg'):
                config.pop(f'{split}_{key}')
        return config


def folder() -> tempfile.TemporaryDirectory:
    """Return a folder that is gone after a block."""
    return tempfile.TemporaryDirectory(prefix='mmprune_ext_')
