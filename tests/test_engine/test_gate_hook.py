"""ChipNet in mmengine's Runner: schedule, logs, pictures, validation, averaging, resume, two ranks."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mmcv
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmprune_ext.engine import runs
from mmprune_ext.errors import ConfigError
from mmprune_ext.scores.heaviside import GateSchedule
from mmprune_ext.settings import completion, reading
from mmprune_ext.workflows.pruning import export_run
from tests.runs import differing, state, train

GATE = 'channel_gates.gates.backbone/layer2/0/conv1.psi'


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


@pytest.fixture
def search_config(tiny_config, dense_checkpoint, tmp_path) -> Callable[..., Config]:
    """Return a function that makes the config of a search, as tools/train.py completes it."""
    def make(options: Mapping[str, Any] | None = None, prepare: bool = True, **model: Any) -> Config:
        config = tiny_config({'work_dir': str(tmp_path / 'run'), 'train_cfg.max_epochs': 3,
                              'train_cfg.val_interval': 3})
        config.optim_wrapper = dict(
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-3),
            paramwise_cfg=dict(custom_keys={'channel_gates': dict(lr_mult=100.0, decay_mult=0.0)}))
        config.model = dict(type='mmprune_ext.ChipNet', architecture=config.model, budget=dict(params=0.5),
                            checkpoint=str(dense_checkpoint), **model)
        config.merge_from_dict(dict(options or {}))
        if prepare:
            completion.prepare_pruning(config)
        return config
    return make


class Watch(Hook):
    """Note the gates' sharpness and one of them after each iteration, from inside."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.sharpness: list[tuple[float, float, float]] = []
        self.gates: list[torch.Tensor] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        gates = runner.model.channel_gates
        self.sharpness.append((gates.beta, gates.gamma, gates.steepness))
        self.gates.append(runner.model.get_parameter(GATE).detach().clone())


def watched(config: Config) -> Watch:
    watch = Watch()
    train(config, watch)
    return watch


# ---------------------------------------------------------------- schedule


def test_sharpens_by_epoch(search_config):
    """Six iterations an epoch, all as sharp; the gates move with every one of them."""
    watch = watched(search_config())
    assert watch.sharpness == [GateSchedule().at(epoch) for epoch in range(3) for _ in range(6)]
    assert all(not torch.equal(a, b) for a, b in zip(watch.gates, watch.gates[1:]))


def test_sharpens_every_other_epoch(search_config):
    watch = watched(search_config(step_freq=2))
    assert watch.sharpness == [GateSchedule().at(step) for step in (0, 0, 1) for _ in range(6)]


@pytest.mark.parametrize('loop', [dict(by_epoch=True, max_epochs=2), dict(by_epoch=False, max_iters=12)],
                         ids=['epochs', 'iterations'])
def test_sharpens_by_iteration(search_config, loop):
    config = search_config(by_epoch=False, step_freq=5, schedule=dict(beta=(1.0, 1.0, 6.0)))
    config.train_cfg = dict(val_interval=100, **loop)
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=12, by_epoch=False)
    config.default_hooks.logger.log_metric_by_epoch = False
    watch = watched(config)
    assert [beta for beta, _, _ in watch.sharpness] == [1.0] * 5 + [2.0] * 5 + [3.0] * 2
    records = json.loads((Path(config.work_dir) / 'gates.json').read_text())
    assert [record['time'] for record in records] == [5, 10, 12]


# ---------------------------------------------------------------- what is logged and drawn


def test_logs_and_pictures(search_config, tmp_path):
    config = search_config({'default_hooks.logger.interval': 3})
    config.visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
    runner = train(config)
    scalars = [json.loads(line) for line in next(
        (tmp_path / 'run').glob('*/vis_data/scalars.json')).read_text().splitlines()]
    first = scalars[0]
    assert {'task_loss', 'loss', 'loss_budget', 'loss_crispness', 'beta', 'gamma', 'steepness', 'soft_params',
            'hard_params', 'crisp', 'learned'} <= first.keys()
    assert first['hard_params'] <= 0.5
    assert (first['beta'], first['gamma'], first['steepness']) == (1.0, 2.0, 10.0)
    records = json.loads((tmp_path / 'run' / 'gates.json').read_text())
    assert [record['time'] for record in records] == [1, 2, 3]
    assert all(sum(record['histogram']) == 112 for record in records)
    last = runner.model.gate_statistics()
    assert {key: records[-1]['statistics'][key] for key in last} == last
    assert mmcv.imread(str(tmp_path / 'run' / 'gates.png')).std() > 10
    assert len(list((tmp_path / 'run').glob('*/vis_data/vis_image/channel_gates_*.png'))) == 3


def test_validation_is_of_the_network_as_it_would_be_pruned(search_config, tmp_path):
    """And, when asked for, of the soft network too; both as the models give it."""
    config = search_config({'custom_hooks': [dict(type='mmprune_ext.GateHook', soft_validation=True)]})
    runner = train(config)
    hard, soft = (runner.message_hub.get_scalar(f'val/{name}').current()
                  for name in ('accuracy/top1', 'soft/accuracy/top1'))
    exported = export_run(config, str(tmp_path / 'run' / 'epoch_3.pth'), tmp_path / 'out')
    compact = reading.read_config(str(exported.config))
    compact.work_dir = str(tmp_path / 'test')
    assert runs.build_runner(compact, 'none').test()['accuracy/top1'] == pytest.approx(hard)
    with runner.model.soft_evaluation():
        assert runner.val()['accuracy/top1'] == pytest.approx(soft)
    assert 'soft/accuracy/top1' in next((tmp_path / 'run').glob('*/*.log')).read_text()


def test_units_of_the_end_are_written(search_config, tmp_path):
    runner = train(search_config())
    written = json.loads((tmp_path / 'run' / 'units.json').read_text())['units']
    exported = runner.model.exported_units
    assert {name: unit.get('indices') for name, unit in written.items()} == {
        name: unit.indices for name, unit in exported.items()}
    # The checkpoint is one of a search, which goes on: nothing is chosen in it.
    units = torch.load(tmp_path / 'run' / 'epoch_3.pth', weights_only=False)['meta']['channel_units']['units']
    assert not any('indices' in unit for unit in units.values())


# ---------------------------------------------------------------- resume, averages, ranks


def test_resumed_search_is_the_uninterrupted_one(search_config, tmp_path):
    train(search_config({'work_dir': str(tmp_path / 'whole')}))
    config = search_config({'work_dir': str(tmp_path / 'broken')})
    config.resume, config.load_from = True, str(tmp_path / 'whole' / 'epoch_2.pth')
    config.model.units = config.load_from
    train(config)
    whole, broken = (tmp_path / name for name in ('whole', 'broken'))
    assert differing(state(whole / 'epoch_3.pth'), state(broken / 'epoch_3.pth')) == []
    for name in ('units.json', 'gates.json'):
        assert (whole / name).read_text() == (broken / name).read_text()


def test_resumed_while_gates_settle(search_config, tmp_path):
    """In the second of three epochs it is decided; what was decided is in the checkpoint."""
    train(search_config({'work_dir': str(tmp_path / 'whole')}, settle=0.6))
    stored = torch.load(tmp_path / 'whole' / 'epoch_2.pth', weights_only=False)
    assert bool(stored['state_dict']['channel_gates.decided'])
    config = search_config({'work_dir': str(tmp_path / 'again')}, settle=0.6)
    config.resume, config.load_from = True, str(tmp_path / 'whole' / 'epoch_2.pth')
    config.model.units = config.load_from
    runner = train(config)
    assert differing(state(tmp_path / 'whole' / 'epoch_3.pth'), state(tmp_path / 'again' / 'epoch_3.pth')) == []
    with runner.model.soft_evaluation():
        soft = runner.val()['accuracy/top1']
    assert soft == runner.val()['accuracy/top1']
    assert runner.model.gate_statistics()['crisp'] == 1


@pytest.mark.parametrize(('update_buffers', 'settle'), [(False, 0.1), (True, 0.1), (False, 0.0)])
def test_averaged_weights(search_config, tmp_path, update_buffers, settle):
    """Validated are the averaged gates, and what is exported of the checkpoint are these."""
    config = search_config({'custom_hooks': [dict(type='EMAHook', momentum=0.3, update_buffers=update_buffers)]},
                           settle=settle)
    runner = train(config)
    stored = torch.load(tmp_path / 'run' / 'epoch_3.pth', weights_only=False)
    assert not torch.equal(stored['state_dict'][GATE], stored['ema_state_dict'][f'module.{GATE}'])
    measured = runner.message_hub.get_scalar('val/accuracy/top1').current()
    exported = export_run(config, str(tmp_path / 'run' / 'epoch_3.pth'), tmp_path / 'out')
    compact = reading.read_config(str(exported.config))
    compact.work_dir = str(tmp_path / 'test')
    assert runs.build_runner(compact, 'none').test()['accuracy/top1'] == pytest.approx(measured)
    written = [json.loads((tmp_path / folder / 'units.json').read_text())['units'] for folder in ('run', 'out')]
    assert [{name: unit.get('indices') for name, unit in units.items()} for units in written[:1]] == [
        {name: unit.get('indices') for name, unit in written[1].items()}]


def test_gradients_that_accumulate(search_config):
    """Two small batches that accumulate move the gates as the mean of both does."""
    plain = watched(search_config({'train_cfg.max_epochs': 1}))
    summed = watched(search_config({'train_cfg.max_epochs': 1, 'optim_wrapper.accumulative_counts': 2}))
    moved = [not torch.equal(a, b) for a, b in zip(summed.gates, summed.gates[1:])]
    assert moved == [True, False, True, False, True]
    assert all(not torch.equal(a, b) for a, b in zip(plain.gates, plain.gates[1:]))


@pytest.mark.e2e
def test_two_ranks_have_the_same_gates(search_config, train_on_two_ranks):
    stored = train_on_two_ranks(search_config({'train_cfg.max_epochs': 2}, prepare=False))
    for epoch in range(2):
        first, second = stored(epoch)
        assert [key for key in differing(first, second) if 'running_' not in key] == []
    assert differing(stored(0)[0], stored(1)[0])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(('options', 'message'), [
    ({'optim_wrapper.paramwise_cfg.custom_keys': {'channel_gates': dict(lr_mult=0.0)}},
     r'leaves 6 of 6 gates as they are \(first: channel_gates.gates.backbone/conv1.psi\); set the lr_mult'),
    ({'train_cfg': dict(type='IterBasedTrainLoop', max_iters=2)}, 'by epoch, but this run counts iterations'),
], ids=['frozen gates', 'iterations'])
def test_runs_that_cannot_work(search_config, options, message):
    config = search_config()
    config.merge_from_dict(options)
    config.train_cfg.pop('max_epochs' if 'max_iters' in config.train_cfg else 'nothing', None)
    config.train_cfg.pop('by_epoch' if 'type' in config.train_cfg else 'nothing', None)
    with pytest.raises(ConfigError, match=message):
        Runner.from_cfg(config).train()


def test_hook_of_another_model(tiny_config, tmp_path):
    config = tiny_config({'work_dir': str(tmp_path)})
    config.custom_hooks = [dict(type='mmprune_ext.GateHook')]
    with pytest.raises(ConfigError, match='the model is a ImageClassifier, not ChipNet'):
        Runner.from_cfg(config).train()


def test_no_weight_decay_by_default(search_config):
    """The tools keep weight decay from the gates; what a config says of them stays."""
    config = search_config(prepare=False)
    config.optim_wrapper.pop('paramwise_cfg')
    completion.prepare_pruning(config)
    assert config.optim_wrapper.paramwise_cfg.custom_keys == {'channel_gates': dict(decay_mult=0.0)}
    for kind, default in (('SGD', 0.0), ('AdamW', 0.01)):
        bare = search_config(prepare=False)
        bare.optim_wrapper = dict(optimizer=dict(type=kind, lr=0.1))
        completion.prepare_pruning(bare)
        assert bare.optim_wrapper.optimizer.weight_decay == default
    own = search_config(prepare=False)
    own.optim_wrapper.paramwise_cfg = dict(custom_keys={'channel_gates': dict(lr_mult=3.0), 'head': dict(lr_mult=2.0)})
    completion.prepare_pruning(own)
    assert own.optim_wrapper.paramwise_cfg.custom_keys == {
        'channel_gates': dict(lr_mult=3.0, decay_mult=0.0), 'head': dict(lr_mult=2.0)}
    own.optim_wrapper.paramwise_cfg.custom_keys.channel_gates.decay_mult = 0.5
    completion.prepare_pruning(own)
    assert own.optim_wrapper.paramwise_cfg.custom_keys.channel_gates == dict(lr_mult=3.0, decay_mult=0.5)
