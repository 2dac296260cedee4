"""Compact models from unit files, and exported folders that stand alone."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

import mmprune_ext.mutators.base
import mmprune_ext.units
import mmprune_ext.units.tracing.trace
from mmprune_ext.analysis import complexity
from mmprune_ext.compact import CompactModel, export
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture, load_units, relative_to_dense
from mmprune_ext.compact.export import without_pretrained
from mmprune_ext.errors import CheckpointError, ConfigError, PruningError, UnitFileError
from mmprune_ext.model_config import architecture_of
from mmprune_ext.mutators import L1Mutator
from mmprune_ext.registry import MODELS
from mmprune_ext.units import UnitSet, slim, trace_units
from mmprune_ext.workflows.pruning import export_run, prune_model


@pytest.fixture
def no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError('traced')

    for module in (mmprune_ext.units, mmprune_ext.units.tracing.trace, mmprune_ext.mutators.base):
        monkeypatch.setattr(module, 'trace_units', forbidden)


def build(config: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**config.model, 'data_preprocessor': config.get('data_preprocessor')})


def logits(model: nn.Module) -> torch.Tensor:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(images, None, mode='tensor')


def compact_config(folder: Path, work_dir: Path) -> Config:
    config = Config.fromfile(folder / 'compact_config.py')
    config.work_dir = str(work_dir)
    return config


# ---------------------------------------------------------------- building


def test_nested_settings_are_attributes_too():
    """A config from a plain dict builds models that read `train_cfg.rpn`, as mmdet's do."""
    class Reads(nn.Module):
        def __init__(self, train_cfg: Any) -> None:
            super().__init__()
            self.number = train_cfg.rpn.sampler.num

    MODELS.register_module(module=Reads)
    try:
        settings = {'type': 'mmprune_ext.Reads', 'train_cfg': {'rpn': {'sampler': {'num': 32}}}}
        assert build_architecture(settings).number == 32
        assert type(settings['train_cfg']) is dict
    finally:
        MODELS.module_dict.pop('Reads')


@pytest.mark.usefixtures('no_tracing')
def test_built_from_units_without_tracing(pruned):
    config = Config.fromfile(pruned / 'compact_config.py')
    units = json.loads((pruned / 'units.json').read_text())['units']
    model = build(config)
    assert type(model).__name__ == 'ImageClassifier'
    for path, module in model.named_modules():
        if path in units:
            assert module.weight.shape[0] == units[path]['keep']
    assert any(unit['keep'] < unit['num_channels'] for unit in units.values())


@pytest.mark.parametrize('form', ['path', 'Path', 'content', 'UnitSet'])
def test_forms_of_units(pruned, form):
    path = pruned / 'units.json'
    units = {'path': str(path), 'Path': path, 'content': json.loads(path.read_text()), 'UnitSet': UnitSet.load(path)}
    config = Config.fromfile(pruned / 'compact_config.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = CompactModel(architecture_of(config.model), units[form])
    assert model.backbone.layer1[0].conv1.out_channels == UnitSet.load(path)['backbone.layer1.0.conv1'].keep


def test_round_trip_gives_the_same_outputs(tiny_config, dense_checkpoint, tmp_path):
    config = tiny_config()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})
        load_weights(model, dense_checkpoint)
        mutator = L1Mutator(demo_inputs=(32, 32))
        mutator.prepare(model)
        units = mutator.choose(model, budget=dict(params=0.4, spread='global'))
        slim(model, units)
        exported = export(model, units, config, config.model.to_dict(), tmp_path / 'out', (32, 32))
    again = build(Config.fromfile(exported.config))
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-6)
    assert again.state_dict().keys() == model.state_dict().keys()
    # The Runner calls this before it trains; it must not start from anything else.
    again.init_weights()
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-6)


def test_units_of_a_runs_checkpoint(pruning_run, pruned):
    weights = torch.load(pruning_run / 'epoch_1.pth', weights_only=False)['state_dict']
    for name, unit in load_units(pruning_run / 'epoch_1.pth').prunable.items():
        assert len(weights[f'{name}.weight']) == unit.keep < unit.num_channels
    with pytest.raises(CheckpointError, match=r'compact\.pth is not of a pruning run'):
        load_units(pruned / 'compact.pth')


def test_mask_for_another_number_of_classes(pruned):
    """The structure found on one task serves a model for another: only the classifier differs."""
    config = Config.fromfile(pruned / 'compact_config.py')
    config.model.head.num_classes = 7
    config.model.pop('init_cfg')
    model = build(config)
    assert logits(model).shape == (4, 7)
    units = UnitSet.load(pruned / 'units.json')
    assert model.backbone.conv1.out_channels == units['backbone.conv1'].keep < 8


def test_wrong_classes_of_the_checkpoint(pruned):
    config = Config.fromfile(pruned / 'compact_config.py')
    config.model.head.num_classes = 7
    config.model.init_cfg.strict = True  # as tools/test.py sets it: a test has no use for fresh outputs
    with pytest.raises(CheckpointError, match=r'compact\.pth does not fit ImageClassifier; other shapes: head\.fc'):
        build(config)


def test_units_of_another_model(pruned):
    config = Config.fromfile(pruned / 'compact_config.py')
    config.model.backbone.base_channels = 16
    config.model.head.in_channels = 64
    with pytest.raises(UnitFileError, match=r'units\.json: .*"backbone\.conv1".*another model'):
        build(config)


@pytest.mark.parametrize('init_cfg', [{'type': 'Kaiming'}, {'type': 'Pretrained'}], ids=repr)
def test_wrong_init_cfg(pruned, init_cfg):
    config = Config.fromfile(pruned / 'compact_config.py')
    config.model.init_cfg = init_cfg
    config.model._delete_ = True
    with pytest.raises(ConfigError, match="init_cfg should be dict\\(type='Pretrained'"):
        build(Config(dict(model={k: v for k, v in config.model.items() if k != '_delete_'})))


def test_pretrained_parts_are_forgotten():
    """A compact model starts from its own weights, never from those of the dense backbone."""
    config = dict(type='A', pretrained='x', backbone=dict(type='B', init_cfg=dict(type='Pretrained', checkpoint='y')),
                  heads=[dict(type='C', init_cfg=dict(type='Normal', std=0.1))])
    assert without_pretrained(config) == dict(type='A', backbone=dict(type='B'), heads=[
        dict(type='C', init_cfg=dict(type='Normal', std=0.1))])
    assert 'pretrained' in config  # the argument is left as it is


# ---------------------------------------------------------------- exported folders


def test_the_config_stands_alone(pruned, tmp_path, monkeypatch):
    """The folder can be moved, and mmengine's plain Runner tests and trains from it."""
    expected = Runner.from_cfg(compact_config(pruned, tmp_path / 'a')).test()
    moved = tmp_path / 'elsewhere' / 'model'
    shutil.copytree(pruned, moved)
    text = (moved / 'compact_config.py').read_text()
    assert '_base_' not in text and str(pruned) not in text
    monkeypatch.chdir(tmp_path)
    assert Runner.from_cfg(compact_config(moved, tmp_path / 'b')).test() == expected


@pytest.mark.usefixtures('no_tracing')
def test_plain_runner_fine_tunes(pruned, tmp_path):
    runner = Runner.from_cfg(compact_config(pruned, tmp_path))
    runner.train()
    start = torch.load(pruned / 'compact.pth', weights_only=False)['state_dict']
    end = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    assert start.keys() == end.keys()
    assert all(start[key].shape == end[key].shape for key in start)
    # Six steps at a small rate: the run began with the exported weights, not with new ones.
    key = 'backbone.layer3.0.conv2.weight'
    assert 0 < (start[key] - end[key]).norm() < 0.8 * start[key].norm()


def test_folder_and_report(pruned):
    assert sorted(path.name for path in pruned.iterdir()) == [
        'compact.pth', 'compact_config.py', 'report.json', 'report.txt', 'units.json', 'widths.png']
    model = build(Config.fromfile(pruned / 'compact_config.py'))
    counted = complexity(model, (32, 32))
    report = json.loads((pruned / 'report.json').read_text())
    assert (report['compact']['params'], report['compact']['macs']) == (counted.params, counted.macs)
    assert 0.49 < report['compact']['macs'] / report['dense']['macs'] <= 0.5
    units = UnitSet.load(pruned / 'units.json')
    text = (pruned / 'report.txt').read_text()
    assert all(name in text for name in units.prunable)
    assert f'{counted.params:,}' in text
    assert (pruned / 'widths.png').read_bytes().startswith(b'\x89PNG')
    meta = torch.load(pruned / 'compact.pth', weights_only=False)['meta']
    assert meta['channel_units'] == json.loads((pruned / 'units.json').read_text())
    assert meta['dataset_meta']['classes'][:3] == ('0', '1', '2')


def test_pruning_a_compact_model_again(pruned, tmp_path):
    """Iterative pruning: prune, fine-tune, prune what is left."""
    config = Config.fromfile(pruned / 'compact_config.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        prune_model(config, str(pruned / 'compact.pth'), tmp_path / 'second', 'l1', {}, ratios=0.3,
                    input_size=(32, 32), bn_batches=0)
    # The second folder is complete by itself, and relative to the dense model as the first is.
    again = Config.fromfile(tmp_path / 'second' / 'compact_config.py')
    assert again.model.architecture == 'ImageClassifier'
    rounds = [UnitSet.load(folder / 'units.json') for folder in (pruned, tmp_path / 'second')]
    for name, unit in rounds[1].prunable.items():
        assert unit.keep == int(rounds[0][name].keep * 0.7)
        assert set(unit.indices) < set(rounds[0][name].indices)
    report = json.loads((tmp_path / 'second' / 'report.json').read_text())
    assert report['dense'] == json.loads((pruned / 'report.json').read_text())['dense']
    first, second = build(config), build(again)
    # The filters of the second round are those of the first.
    name = 'backbone.layer3.0.conv1'
    places = [rounds[0][name].indices.index(i) for i in rounds[1][name].indices]
    torch.testing.assert_close(second.get_submodule('backbone.layer3.0.bn1').bias,
                               first.get_submodule('backbone.layer3.0.bn1').bias[places])
    again.work_dir = str(tmp_path / 'work')
    assert 'accuracy/top1' in Runner.from_cfg(again).test()


def test_pruning_again_for_another_number_of_classes(pruned, tmp_path):
    """Prune, fine-tune for other classes, prune what is left."""
    config = Config.fromfile(pruned / 'compact_config.py')
    config.model.head.num_classes = 12
    torch.save(dict(state_dict=build(config).state_dict()), tmp_path / 'tuned.pth')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        prune_model(config, str(tmp_path / 'tuned.pth'), tmp_path / 'second', 'l1', {}, ratios=0.3,
                    input_size=(32, 32), bn_batches=0)
    again = build(Config.fromfile(tmp_path / 'second' / 'compact_config.py'))
    assert logits(again).shape == (4, 12)
    units = UnitSet.load(tmp_path / 'second' / 'units.json')
    assert units['head.fc'].num_channels == 12
    assert again.backbone.conv1.out_channels == units['backbone.conv1'].keep


def test_units_that_stay_whole_are_those_of_the_dense_model(pruned, tiny_config):
    """Their places are told in the dense model's layers, not in those of the model that the second round traced."""
    first = UnitSet.load(pruned / 'units.json')
    compact = dict(type='mmprune_ext.CompactModel', architecture=tiny_config().model, units=first.copy())
    second = UnitSet([replace(unit, num_channels=unit.keep, indices=None, producers=[
        replace(member, start=3) for member in unit.producers]) for unit in first.values()])
    _, joined = relative_to_dense(compact, second)
    assert joined['head.fc'].producers == first['head.fc'].producers
    assert joined.to_json() == first.to_json()


def test_rounds_of_different_units(pruned, tiny_config, classifier):
    compact = dict(type='mmprune_ext.CompactModel', architecture=tiny_config().model, units=pruned / 'units.json')
    other = L1Mutator(demo_inputs=(32, 32)).prepare(classifier(dict(type='mmprune_ext.CifarResNet', depth=14), 64))
    with pytest.raises(UnitFileError, match='unit "backbone.conv1" of the compact model is not a unit of the dense'):
        relative_to_dense(compact, other)


def test_second_export_replaces_the_first(pruning_run, tmp_path):
    config = Config.fromfile(pruning_run / 'run.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for _ in range(2):
            exported = export_run(config, str(pruning_run / 'epoch_1.pth'), tmp_path / 'out', (32, 32))
    assert exported.checkpoint.is_file()
    assert not [path for path in (tmp_path / 'out').iterdir() if path.name.startswith('.')]


def test_exported_run_equals_the_trained_network(pruning_run, pruning_config, tmp_path):
    checkpoint = torch.load(pruning_run / 'epoch_1.pth', weights_only=False)['state_dict']
    config = Config.fromfile(pruning_run / 'run.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        run = MODELS.build({**pruning_config().model, 'data_preprocessor': config.data_preprocessor})
        run.load_state_dict(checkpoint)
        exported = export_run(config, str(pruning_run / 'epoch_1.pth'), tmp_path / 'out', (32, 32))
    torch.testing.assert_close(logits(build(Config.fromfile(exported.config))), logits(run), rtol=0, atol=1e-6)


def test_hooks_of_the_pruning_run_stay_behind(pruning_run, tmp_path):
    config = Config.fromfile(pruning_run / 'run.py')
    config.custom_hooks = [*config.custom_hooks, dict(type='mmprune_ext.PruningHook')]
    config.load_from = 'somewhere.pth'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        exported = export_run(config, str(pruning_run / 'epoch_1.pth'), tmp_path / 'out', (32, 32))
    written = Config.fromfile(exported.config)
    assert [hook.type for hook in written.custom_hooks] == ['mmprune_ext.EpochSeedHook']
    assert written.get('load_from') is None and written.get('work_dir') is None
    assert written.model.type == 'mmprune_ext.CompactModel'


def test_output_folder_that_cannot_be_written(pruning_run, tmp_path):
    (tmp_path / 'file').touch()
    config = Config.fromfile(pruning_run / 'run.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'), pytest.raises(PruningError, match='cannot write'):
        export_run(config, str(pruning_run / 'epoch_1.pth'), tmp_path / 'file' / 'out', (32, 32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


class Gates(nn.Module):
    """Outputs of one layer that go different ways, each of them a unit of its own."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)
        self.first, self.second = nn.Conv2d(1, 5, 1), nn.Conv2d(2, 6, 1)
        self.last = nn.Conv2d(11, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        gates = self.gate(self.stem(images).relu())
        return self.last(torch.cat([self.first(gates[:, :1]), self.second(gates[:, 1:])], 1))


@pytest.mark.parametrize('classes', [4, 7])
def test_a_layer_whose_outputs_are_several_units(classes, tmp_path):
    dense = Gates()
    units = trace_units(dense, (8, 8))
    assert len({unit.name for unit in units.values() for m in unit.producers if m.module == 'gate'}) > 1
    units['stem'].choose([0, 2, 5])
    torch.save(dict(state_dict=slim(dense, units).state_dict()), tmp_path / 'compact.pth')
    model = CompactModel(Gates(classes), units, dict(type='Pretrained', checkpoint=tmp_path / 'compact.pth'))
    assert model.stem.out_channels == 3 and model.last.out_channels == classes
    for key, value in dense.state_dict().items():
        if not key.startswith('last') or classes == 4:
            assert torch.equal(model.state_dict()[key], value), key
