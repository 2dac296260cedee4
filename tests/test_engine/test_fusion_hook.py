"""DCFF in mmengine's Runner: schedule, resume, averaging, export, two ranks."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmprune_ext.algorithms import DCFF
from mmprune_ext.engine import FusionHook, runs
from mmprune_ext.errors import ConfigError
from mmprune_ext.ops import FuseConv2d
from mmprune_ext.registry import MODELS
from mmprune_ext.scores import fusion_temperature
from mmprune_ext.settings import completion, reading
from mmprune_ext.workflows.pruning import export_run
from tests.runs import StopAt, differing, state, train

LAYER = 'backbone.layer2.0.conv1'


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


@pytest.fixture
def dcff_config(tiny_config, tmp_path) -> Callable[..., Config]:
    """Return a function that makes the config of a DCFF run, as tools/train.py completes it."""
    def make(options: Mapping[str, Any] | None = None, prepare: bool = True, **model: Any) -> Config:
        config = tiny_config({'work_dir': str(tmp_path / 'run'), 'train_cfg.max_epochs': 4,
                              'train_cfg.val_interval': 4, **(options or {})})
        config.model = dict(type='mmprune_ext.DCFF', architecture=config.model, target_pruning_ratio=0.5, **model)
        if prepare:
            completion.prepare_pruning(config)
        return config
    return make


class Watch(Hook):
    """Note the temperature and a mixture after each iteration, from inside."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.temperatures: list[float] = []
        self.mixtures: list[torch.Tensor] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.temperatures.append(runner.message_hub.get_scalar('train/temperature').current())
        self.mixtures.append(runner.model.get_submodule(LAYER).fusion.clone())


def watched(config: Config) -> Watch:
    watch = Watch()
    train(config, watch)
    return watch


# ---------------------------------------------------------------- schedule


def test_updates_by_epoch(dcff_config):
    """Six iterations an epoch; the temperature of the epoch holds in all of them."""
    watch = watched(dcff_config())
    expected = [fusion_temperature(epoch, 4) for epoch in range(4)]
    assert watch.temperatures == [t for t in expected for _ in range(6)]
    for epoch in range(4):
        mixtures = watch.mixtures[6 * epoch:6 * epoch + 6]
        assert all(torch.equal(mixtures[0], mixture) for mixture in mixtures)
    assert not torch.equal(watch.mixtures[0], watch.mixtures[6])


def test_updates_every_other_epoch(dcff_config):
    watch = watched(dcff_config(step_freq=2))
    expected = [fusion_temperature(epoch, 4) for epoch in (0, 0, 2, 2)]
    assert watch.temperatures == [t for t in expected for _ in range(6)]


@pytest.mark.parametrize('loop', [dict(by_epoch=True, max_epochs=2), dict(by_epoch=False, max_iters=12)],
                         ids=['epochs', 'iterations'])
def test_updates_by_iteration(dcff_config, loop):
    config = dcff_config(by_epoch=False, step_freq=5)
    config.train_cfg = dict(val_interval=100, **loop)
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=12, by_epoch=False)
    config.default_hooks.logger.log_metric_by_epoch = False
    watch = watched(config)
    expected = [fusion_temperature(done, 12) for done in (0, 5, 10)]
    assert watch.temperatures == [expected[0]] * 5 + [expected[1]] * 5 + [expected[2]] * 2


def test_temperature_is_logged(dcff_config, tmp_path):
    train(dcff_config({'train_cfg.max_epochs': 2, 'default_hooks.logger.interval': 3}))
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'temperature: 1.0000' in log and 'temperature: 6068.' in log
    scalars = (next((tmp_path / 'run').glob('*/vis_data/scalars.json'))).read_text()
    assert '"temperature": 1.0' in scalars


def test_validation_measures_the_fused_network(dcff_config, tmp_path):
    """Its accuracy is that of the exported model."""
    config = dcff_config({'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 3})
    runner = train(config)
    measured = runner.message_hub.get_scalar('val/accuracy/top1').current()
    exported = export_run(config, str(tmp_path / 'run' / 'epoch_3.pth'), tmp_path / 'out')
    compact = reading.read_config(str(exported.config))
    compact.work_dir = str(tmp_path / 'test')
    assert runs.build_runner(compact, 'none').test()['accuracy/top1'] == pytest.approx(measured)


# ---------------------------------------------------------------- export


def test_exported_run(dcff_config, tmp_path):
    config = dcff_config({'train_cfg.max_epochs': 2})
    runner = train(config)
    exported = export_run(config, str(tmp_path / 'run' / 'epoch_2.pth'), tmp_path / 'out')
    compact = Config.fromfile(exported.config)
    assert {hook['type'] for hook in compact.custom_hooks} == {'mmprune_ext.EpochSeedHook'}
    assert 'DCFF' not in exported.config.read_text() and 'Fusion' not in exported.config.read_text()
    model = MODELS.build({**compact.model, 'data_preprocessor': compact.data_preprocessor}).eval()
    assert not any(isinstance(module, FuseConv2d) for module in model.modules())
    assert not any('fusion' in key or 'chosen' in key for key in state(exported.checkpoint))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), runner.model.eval()(images), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize('step_freq', [1, 3])
def test_resumed_run_ends_as_an_uninterrupted_one(dcff_config, tmp_path, step_freq):
    """Weights, mixtures and choices, to the bit; with step_freq=3 no update falls on the resumption."""
    train(dcff_config({'work_dir': str(tmp_path / 'whole')}, step_freq=step_freq))
    killed = dcff_config({'work_dir': str(tmp_path / 'parts')}, step_freq=step_freq)

    runner = Runner.from_cfg(killed)
    runner.register_hook(StopAt(epoch=2))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    resumed = dcff_config({'work_dir': str(tmp_path / 'parts')}, prepare=False, step_freq=step_freq)
    runs.set_resume(resumed, True)
    completion.prepare_pruning(resumed)
    train(resumed)
    assert not (tmp_path / 'parts' / 'epoch_1.pth').samefile(tmp_path / 'whole' / 'epoch_1.pth')
    whole = state(tmp_path / 'whole' / 'epoch_4.pth')
    assert differing(whole, state(tmp_path / 'parts' / 'epoch_4.pth')) == []
    assert whole[f'{LAYER}.fusion'].dtype is torch.float32


@pytest.mark.parametrize(('sampler', 'augment'), [('DefaultSampler', True), ('InfiniteSampler', False)])
def test_resumed_run_of_iterations_ends_as_an_uninterrupted_one(dcff_config, tmp_path, sampler, augment):
    """With augmentation in a worker and dropout in the model, stopped in the middle of a pass over the data."""
    head = dict(type='StackedLinearClsHead', mid_channels=[16], dropout_rate=0.5)

    def make(folder: str, **options: Any) -> Config:
        config = dcff_config({'work_dir': str(tmp_path / folder), 'model.head': head}, by_epoch=False, step_freq=4,
                             **options)
        config.train_cfg = dict(by_epoch=False, max_iters=12, val_interval=12)
        config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=6, by_epoch=False)
        config.default_hooks.logger.log_metric_by_epoch = False
        config.train_dataloader.update(batch_size=15, num_workers=1, persistent_workers=False)
        config.train_dataloader.sampler.type = sampler
        load, crop, pack = config.train_dataloader.dataset.pipeline
        flip = dict(type='RandomFlip', prob=0.5)
        config.train_dataloader.dataset.pipeline = [load, crop, flip, pack] if augment else [load, pack]
        return config

    train(make('whole'))
    runner = Runner.from_cfg(make('parts'))
    assert any(isinstance(module, nn.Dropout) for module in runner.model.modules())
    runner.register_hook(StopAt(iteration=6))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    resumed = make('parts', prepare=False)
    runs.set_resume(resumed, True)
    assert resumed.load_from.endswith('iter_6.pth')
    completion.prepare_pruning(resumed)
    watch = watched(resumed)
    assert len(watch.mixtures) == 6
    assert differing(*(state(tmp_path / folder / 'iter_12.pth') for folder in ('whole', 'parts'))) == []


@pytest.mark.parametrize('priority', ['NORMAL', 'LOWEST'])
@pytest.mark.parametrize('update_buffers', [False, True])
def test_ema(dcff_config, tmp_path, update_buffers, priority):
    """The average of the filters, mixed by the P of the moment, is what is validated and saved."""
    validated: list[dict[str, torch.Tensor]] = []

    class Validated(Hook):
        def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            validated.append({key: value.clone() for key, value in runner.model.state_dict().items()})

    config = dcff_config({'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 1})
    config.custom_hooks = [*config.custom_hooks, dict(type='EMAHook', momentum=0.1, update_buffers=update_buffers,
                                                      priority=priority)]
    runner, watch = Runner.from_cfg(config), Watch()
    runner.register_hook(watch)
    runner.register_hook(Validated())
    runner.train()
    checkpoint = torch.load(tmp_path / 'run' / 'epoch_2.pth', weights_only=False)
    average, trained = checkpoint['state_dict'], checkpoint['ema_state_dict']
    assert not torch.equal(average[f'{LAYER}.weight'], trained[f'module.{LAYER}.weight'])
    for found in (validated[-1], average):
        assert torch.equal(found[f'{LAYER}.weight'], average[f'{LAYER}.weight'])
        assert torch.equal(found[f'{LAYER}.fusion'], watch.mixtures[-1])
        assert torch.equal(found[f'{LAYER}.chosen'], trained[f'module.{LAYER}.chosen'])
        assert found[f'{LAYER}.chosen'].sum() == len(watch.mixtures[-1])
    assert torch.equal(validated[0][f'{LAYER}.fusion'], watch.mixtures[0])
    assert torch.equal(trained[f'module.{LAYER}.fusion'], watch.mixtures[-1])
    assert torch.equal(runner.model.get_submodule(LAYER).fusion, watch.mixtures[-1])
    if update_buffers:  # the averages of other buffers are validated
        mean = 'backbone.layer2.0.bn1.running_mean'
        assert torch.equal(validated[-1][mean], average[mean])
        assert not torch.equal(average[mean], trained[f'module.{mean}'])


# ---------------------------------------------------------------- settings


def test_the_tools_add_the_hook(dcff_config):
    types = [hook['type'] for hook in dcff_config().custom_hooks]
    assert sorted(types) == ['mmprune_ext.EpochSeedHook', 'mmprune_ext.FusionHook', 'mmprune_ext.PruningHook']
    config = dcff_config(prepare=False)
    config.custom_hooks = [dict(type=FusionHook)]
    completion.prepare_pruning(config)
    assert [hook['type'] for hook in config.custom_hooks if 'Fusion' in str(hook['type'])] == [FusionHook]


def test_without_the_hook(dcff_config):
    """mmengine's own Runner with a bare config: told at the first step."""
    config = dcff_config(prepare=False)
    with pytest.raises(ConfigError, match=r"add dict\(type='mmprune_ext.FusionHook'\) to custom_hooks"):
        Runner.from_cfg(config).train()


def test_epochs_asked_of_a_run_of_iterations(dcff_config):
    config = dcff_config()
    config.train_cfg = dict(by_epoch=False, max_iters=5, val_interval=100)
    with pytest.raises(ConfigError, match='this run counts iterations .* set model.by_epoch=False'):
        Runner.from_cfg(config).train()


RESNET = dict(_delete_=True, type='ResNet', depth=18, stem_channels=8, base_channels=8)
FROZEN = [
    (dict(frozen_stages=1),
     r'5 of 20 fused convolutions are frozen \(first: backbone.conv1\); set frozen_stages=-1 .*mutator.exclude'),
    (dict(norm_eval=True),
     r'20 batch norm layers .* stay in eval mode in training \(first: backbone.bn1\); set norm_eval=False'),
]


def resnet(**settings: Any) -> dict[str, Any]:
    return {'model.backbone': dict(RESNET, **settings), 'model.head.in_channels': 64, 'train_cfg.max_epochs': 1}


@pytest.mark.parametrize(('settings', 'text'), FROZEN, ids=['stages', 'norm'])
@pytest.mark.parametrize('resume', [False, True], ids=['new', 'resumed'])
def test_what_is_mixed_must_be_trained(dcff_config, settings, text, resume):
    if resume:
        train(dcff_config(resnet()))
    config = dcff_config({**resnet(**settings), 'train_cfg.max_epochs': 2}, prepare=False)
    if resume:
        runs.set_resume(config, True)
        assert config.load_from.endswith('epoch_1.pth')
    completion.prepare_pruning(config)
    with pytest.raises(ConfigError, match=text):
        train(config)


def test_frozen_stages_that_stay_whole(dcff_config):
    """Left out of pruning, as the message says, they may be frozen."""
    whole = ['backbone.conv1', 'backbone.layer1.*']
    runner = train(dcff_config(resnet(frozen_stages=1), mutator=dict(type='mmprune_ext.DCFFMutator', exclude=whole)))
    assert not runner.model.backbone.conv1.weight.requires_grad


def test_hook_of_another_model(tiny_config, tmp_path):
    config = tiny_config({'work_dir': str(tmp_path)})
    config.custom_hooks = [dict(type='mmprune_ext.FusionHook')]
    with pytest.raises(ConfigError, match='the model is a ImageClassifier, not DCFF'):
        Runner.from_cfg(config).train()


# ---------------------------------------------------------------- two ranks


@pytest.mark.e2e
def test_two_ranks_apply_the_same_mixtures(dcff_config, train_on_two_ranks):
    config = dcff_config({'train_dataloader.batch_size': 10, 'train_cfg.max_epochs': 2}, prepare=False)
    ranks_after = train_on_two_ranks(config)
    for epoch in range(2):
        ranks = ranks_after(epoch)
        # Batch statistics are each rank's own, as in every DDP run without SyncBN.
        assert all('running' in key for key in differing(*ranks))
        mixture = ranks[0][f'{LAYER}.fusion']
        assert (torch.count_nonzero(mixture) == len(mixture)) == (epoch == 1)


def test_rank_0_tells(dcff_config, monkeypatch):
    """Were the processors of another rank to round differently, its mixtures would still be those of rank 0."""
    sent: list[nn.Module] = []
    monkeypatch.setattr('mmprune_ext.engine.fusion_hook.broadcast', lambda tensor: sent.append(tensor))
    runner = Runner.from_cfg(dcff_config({'train_cfg.max_epochs': 1}))
    runner.train()
    assert isinstance(runner.model, DCFF)
    layers = [layer for _, layer in runner.model.fuse_layers()]
    assert [id(tensor) for tensor in sent] == [id(t) for layer in layers for t in (layer.fusion, layer.chosen)]
