"""A pruning run's model is the user's own: its class, names, attributes, files."""
from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmprune_ext.algorithms import CHIP, DCFF, L1Norm, OneShotAlgorithm, PruneAlgorithm
from mmprune_ext.algorithms.mixing import mixed_class
from mmprune_ext.compact.checkpoint import RUN_UNITS, load_weights, read_checkpoint
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.engine import runs
from mmprune_ext.errors import CheckpointError, ConfigError
from mmprune_ext.registry import MODELS
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.units import Reason

METHODS = {'L1Norm': L1Norm, 'CHIP': CHIP, 'DCFF': DCFF}


def build(config: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**config.model, 'data_preprocessor': config.get('data_preprocessor')})


def dense(config: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return build_architecture(config.model.get('architecture', config.model), config.data_preprocessor)


@pytest.fixture
def config_of(pruning_config):
    """Return a function that makes the config of a run of each method."""
    def make(method: str) -> Config:
        config = pruning_config()
        if method != 'L1Norm':
            config.model.update(type=f'mmprune_ext.{method}', mutator=None)
        prepare_pruning(config)
        if method == 'CHIP':
            config.model.calibration.num_batches = 1
        return config
    return make


# ---------------------------------------------------------------- the class and its names


@pytest.mark.parametrize('method', METHODS)
def test_of_both_classes_with_the_names_of_the_dense_model(config_of, method):
    config = config_of(method)
    model, plain = build(config), dense(config)
    assert isinstance(model, type(plain)) and isinstance(model, METHODS[method])
    assert type(model).__name__ == 'ImageClassifier'
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_children()] == [name for name, _ in plain.named_children()]
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert not plain.state_dict().keys() - model.state_dict().keys()
    # A method that trains keeps its state in buffers of its layers.
    assert all(key.endswith(('.fusion', '.chosen')) for key in added) and bool(added) is (method == 'DCFF')
    assert model.with_neck and model.head.num_classes == 10


def test_methods_of_the_own_class_are_called(pruning_config):
    """train(), a call of the model and a private hook of a user's class work as in the dense model."""
    from mmpretrain.models import ImageClassifier

    class Own(ImageClassifier):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.backbone.conv1.eval()
            return self

        def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor', doubled: bool = False) -> Any:
            result = super().forward(inputs, data_samples, mode)
            return 2 * result if doubled else result

    MODELS.register_module(module=Own)
    try:
        config = pruning_config({'model.architecture.type': 'mmprune_ext.Own'})
        model = build(config).train()
    finally:
        MODELS.module_dict.pop('Own')
    assert model.training and not model.backbone.conv1.training and model.backbone.bn1.training
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    torch.testing.assert_close(model(images, doubled=True), 2 * model(images))
    assert type(model.export_model()) is Own


@pytest.mark.parametrize('method', METHODS)
def test_export_leaves_no_trace(config_of, method):
    config = config_of(method)
    model = build(config)
    if method == 'DCFF':
        model.init_weights()
    exported = model.export_model()
    assert type(exported) is type(dense(config))
    assert vars(exported).keys() == vars(dense(config)).keys()
    assert RUN_UNITS not in exported.state_dict()._metadata['']
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(exported.eval()(images), model.eval()(images), rtol=0, atol=1e-5)
    # A copy: the run goes on without it.
    next(exported.parameters()).data.add_(1)
    assert not torch.equal(next(exported.parameters()), next(model.parameters()))


def test_a_model_that_is_given_changes_in_place(pruning_config):
    config = pruning_config()
    model = dense(config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        run = L1Norm(model, config.model.mutator, 0.5, checkpoint=config.model.checkpoint)
    assert run is model and isinstance(model, L1Norm)
    assert model.backbone.conv1.out_channels == 4


@pytest.mark.parametrize('way', ['copy', 'pickle', 'torch.save'])
def test_copies(config_of, way):
    model = build(config_of('L1Norm'))
    if way == 'copy':
        again = copy.deepcopy(model)
    elif way == 'pickle':
        again = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    assert type(again) is type(model) is mixed_class(L1Norm, type(model).architecture_type)
    assert again.units.to_json() == model.units.to_json() and again.units is not model.units
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again.eval()(images), model.eval()(images), rtol=0, atol=0)
    assert next(again.parameters()).data_ptr() != next(model.parameters()).data_ptr()


def test_copies_share_the_data_of_a_calibration(config_of):
    """A dataloader that the mutator calibrates on is not copied with every average of the model."""
    config = config_of('CHIP')
    loader = object()
    model = build(config)
    model.mutator.calibration = loader
    assert copy.deepcopy(model).mutator.calibration is loader


def test_a_name_that_the_algorithm_needs(pruning_config):
    class Units(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.units = nn.Conv2d(3, 4, 1)

    with pytest.raises(ConfigError, match='architecture: Units has an attribute "units", under which L1Norm keeps'):
        L1Norm(Units(), target_pruning_ratio=0.5)


def test_a_run_is_not_an_architecture(config_of):
    model = build(config_of('L1Norm'))
    with pytest.raises(ConfigError, match=r'the model is that of a L1Norm run already; give what its export_model'):
        DCFF(model, target_pruning_ratio=0.5)


def test_init_cfg_replaces_the_own_one(pruning_config, dense_checkpoint):
    by_checkpoint = build(pruning_config())
    config = pruning_config({'model.checkpoint': None})
    config.model.init_cfg = dict(type='Pretrained', checkpoint=str(dense_checkpoint))
    model = build(config)
    assert torch.equal(model.backbone.layer3[0].conv1.weight, by_checkpoint.backbone.layer3[0].conv1.weight)
    assert model.init_cfg is None  # it does not fit the compact network


@pytest.mark.parametrize('method', ['L1Norm', 'DCFF'])
def test_a_compact_model_brings_its_weights(config_of, pruned, method):
    """The architecture may be compact already: nothing is drawn anew where no checkpoint is given."""
    config = config_of(method)
    config.model.update(architecture=Config.fromfile(pruned / 'compact_config.py').model, checkpoint=None)
    config.model.target_pruning_ratio = {'backbone.layer3.0.conv1': 0.5}
    model = build(config)
    model.init_weights()  # as the Runner does before it trains
    if method == 'DCFF':  # which mixes the filters there
        mixtures = model.backbone.layer3[0].conv1.fusion
        assert bool(((mixtures > 0.01) & (mixtures < 0.99)).any())
    weights = torch.load(pruned / 'compact.pth', weights_only=False)['state_dict']
    assert torch.equal(model.backbone.layer2[0].conv1.weight, weights['backbone.layer2.0.conv1.weight'])
    assert torch.equal(model.head.fc.weight, weights['head.fc.weight'])
    assert model.export_model().backbone.layer3[0].conv1.out_channels < len(weights['backbone.layer3.0.conv1.weight'])


def test_a_model_that_draws_values_whatever_its_init_cfg(pruned):
    """DETR and its kin draw after they have loaded; a compact model's weights are those of its file all the same."""
    from mmpretrain.models import ImageClassifier

    class Draws(ImageClassifier):
        def init_weights(self) -> None:
            super().init_weights()
            nn.init.normal_(self.head.fc.weight)

    MODELS.register_module(module=Draws)
    try:
        config = Config.fromfile(pruned / 'compact_config.py')
        config.model.architecture = 'mmprune_ext.Draws'
        compact = build(config)
        config.model = dict(type='mmprune_ext.L1Norm', architecture=config.model, mutator=dict(demo_inputs=[32, 32]),
                            target_pruning_ratio={'backbone.layer1.0.conv1': 0.5})
        run = build(config)
    finally:
        MODELS.module_dict.pop('Draws')
    want = torch.load(pruned / 'compact.pth', weights_only=False)['state_dict']['head.fc.weight']
    for model in (compact, run):
        model.init_weights()
        assert torch.equal(model.head.fc.weight, want)


@pytest.mark.parametrize('method', METHODS)
def test_settings_of_a_mutator_need_no_type(config_of, method):
    config = config_of(method)
    config.model.mutator = dict(demo_inputs=[32, 32], exclude='backbone.layer1.*')
    assert type(build(config).mutator) is type(build(config_of(method)).mutator)
    assert build(config).units['backbone.layer1.0.conv1'].reason is Reason.EXCLUDED


def test_base_classes_are_mixins():
    """Nothing of theirs stands between a module and its own methods but what is meant to."""
    assert not issubclass(PruneAlgorithm, nn.Module)
    public = {name for kind in (PruneAlgorithm, OneShotAlgorithm) for name in vars(kind) if not name.startswith('_')}
    assert public & set(dir(nn.Module)) == set()


# ---------------------------------------------------------------- weights from elsewhere


def run_of(config: Config, folder: Path) -> Runner:
    """Set up a run as tools/train.py does."""
    config.work_dir = str(folder)
    checkpoint = runs.set_start(config)
    prepare_pruning(config)
    return runs.build_runner(config, 'none', checkpoint)


def test_load_from_names_the_weights_to_prune(pruning_config, dense_checkpoint, tmp_path):
    by_checkpoint = build(pruning_config())
    config = pruning_config({'model.checkpoint': None})
    config.load_from = str(dense_checkpoint)
    runner = run_of(config, tmp_path)
    assert runner._load_from is None
    assert runner.model.units.to_json() == by_checkpoint.units.to_json()
    for key, value in by_checkpoint.state_dict().items():
        assert torch.equal(runner.model.state_dict()[key], value), key


def test_load_from_and_another_checkpoint(pruning_config, tmp_path, dense_checkpoint):
    config = pruning_config({'model.checkpoint': 'other.pth'})
    config.load_from = str(dense_checkpoint)
    with pytest.raises(ConfigError, match=r'load_from \(.*epoch_3.pth\) and model.checkpoint \(other.pth\) both name'):
        run_of(config, tmp_path)


def test_load_from_a_run_goes_on_with_its_structure(pruning_config, pruning_run, tmp_path):
    config = pruning_config({'model.checkpoint': None, 'model.target_pruning_ratio': 0.1})
    config.load_from = str(pruning_run / 'epoch_1.pth')
    runner = run_of(config, tmp_path)
    stored = read_checkpoint(pruning_run / 'epoch_1.pth')
    assert runner.model.units.to_json() == stored['run_units'].to_json()
    assert torch.equal(runner.model.backbone.conv1.weight, stored['state_dict']['backbone.conv1.weight'])


def test_dense_weights_do_not_slip_into_a_pruned_model(pruning_config, dense_checkpoint):
    """The plain Runner only logs shapes that differ, and would train random weights."""
    model = build(pruning_config({'model.checkpoint': None, 'model.from_scratch': True}))
    weights = torch.load(dense_checkpoint, weights_only=False)['state_dict']
    with pytest.raises(CheckpointError, match=r'"backbone.conv1.weight" has shape \(8, 3, 3, 3\), the model '
                       r'\(4, 3, 3, 3\)\. .*give them as model.checkpoint, or as load_from to tools/train.py'):
        model.load_state_dict(weights)


def test_a_runs_weights_in_a_dense_model(pruning_config, pruning_run):
    with pytest.raises(CheckpointError, match='belongs to a pruning run: export it with tools/export_compact.py'):
        load_weights(dense(pruning_config()), pruning_run / 'epoch_1.pth')


# ---------------------------------------------------------------- runs of version 0.1


def as_old(path: Path, target: Path, average: bool = False) -> Path:
    """Write a checkpoint as version 0.1 did: a prefix to all names, the units as a tensor of bytes."""
    stored = torch.load(path, weights_only=False)
    units = stored['state_dict']._metadata[''].pop(RUN_UNITS)
    names = {'state_dict': '', **({'ema_state_dict': 'module.'} if average else {})}
    for section, prefix in names.items():
        weights = OrderedDict(
            (prefix + 'architecture.' + key[len(prefix):] if key.startswith(prefix) else key, value)
            for key, value in stored[section].items() if key != 'steps')
        if 'steps' in stored[section]:
            weights['steps'] = stored[section]['steps']
        weights[prefix + '_extra_state'] = torch.frombuffer(bytearray(units.encode()), dtype=torch.uint8)
        stored[section] = weights
    torch.save(stored, target)
    return target


@pytest.mark.e2e
@pytest.mark.parametrize('method', ['L1Norm', 'DCFF'])
@pytest.mark.parametrize('average', [False, True], ids=['', 'EMA'])
def test_old_runs_resume(config_of, tmp_path, method, average):
    """A run that version 0.1 wrote goes on, and ends with the weights that the same run has today."""
    ends = {}
    for age in ('new', 'old'):
        folder = tmp_path / age
        config = config_of(method)
        if average:
            config.custom_hooks = [*config.custom_hooks, dict(type='EMAHook', momentum=0.1)]
        first = copy.deepcopy(config)
        run_of(first, folder).train()
        if age == 'old':
            as_old(folder / 'epoch_1.pth', folder / 'epoch_1.pth', average)
        config.update(work_dir=str(folder), experiment_name=f'{config.experiment_name}_2')
        config.train_cfg.max_epochs = 2
        checkpoint = runs.set_resume(config, True)
        runs.build_runner(config, 'none', checkpoint).train()
        ends[age] = torch.load(folder / 'epoch_2.pth', weights_only=False)
    for section in ('state_dict', *(['ema_state_dict'] if average else [])):
        assert ends['old'][section].keys() == ends['new'][section].keys()
        for key, value in ends['new'][section].items():
            assert torch.equal(ends['old'][section][key], value), key


def test_an_old_run_of_other_channels(pruning_config, pruning_run, tmp_path):
    old = as_old(pruning_run / 'epoch_1.pth', tmp_path / 'old.pth')
    names = [read_checkpoint(path)['state_dict'].keys() for path in (old, pruning_run / 'epoch_1.pth')]
    assert names[0] == names[1]
    model = build(pruning_config({'model.target_pruning_ratio': 0.2}))
    with pytest.raises(CheckpointError, match='written by a run that pruned other channels'):
        model.load_state_dict(torch.load(old, weights_only=False)['state_dict'])


def test_a_models_own_extra_state_is_left_alone(tmp_path, pruning_config):
    """Only what version 0.1 wrote is taken for it."""
    weights = OrderedDict({'architecture.weight': torch.ones(2), '_extra_state': torch.ones(3)})
    torch.save(dict(state_dict=weights, meta={}), tmp_path / 'own.pth')
    found = read_checkpoint(tmp_path / 'own.pth')
    assert found['state_dict'].keys() == weights.keys() and found['run_units'] is None
