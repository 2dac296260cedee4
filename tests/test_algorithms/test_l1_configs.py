"""The L1 configs: the networks that the paper printed, and CIFAR by mmpretrain's dataset classes."""
from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from mmprune_ext.settings.reading import read_config
from mmprune_ext.workflows.costs import Costs, config_costs
from tests.in_process import run_tool
from tests.runs import state

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NETWORKS = {'resnet56': 64, 'resnet110': 64, 'preresnet110': 64, 'wrn28_10': 640, 'vgg16bn': 512}  # inputs of the head

pytestmark = pytest.mark.e2e  # networks of many layers are traced and counted


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def read(name: str) -> Config:
    return read_config(str(CONFIGS / 'pruning' / 'mmcls' / 'l1' / f'l1_{name}.py'))


@functools.cache
def costs(name: str) -> Costs:
    return config_costs(read(name))


def resnet34(kept: Mapping[tuple[int, int], int], third: int = 256, projections: bool = True) -> tuple[int, int]:
    """Return parameters and multiply-accumulates of ResNet-34.

    Args:
        kept: Width of the first convolution of a block, by stage and block from 1; those that are not whole.
        third: Outputs of stage 3.
        projections: Whether the shortcuts' projections count, which the paper leaves out.
    """
    widths, channels = {1: 64, 2: 128, 3: 256, 4: 512}, 64
    params, macs = 64 * (3 * 49 + 2), 64 * 3 * 49 * 112 ** 2
    for stage, blocks in {1: 3, 2: 4, 3: 6, 4: 3}.items():
        outputs, area = third if stage == 3 else widths[stage], (112 // 2 ** stage) ** 2
        for block in range(1, blocks + 1):
            width = kept.get((stage, block), widths[stage])
            params += 9 * width * (channels + outputs) + 2 * (width + outputs)
            macs += 9 * width * (channels + outputs) * area
            if block == 1 and stage > 1 and projections:
                params += (channels + 2) * outputs
                macs += channels * outputs * area
            channels = outputs
    return params + 1000 * (channels + 1), macs + 1000 * channels


def inner(first: int, second: int, third: int) -> dict[tuple[int, int], int]:
    """Return the widths of the layers that the paper prunes: of all but 2, 8, 14, 16, 26, 28, 30 and 32."""
    return {**{(1, block): first for block in (2, 3)}, **{(2, block): second for block in (2, 3)},
            **{(3, block): third for block in (2, 3, 4, 5)}}


# int(64 * 0.7), int(128 * 0.7), int(256 * 0.7); half of 64, int(128 * 0.4), int(256 * 0.6); int(256 * 0.8).
PAPER = [('a', (inner(44, 89, 179), 256), 3.08e9, 15.5, 7.6), ('b', (inner(32, 51, 153), 256), 2.76e9, 24.2, 10.8),
         # 7.5% are printed, but 3.37 of 3.64 is 7.4%.
         ('c', ({}, 204), 3.37e9, 7.4, 7.2)]


@pytest.mark.parametrize(('name', 'kept', 'flops', 'fewer_flops', 'fewer_params'), PAPER, ids=[row[0] for row in PAPER])
def test_resnet34(name, kept, flops, fewer_flops, fewer_params):
    """The paper's table 1, to its last digit."""
    found = costs(f'resnet34_8xb32_in1k_{name}')
    assert (found.dense.params, found.dense.macs) == resnet34({})
    assert (found.compact.params, found.compact.macs) == resnet34(*kept)
    (dense_params, dense_macs), (params, macs) = (resnet34(*sizes, projections=False) for sizes in (({}, 256), kept))
    assert round(dense_params / 1e7, 2) == 2.16 and round(dense_macs / 1e9, 2) == 3.64
    assert round(macs / 1e9, 2) == flops / 1e9
    assert round(100 - 100 * macs / dense_macs, 1) == fewer_flops
    assert round(100 - 100 * params / dense_params, 1) == fewer_params


def test_vgg16_pruned_a():
    """The paper's table 1: 3.13e8 and 2.06e8 FLOPs, 34.2% fewer; 1.5e7 and 5.4e6 parameters, 64.0% fewer."""
    found = costs('vgg16bn_cifar10_a')
    assert round(found.dense.macs / 1e8, 2) == 3.13 and round(found.compact.macs / 1e8, 2) == 2.06
    assert round(100 - 100 * found.compact.macs / found.dense.macs, 1) == 34.2
    assert round(found.dense.params / 1e7, 1) == 1.5 and round(found.compact.params / 1e6, 1) == 5.4
    assert round(100 - 100 * found.compact.params / found.dense.params, 1) == 64.0


def test_vgg16_of_imagenet_prunes_the_same_layers():
    widths = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    half = [32, 64, 128, 128, 256, 256, 256, *[256] * 6]

    def params(channels: list[int]) -> int:
        return (sum(9 * before * after + after for before, after in zip([3, *channels], channels))
                + channels[-1] * 49 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000)
    found = costs('vgg16_8xb32_in1k')
    assert (found.dense.params, found.compact.params) == (params(widths), params(half))


@pytest.mark.parametrize('network', NETWORKS)
def test_cifar100_differs_by_its_classes(network):
    ten, hundred = read(f'{network}_cifar10'), read(f'{network}_cifar100')
    assert hundred.model.target_pruning_ratio == ten.model.target_pruning_ratio
    assert list(hundred.model.target_pruning_ratio) == list(ten.model.target_pruning_ratio)
    assert hundred.model.architecture.head.num_classes == hundred.data_preprocessor.num_classes == 100
    dense = read_config(str(CONFIGS / 'cifar' / f'{network}_cifar100.py'))
    assert dense.model == hundred.model.architecture and dense.train_dataloader == hundred.train_dataloader


@pytest.mark.parametrize('network', ['resnet56', 'vgg16bn'])
def test_cifar100_costs_its_classes(network):
    features = NETWORKS[network]
    for kind in ('dense', 'compact'):
        first, second = (getattr(costs(f'{network}_{data}'), kind) for data in ('cifar10', 'cifar100'))
        assert second.params - first.params == 90 * (features + 1)
        assert second.macs - first.macs == 90 * features


@pytest.mark.parametrize('network', NETWORKS)
def test_cifar10_in_batches_differs_by_its_data(network):
    folders, batches = read(f'{network}_cifar10'), read(f'{network}_cifar10_batches')
    assert batches.model == folders.model
    different = {key for key in folders if folders[key] != batches.get(key)}
    assert different == {'data_preprocessor', 'train_pipeline', 'test_pipeline', 'train_dataloader', 'val_dataloader',
                         'test_dataloader'}


# ---------------------------------------------------------------- data


def write_batches(root: Path, images: np.ndarray, kind: str, labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write `(N, 32, 32, 3)` RGB images as every file of a CIFAR data set, and let mmpretrain take them."""
    import mmpretrain.datasets  # noqa: F401  registers the classes
    dataset = DATASETS.get(f'mmpretrain.{kind}')
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    for listed in ('train_list', 'test_list'):
        monkeypatch.setattr(dataset, listed, [[name, None] for name, _ in getattr(dataset, listed)])
        for name, _ in getattr(dataset, listed):
            content = {'data': images.transpose(0, 3, 1, 2).reshape(len(images), -1), labels: list(range(len(images)))}
            (folder / name).write_bytes(pickle.dumps(content))


def first_input(config: Config) -> tuple[torch.Tensor, int]:
    """Return what a config feeds its network for the first test image, and its label."""
    dataset = DATASETS.build(config.test_dataloader.dataset)
    sample = dataset[0]
    preprocessor = MODELS.build({'type': 'ClsDataPreprocessor', **config.data_preprocessor})
    batch = preprocessor(dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]))
    return batch['inputs'][0], int(sample['data_samples'].gt_label)


def test_an_image_is_the_same_in_a_folder_and_in_a_batch(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    write_batches(tmp_path / 'batches', image[None], 'CIFAR10', 'labels', monkeypatch)
    (tmp_path / 'folder' / 'val' / 'airplane').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'folder' / 'val' / 'airplane' / '0.png'), image[..., ::-1])
    found = []
    for name, root in (('resnet20_cifar10', 'folder'), ('resnet56_cifar10_batches', 'batches')):
        config = read_config(str(CONFIGS / 'cifar' / f'{name}.py'),
                             {'test_dataloader.dataset.data_root': str(tmp_path / root)})
        found.append(first_input(config))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1] == 0
    expected = (image[0, 0].astype(np.float32) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    assert found[0][0][:, 0, 0].numpy() == pytest.approx(expected, abs=1e-5)


def test_cifar100_is_trained_and_pruned(tmp_path, monkeypatch):
    """One iteration of each: mmpretrain's class reads python batches with fine labels."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    write_batches(tmp_path / 'data', images, 'CIFAR100', 'fine_labels', monkeypatch)
    options: list[Any] = ['--cfg-options', 'train_cfg.max_epochs=1', 'default_hooks.checkpoint.save_best=None']
    options += [f'{split}_dataloader.{key}' for split in ('train', 'val', 'test')
                for key in (f'dataset.data_root={tmp_path / "data"}', 'num_workers=0', 'persistent_workers=False')]
    run_tool('train', CONFIGS / 'cifar' / 'resnet56_cifar100.py', '--work-dir', tmp_path / 'dense', *options)
    dense = tmp_path / 'dense' / 'epoch_1.pth'
    assert state(dense)['head.fc.weight'].shape == (100, 64)
    run_tool('train', CONFIGS / 'pruning' / 'mmcls' / 'l1' / 'l1_resnet56_cifar100.py', '--work-dir', tmp_path / 'l1',
             *options, f'model.checkpoint={dense}')
    pruned = state(tmp_path / 'l1' / 'epoch_1.pth')
    assert pruned['head.fc.weight'].shape == (100, 64)
    assert pruned['backbone.layer3.1.conv1.weight'].shape == (44, 64, 3, 3)  # int(64 * 0.7)


def test_cifar100_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_tool('train', CONFIGS / 'cifar' / 'resnet56_cifar100.py', '--work-dir', tmp_path / 'work')
    assert stopped.value.code == 2
    assert 'data_root data/cifar100 does not exist' in capsys.readouterr().err


def test_schedule_of_imagenet():
    """As published: 20 epochs at a constant learning rate of 0.001."""
    for name in ('resnet34_8xb32_in1k_a', 'resnet34_8xb32_in1k_c', 'vgg16_8xb32_in1k'):
        config = read(name)
        assert config.train_cfg.max_epochs == 20 and config.optim_wrapper.optimizer.lr == 0.001
        assert config.param_scheduler == []
