"""The CHIP configs: the published sparsity strings give the published networks."""
from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmprune_ext.analysis import Complexity, complexity
from mmprune_ext.compact import slim
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.mutators import CHIPMutator
from mmprune_ext.settings import reading
from mmprune_ext.targets.target import RatioTarget, keeps_from_ratios
from mmprune_ext.units import UnitSet, trace_units

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'pruning'
ROWS = json.loads((ROOT / 'tests' / 'data' / 'published_chip.json').read_text())
IDS = [row['config'] for row in ROWS]
EXACT = [row for row in ROWS if 'params' in row]
PRINTED = [row for row in ROWS if 'printed' in row]


pytestmark = pytest.mark.e2e  # networks of many layers are traced and counted


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


def read(name: str) -> Config:
    return reading.read_config(str(next(CONFIGS.glob(f'*/chip/{name}.py'))))


def build(config: Config) -> nn.Module:
    """Build a config's dense model."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return build_architecture(config.model.architecture.to_dict(), config.get('data_preprocessor'))


@functools.cache
def traced(network: str) -> UnitSet:
    config = read(next(name for name in IDS if name.startswith(f'chip_{network}_')))
    return trace_units(build(config), (64, 64) if network == 'resnet50' else (32, 32))


def pruned(name: str, target: RatioTarget | None = None) -> tuple[UnitSet, Complexity]:
    """Return the choices of a config, or of another target for its network, and what is left."""
    config = read(name)
    units = traced(name.split('_')[1]).copy()
    target = config.model.target_pruning_ratio if target is None else target
    for unit, keep in keeps_from_ratios(units, target, CHIPMutator.sparsity_layouts).items():
        units[unit].choose(range(keep))
    size = (224, 224) if 'resnet50' in name else (32, 32)
    return units, complexity(slim(build(config), units), size, flops=False)


def test_every_published_string_has_a_config():
    strings = {path.stem: reading.read_config(str(path)).model.target_pruning_ratio
               for path in (CONFIGS / 'mmcls' / 'chip').glob('*.py')}
    assert strings == {row['config']: row['sparsity'] for row in ROWS}


@pytest.mark.parametrize('row', EXACT, ids=lambda row: row['config'])
def test_exact_counts(row):
    _, found = pruned(row['config'])
    assert (found.params, found.macs) == (row['params'], row['macs'])
    # Of VGG not exactly: that count depends on which kind of layer averages the last map.
    assert found.flops_thop == row.get('flops_thop', found.flops_thop)


@pytest.mark.parametrize('row', [row for row in ROWS if 'stem_whole' in row], ids=lambda row: row['config'])
def test_stem_left_whole(row):
    """With 0 for stage 1, to which the stem is added, the string's first ratio holds to the letter."""
    head, _, rest = row['sparsity'].partition('*2')
    target = f'[0.]*2+{head.partition("+")[2]}{rest}'
    units, found = pruned(row['config'], target)
    assert units['backbone.conv1'].keep == 16
    want = row['stem_whole']
    assert (found.params, found.macs, found.flops_thop) == (want['params'], want['macs'], want['flops_thop'])


@pytest.mark.parametrize('row', PRINTED, ids=lambda row: row['config'])
def test_printed_digits(row):
    """To the last digit that the table prints; it cuts off in some rows and rounds in others."""
    _, found = pruned(row['config'])
    for value, text in zip((found.params, found.flops_thop), row['printed']):
        unit = {'M': 1e6, 'B': 1e9}[text[-1]]
        assert value / unit == pytest.approx(float(text[:-1]), abs=0.01), text
    if 'slip' in row:
        assert found.flops_thop / 1e9 < float(row['slip'][:-1]) - 0.05


@pytest.mark.parametrize(('name', 'stages', 'inner'), [
    ('chip_resnet56_cifar10_s47', (13, 27), [9] * 9 + [19] * 9 + [38] * 9),
    ('chip_resnet110_cifar10_s52', (12, 24), [10] * 18 + [17] * 18 + [35] * 18)])
def test_widths_of_rows_that_no_count_is_known_of(name, stages, inner):
    units, _ = pruned(name)
    assert (units['backbone.conv1'].keep, units['backbone.layer2.0.conv2'].keep) == stages
    assert units['backbone.layer3.0.conv2'].keep == 64
    assert [unit.keep for path, unit in units.items() if path.endswith('.conv1') and 'layer' in path] == inner


@pytest.mark.parametrize('row', ROWS, ids=IDS)
def test_schedule(row):
    config = read(row['config'])
    imagenet = 'in1k' in row['config']
    assert config.train_cfg.max_epochs == 200
    assert config.param_scheduler.type == 'CosineAnnealingLR'
    assert config.optim_wrapper.optimizer == dict(type='SGD', lr=0.01, momentum=0.99,
                                                  weight_decay=1e-4 if imagenet else 1e-3)
    assert config.train_dataloader.batch_size * (8 if imagenet else 1) == 256 == config.auto_scale_lr.base_batch_size
    calibration = config.model.calibration
    assert calibration.num_batches * calibration.dataloader.batch_size == 5 * 128
    loss = config.model.architecture.head.loss
    assert loss.get('label_smooth_val') == (0.1 if imagenet else None)


TASKS = {'mmdet': 'chip_faster-rcnn_r50_fpn_1x_coco', 'mmseg': 'chip_deeplabv3plus_r50-d8_40k_cityscapes-512x1024',
         'mmpose': 'chip_td-hm_res50_8xb64-210e_coco-256x192'}


@pytest.mark.parametrize('library', TASKS)
def test_other_tasks(library):
    """The backbone's layers get the widths that the string gives ResNet-50 on ImageNet."""
    config = read(TASKS[library])
    model: Any = build(config)
    units = trace_units(model, tuple(config.model.mutator.demo_inputs))
    keeps = keeps_from_ratios(units, config.model.target_pruning_ratio, CHIPMutator.sparsity_layouts)
    imagenet, _ = pruned('chip_resnet50_8xb32_in1k_s44')
    for name, unit in imagenet.prunable.items():
        if name != 'backbone.conv1':  # mmseg's has three convolutions
            assert keeps[name] == unit.keep, name
    assert {keep for name, keep in keeps.items() if 'stem' in name or name == 'backbone.conv1'} <= {32, 64}
    assert config.model.calibration.dataloader == config.train_dataloader
