"""Runs that start from a channel-unit file: of the very model, or of one for another data set."""
from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import mmprune_ext.mutators.base
from mmprune_ext.algorithms import PruneAlgorithm
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.engine import runs
from mmprune_ext.errors import UnitFileError
from mmprune_ext.registry import MODELS
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.units import UnitSet
from mmprune_ext.workflows.costs import config_costs
from tests.kept_rows import assert_kept, kept_rows
from tests.runs import state

DEEP_HEAD = dict(type='StackedLinearClsHead', num_classes=12, in_channels=32, mid_channels=[16])
DEEP_READER = 'head.layers.0.fc.weight'


def build(config: Config) -> PruneAlgorithm:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


def kept_in(path: Path) -> dict[str, list[int]]:
    return {name: unit['indices'] for name, unit in json.loads(path.read_text())['units'].items() if unit['prunable']}


@pytest.fixture
def transfer(pruning_config, pruned, tmp_path) -> Callable[..., tuple[Config, Path]]:
    """Return a function that sets up a run on a model with another head, and writes weights of that model."""
    def make(method: str = 'L1Norm', head: dict[str, Any] | None = None, **options: Any) -> tuple[Config, Path]:
        config = pruning_config()
        head = {**config.model.architecture.head, 'num_classes': 12} if head is None else head
        architecture = {**config.model.architecture, 'head': head}
        torch.manual_seed(1)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            weights = build_architecture(architecture, config.data_preprocessor).state_dict()
        torch.save(dict(state_dict=weights), tmp_path / 'other.pth')
        config.model = dict(
            type=f'mmprune_ext.{method}', architecture=architecture, units=str(pruned / 'units.json'),
            mutator=dict(type=f'mmprune_ext.{method.removesuffix("Norm")}Mutator', demo_inputs=[32, 32]),
            checkpoint=str(tmp_path / 'other.pth'), **options)
        return config, tmp_path / 'other.pth'
    return make


@pytest.fixture
def forbid(monkeypatch) -> Callable[[str], None]:
    """Return a function that makes a step of pruning an error."""
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError('called')

    def make(step: str) -> None:
        target = mmprune_ext.mutators.base if step == 'trace_units' else mmprune_ext.mutators.base.ChannelMutator
        monkeypatch.setattr(target, step, never)
    return make


@pytest.mark.parametrize(('method', 'head'), [
    ('L1Norm', None), ('L1Norm', DEEP_HEAD), ('CHIP', None), ('ChipNet', None)
], ids=['L1', 'L1, another head', 'CHIP', 'ChipNet'])
def test_a_model_with_other_outputs(transfer, pruned, forbid, method, head):
    """The dense weights of the channels that the file names; nothing is scored or searched, CHIP needs no data."""
    forbid('choose')
    config, weights = transfer(method, head)
    model = build(config)
    assert_kept(model.state_dict(), state(weights), kept_in(pruned / 'units.json'),
                DEEP_READER if head else 'head.fc.weight')
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape[0] == 2
    assert model.units['backbone.layer2.0.conv1'].indices == kept_in(pruned / 'units.json')['backbone.layer2.0.conv1']


def test_the_very_model_is_not_traced(pruning_config, pruned, dense_checkpoint, forbid):
    forbid('trace_units')
    forbid('choose')
    model = build(pruning_config({'model.units': str(pruned / 'units.json')}))
    assert_kept(model.state_dict(), state(dense_checkpoint), kept_in(pruned / 'units.json'))
    assert model.units.to_json() == json.loads((pruned / 'units.json').read_text())


@pytest.mark.parametrize('form', ['dict', 'set', 'checkpoint'])
def test_the_structure_of_a_run_goes_without_weights(pruning_config, pruned, pruning_run, forbid, tmp_path, form):
    """They are those of the run's checkpoint; the dense ones may be gone."""
    forbid('trace_units')
    config = pruning_config({'model.checkpoint': str(tmp_path / 'gone.pth')})
    units = UnitSet.load(pruned / 'units.json')
    config.model.units = {'dict': units.to_json(), 'set': units, 'checkpoint': str(pruning_run / 'epoch_1.pth')}[form]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build({**config.model.to_dict(), 'data_preprocessor': config.data_preprocessor})
    assert model.backbone.conv1.out_channels == model.units['backbone.conv1'].keep < 8


def test_from_scratch_the_architecture_initialises(transfer):
    config, _ = transfer(from_scratch=True)
    config.model.checkpoint = None
    config.model.architecture.backbone.init_cfg = [dict(type='Constant', layer='Conv2d', val=0.25)]
    model = build(config)
    assert set(model.backbone.layer3[0].conv1.weight.unique().tolist()) == {0.25}
    assert model.backbone.layer3[0].conv1.weight.shape == (model.units['backbone.layer3.0.conv1'].keep,
                                                           model.units['backbone.layer2.0.conv2'].keep, 3, 3)


def numbers_of(path: Path, target: Path) -> str:
    """Write a copy of a channel-unit file without the indices."""
    content = json.loads(path.read_text())
    for unit in content['units'].values():
        unit.pop('indices', None)
    target.write_text(json.dumps(content))
    return str(target)


def test_numbers_prune_no_trained_weights(pruning_config, pruned, dense_checkpoint, tmp_path):
    """They build a network that has yet to get its weights."""
    units = numbers_of(pruned / 'units.json', tmp_path / 'numbers.json')
    pretrained = dict(type='Pretrained', checkpoint=str(dense_checkpoint))
    for options in ({}, {'model.checkpoint': None, 'model.architecture.init_cfg': pretrained}):
        with pytest.raises(UnitFileError, match=r'numbers\.json: unit "backbone\.conv1" keeps \d of 8 channels, but'):
            build(pruning_config({'model.units': units, **options}))
    model = build(pruning_config({'model.units': units, 'model.checkpoint': None, 'model.from_scratch': True}))
    assert model.backbone.conv1.out_channels == len(kept_in(pruned / 'units.json')['backbone.conv1'])


def test_load_from_names_the_dense_weights(transfer, pruned, tmp_path):
    config, weights = transfer()
    config.update(load_from=str(weights), work_dir=str(tmp_path / 'work'))
    config.model.checkpoint = None
    assert runs.set_start(config) is None
    prepare_pruning(config)
    runner = runs.build_runner(config, 'none')
    assert runner._load_from is None
    assert_kept(runner.model.state_dict(), state(weights), kept_in(pruned / 'units.json'))


def test_load_from_of_a_run_stays_beside_the_file(pruning_config, pruning_run, pruned):
    config = pruning_config({'model.units': str(pruned / 'units.json')})
    config.load_from = str(pruning_run / 'epoch_1.pth')
    assert runs.set_start(config) is None
    assert config.model.units == str(pruned / 'units.json') and config.load_from == str(pruning_run / 'epoch_1.pth')
    config.model.checkpoint = None  # the weights are those of the run, which the Runner loads
    runs.set_start(config)
    assert config.model.from_scratch and build(config).backbone.conv1.out_channels < 8


def test_trained_and_resumed(transfer, pruned, tmp_path, forbid):
    """A run that is resumed stands on its own checkpoint: neither file nor dense weights are needed."""
    config, weights = transfer()
    units = tmp_path / 'units.json'
    units.write_bytes((pruned / 'units.json').read_bytes())
    config.model.units = str(units)
    config.work_dir = str(tmp_path / 'work')
    again = copy.deepcopy(config)
    runs.build_runner(config, 'none').train()
    units.unlink()
    weights.unlink()
    forbid('trace_units')
    again.update(experiment_name=f'{again.experiment_name}_2', train_cfg=dict(max_epochs=2))
    runs.set_resume(again, True)
    runs.build_runner(again, 'none').train()
    first, second = state(tmp_path / 'work' / 'epoch_1.pth'), state(tmp_path / 'work' / 'epoch_2.pth')
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in second.items()}
    assert not torch.equal(first['head.fc.weight'], second['head.fc.weight'])


def test_filters_that_are_mixed(transfer, pruned):
    """DCFF starts from the dense filters; its convolutions keep all of them, and lose inputs."""
    config, weights = transfer('DCFF')
    model = build(config)
    kept = kept_in(pruned / 'units.json')
    dense = state(weights)
    own = model.state_dict()['backbone.layer3.0.conv1.weight']
    assert torch.equal(own, dense['backbone.layer3.0.conv1.weight'][:, kept['backbone.layer2.0.conv2']])
    model.init_weights()
    want = kept_rows(dense, kept)
    assert {key: value.shape for key, value in model.export_model().state_dict().items() if key in want} == {
        key: value.shape for key, value in want.items()}


def test_costs(transfer):
    config, _ = transfer()
    model = build(config)
    costs = config_costs(config, (32, 32))
    assert costs.compact.params == sum(p.numel() for p in model.parameters()) < costs.dense.params
