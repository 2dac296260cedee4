"""The ChipNet configs: dense networks of the published table, budgets by override, settings of both parts."""
from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmprune_ext.algorithms import ChipNet
from mmprune_ext.analysis import complexity
from mmprune_ext.cli.arguments import config_arguments
from mmprune_ext.compact.compact_model import build_architecture, postponed_initialisation
from mmprune_ext.engine.search_runner import check_search, check_types, search_part, training_part
from mmprune_ext.settings import reading
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.targets.gate_budget import GateBudget
from mmprune_ext.units import trace_units

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'pruning'
NAMES = sorted(path.stem for path in CONFIGS.glob('*/chipnet/*.py'))
ROWS = json.loads((ROOT / 'tests' / 'data' / 'published_chipnet.json').read_text())
# Convolutions of 64, 128, 256, 512 and 512 channels, each of five sizes, by depth.
BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


def path_of(name: str) -> Path:
    path = next(CONFIGS.glob(f'*/chipnet/{name}.py'))
    folder = path.parts[-3]
    pytest.importorskip({'mmcls': 'mmpretrain'}.get(folder, folder))
    return path


def read(name: str, *options: str) -> Config:
    """Read a config as the tools do, with overrides given as on the command line."""
    parser = argparse.ArgumentParser()
    config_arguments(parser)
    args = parser.parse_args([str(path_of(name)), *(['--cfg-options', *options] if options else [])])
    return reading.read_config(args.config, args.cfg_options)


def build(config: Config) -> nn.Module:
    """Build a config's dense model without drawing its weights."""
    with DefaultScope.overwrite_default_scope(config.default_scope), postponed_initialisation():
        return build_architecture(config.model.architecture.to_dict(), config.get('data_preprocessor'))


def definition(depth: int, normalised: bool) -> tuple[int, int, int]:
    """Return parameters, MACs and FLOPs of a VGG, layer by layer.

    FLOPs are the MACs, and 1 per output of a convolution (its bias) and of an activation layer, 2 per element of
    normalisation, 1 per input of a pooling layer.
    """
    params = macs = extra = 0
    source, size = 3, 224
    for blocks, width in zip(BLOCKS[depth], (64, 128, 256, 512, 512)):
        for _ in range(blocks):
            params += width * source * 9 + width + (2 * width if normalised else 0)
            macs += width * source * 9 * size ** 2
            extra += width * size ** 2 * (4 if normalised else 2)
            source = width
        extra += width * size ** 2
        size //= 2
    for inputs, outputs in ((512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)):
        params += inputs * outputs + outputs
        macs += inputs * outputs
    return params, macs, macs + extra + 2 * 4096


@pytest.mark.e2e
@pytest.mark.parametrize('row', ROWS, ids=lambda row: row['network'])
def test_dense_networks_of_the_published_table(row):
    found = complexity(build(read(row['config'])), (224, 224), flops=False)
    _, depth, *normalised = row['network'].split('-')
    assert (found.params, found.macs, found.flops_mm) == definition(int(depth), normalised == ['BN'])
    for key in ('params', 'macs', 'flops_mm'):
        assert getattr(found, key) == row.get(key, getattr(found, key)), key
    # The table rounds to two decimals; it cuts off none.
    assert [round(found.params / 1e6, 2), round(found.flops_mm / 1e9, 2)] == [float(text) for text in row['printed']]


def test_the_table_is_whole():
    assert len(ROWS) == 8
    assert {row['config'] for row in ROWS} == {name for name in NAMES if 'vgg' in name and 'in1k' in name}
    # Rows with a count of an independent build; of the others the printed digits are known.
    assert [row['network'] for row in ROWS if 'params' not in row] == ['VGG-13', 'VGG-13-BN', 'VGG-19-BN']


@pytest.mark.e2e
@pytest.mark.parametrize('name', NAMES)
def test_architecture_builds(name):
    model = build(read(name))
    assert sum(parameter.numel() for parameter in model.parameters()) > 50_000


@pytest.mark.e2e
def test_channels_before_the_classifier():
    """VGG's classifier is part of its backbone: a channel of the last convolution is 7 x 7 of its inputs."""
    config = read('chipnet_vgg11_8xb32_in1k')
    model = build(config)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    units = trace_units(model, tuple(config.model.mutator.demo_inputs))
    member, = units['backbone.features.11.conv'].consumers
    assert member.module == 'backbone.classifier.0'
    assert member.positions(512).tolist() == [list(range(49 * i, 49 * i + 49)) for i in range(512)]
    assert [name for name, unit in units.items() if not unit.prunable] == ['backbone.classifier.6']
    assert len(units) == 8 + 3


@pytest.mark.parametrize(('options', 'shares'), [
    *((f'model.budget.flops={share}', dict(flops=share)) for share in (0.5, 0.25, 0.125, 0.0625)),
    ('model.budget.flops=None model.budget.params=0.5', dict(params=0.5)),
    ('model.budget._delete_=True model.budget.volume=0.25', dict(volume=0.25)),
    ('model.budget.channels=0.6', dict(flops=0.5, channels=0.6))])
def test_budgets_by_override(options, shares):
    found = GateBudget.from_config(read('chipnet_resnet56_cifar10', *options.split()).model.budget)
    assert found.shares == shares
    # What a backbone is measured by stays with another kind.
    scoped = read('chipnet_td-hm_res50_8xb64-210e_coco-256x192', *options.split()).model.budget
    assert scoped.get('scope') == (None if '_delete_' in options else 'backbone')


def test_weights_of_budgets_by_override():
    budget = read('chipnet_resnet56_cifar10', 'model.budget.params=0.6', 'model.budget.weights.params=2.').model.budget
    assert GateBudget.from_config(budget).weights == dict(flops=1., params=2.)


def test_the_search_of_a_config_begins(tmp_path):
    """At the smallest budget: it is met from below, and no unit is emptied."""
    config = read('chipnet_resnet20_cifar10', 'model.budget.flops=0.0625', 'model.checkpoint=None',
                  f'work_dir={tmp_path}')
    part = search_part(config)
    prepare_pruning(part)
    assert (part.train_dataloader.batch_size, part.train_cfg.max_epochs) == (32, 20)
    assert part.optim_wrapper == config.search.optim_wrapper
    model = MODELS.build({**part.model, 'data_preprocessor': part.data_preprocessor})
    assert isinstance(model, ChipNet) and model.is_searching
    keeps = [unit.keep for unit in model.exported_units.prunable.values()]
    assert min(keeps) >= 1
    assert 0.05 < model.gate_statistics()['hard_flops'] <= 0.0625
    later = training_part(config)
    assert (later.train_dataloader.batch_size, later.train_cfg.max_epochs) == (128, 300)
    assert 'search' not in later and later.optim_wrapper.optimizer.type == 'SGD'


@pytest.mark.parametrize('name', NAMES)
def test_settings_of_the_search(name):
    config = read(name)
    assert config.runner_type == 'mmprune_ext.SearchRunner'
    assert config.model.type == 'mmprune_ext.ChipNet'
    assert config.model.mutator.type == 'mmprune_ext.ChipNetMutator'
    whole = 'mmcls' in str(path_of(name))
    assert config.model.budget == (dict(flops=0.5) if whole else dict(flops=0.5, scope='backbone'))
    search = config.search
    assert search.param_scheduler == []
    assert search.optim_wrapper.optimizer == dict(
        type='AdamW', lr=1e-3 if name.endswith(('cifar10', 'digits')) else 1e-4, weight_decay=1e-3)
    gates, = search.optim_wrapper.paramwise_cfg.custom_keys.items()
    assert gates[0] == 'channel_gates' and gates[1].decay_mult == 0
    config.work_dir = 'nowhere'
    check_search(config)
    check_types(config)
    check_types(search_part(config))


# Images of the training set, images of an iteration, and learning rate of the gates.
REACH = {'chipnet_resnet56_cifar10': (50_000, 32, 1e-3),
         'chipnet_resnet50_8xb32_in1k': (1_281_167, 256, 1e-3),
         'chipnet_faster-rcnn_r50_fpn_1x_coco': (117_266, 16, 1e-3),
         'chipnet_deeplabv3plus_r50-d8_40k_cityscapes-512x1024': (2_975, 8, 1e-3),
         'chipnet_td-hm_res50_8xb64-210e_coco-256x192': (149_813, 512, 5e-3)}


@pytest.mark.parametrize('name', REACH)
def test_gates_can_close(name):
    """Published are 20 steps of the schedule and 28,000 iterations at lr 1e-3: nothing here falls short of them."""
    images, batch, lr = REACH[name]
    config = read(name)
    wrapper = config.search.optim_wrapper
    assert wrapper.optimizer.lr * wrapper.paramwise_cfg.custom_keys.channel_gates.get('lr_mult', 1) == pytest.approx(lr)
    loop = config.search.train_cfg
    iterations = loop.get('max_iters') or loop.max_epochs * math.ceil(images / batch)
    assert iterations * lr >= 28
    step = config.model.get('step_freq', 1)
    if config.model.get('by_epoch', True):
        assert loop.max_epochs / step == 20
    else:
        assert math.ceil(iterations / step) == 20


def test_settings_of_the_second_part():
    config = read('chipnet_resnet56_cifar10')
    assert config.train_cfg.max_epochs == 300
    assert config.optim_wrapper == dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-3))
    assert config.param_scheduler == dict(type='StepLR', by_epoch=True, step_size=30, gamma=0.5)
    assert config.train_dataloader.batch_size == 128 == config.auto_scale_lr.base_batch_size
    for name in (name for name in NAMES if 'in1k' in name):
        # VGG without normalisation keeps the lr of its own schedule, the others take that of the paper.
        assert read(name).optim_wrapper.optimizer.lr == (0.05 if 'bn_' in name or 'resnet' in name else 0.01), name


def test_both_parts_read_the_same_data(tmp_path):
    """The search has batches of its own; what else is overridden holds for both parts."""
    config = read('chipnet_resnet20_cifar10', f'train_dataloader.dataset.data_root={tmp_path}',
                  'train_dataloader.num_workers=0', 'train_dataloader.batch_size=64')
    assert config.search.train_dataloader.dataset.data_root == str(tmp_path)
    assert config.search.train_dataloader == dict(config.train_dataloader, batch_size=32)
    own = read('chipnet_resnet20_cifar10', 'search.train_dataloader.batch_size=16')
    assert own.search.train_dataloader == dict(own.train_dataloader, batch_size=16)
