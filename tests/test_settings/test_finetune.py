"""Schedules for fine-tuning: what --finetune writes, for configs of all four libraries."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS

from mmprune_ext.errors import ConfigError
from mmprune_ext.settings.finetune import Finetune, with_schedule
from mmprune_ext.settings.reading import read_config
from mmprune_ext.settings.schedule_length import Scale


def rates(config: Config, epoch: int, iterations: int) -> list[float]:
    """Return the learning rate of every iteration, by mmengine's own schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    schedulers = built(config, optimizer, epoch)
    found = []
    for _ in range(iterations):
        found.append(optimizer.param_groups[0]['lr'])
        step(optimizer, schedulers)
    return found


def built(config: Config, optimizer: torch.optim.Optimizer, epoch: int) -> list[Any]:
    defaults = dict(optimizer=optimizer, epoch_length=epoch)
    return [PARAM_SCHEDULERS.build(copy.deepcopy(entry), default_args=defaults) for entry in config.param_scheduler]


def step(optimizer: torch.optim.Optimizer, schedulers: list[Any]) -> None:
    for part in (optimizer, *schedulers):
        part.step()


@pytest.fixture
def config(tiny_config) -> Config:
    """120 images by 20 are 6 iterations an epoch; 30 epochs at lr 0.05."""
    return tiny_config({'train_cfg.max_epochs': 30, 'train_cfg.val_interval': 10,
                        'param_scheduler': dict(type='MultiStepLR', milestones=[20], gamma=0.1)})


@pytest.fixture(autouse=True)
def _scope(mmpretrain_scope) -> None:
    """Names in the configs are mmpretrain's."""


def test_schedule(config):
    before = config.to_dict()
    fitted = with_schedule(config, Finetune(10, 0.2))
    assert config.to_dict() == before
    assert fitted.train_cfg == dict(by_epoch=True, max_epochs=10, val_interval=3)  # 10 of 30 is 3.3 of 10
    assert fitted.optim_wrapper.optimizer == {**before['optim_wrapper']['optimizer'], 'lr': pytest.approx(0.01)}
    found = rates(fitted, 6, 60)
    assert found[0] == pytest.approx(0.001)  # a tenth
    assert found.index(max(found)) == 5 and 0.0097 < max(found) <= 0.01  # 6 of the 60 iterations warm up
    assert found[5:] == sorted(found[5:], reverse=True)
    assert 1e-4 < found[-1] < 1.5e-4  # a hundredth
    assert found[32] == pytest.approx(0.0045, rel=0.02)  # the middle of the cosine: 0.01 * (0.01 + 0.99 * 0.45)
    assert fitted.finetune.epochs == 10 and fitted.finetune.lr_scale == 0.2
    assert fitted.finetune.notes == ['train_cfg.val_interval: 10 -> 3', 'param_scheduler: replaced MultiStepLR']


def test_nothing_asked_nothing_changed(config):
    assert with_schedule(config, None) is config


def test_defaults(config):
    config.train_dataloader.batch_size = 120  # an epoch is one iteration: no warm-up of less than two
    fitted = with_schedule(config, Finetune(3))
    assert fitted.optim_wrapper.optimizer.lr == pytest.approx(0.005)
    assert [entry['type'] for entry in fitted.param_scheduler] == ['CosineAnnealingLR']
    assert rates(fitted, 1, 3)[0] == pytest.approx(0.005)


def test_groups_of_parameters_keep_their_factors(config):
    config.optim_wrapper.update(paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.))), accumulative_counts=2,
                                clip_grad=dict(max_norm=5))
    fitted = with_schedule(config, Finetune(3))
    assert {**fitted.optim_wrapper, 'optimizer': None} == {**config.optim_wrapper, 'optimizer': None}
    optimizer = torch.optim.SGD([dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=lr) for lr in (0.05, 0.005)])
    schedulers = built(fitted, optimizer, 6)
    for _ in range(18):
        assert optimizer.param_groups[0]['lr'] == pytest.approx(10 * optimizer.param_groups[1]['lr'])
        step(optimizer, schedulers)


@pytest.mark.parametrize(('options', 'expected'), [
    ({'param_scheduler': dict(type='OneCycleLR', eta_max=0.3)}, 0.03),  # whose peak replaces the optimizer's own
    ({'param_scheduler': [dict(type='LinearLR', end=2), dict(type='CosineAnnealingLR', T_max=30)]}, 0.005),
    # By default AdamW has 1e-3.
    ({'optimizer': dict(type='AdamW', weight_decay=0.05), 'param_scheduler': None}, 1e-4),
])
def test_learning_rate_to_scale(config, options, expected):
    config.param_scheduler = options['param_scheduler']
    config.optim_wrapper.optimizer = options.get('optimizer', config.optim_wrapper.optimizer)
    fitted = with_schedule(config, Finetune(3))
    assert fitted.optim_wrapper.optimizer.lr == pytest.approx(expected)
    assert fitted.optim_wrapper.optimizer.type == config.optim_wrapper.optimizer.type


def test_iterations(config):
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=600, val_interval=100)
    fitted = with_schedule(config, Finetune(5))
    assert fitted.train_cfg == dict(type='IterBasedTrainLoop', max_iters=30, val_interval=5)  # 5 x 6 iterations
    found = rates(fitted, 1000, 30)
    assert found[0] == pytest.approx(0.0005) and found.index(max(found)) == 2 and found[-1] < 1e-4
    assert '5 epochs of one process are 30 of them' in fitted.finetune.notes[0]


def test_iterations_of_data_that_is_not_at_hand(config):
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=600)
    config.train_dataloader.dataset.data_root = 'none'
    fitted = with_schedule(config, Finetune(300))
    assert fitted.train_cfg == dict(type='IterBasedTrainLoop', max_iters=300, val_interval=300)  # mmengine's 1000
    assert '300 is taken as a number of iterations' in fitted.finetune.notes[0]
    assert fitted.finetune.iterations == 300 and 'epochs' not in fitted.finetune


def test_epochs_of_data_that_is_not_at_hand(config):
    config.train_dataloader.dataset.data_root = 'none'
    fitted = with_schedule(config, Finetune(3))
    assert fitted.param_scheduler[0] == dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100)
    assert fitted.train_cfg.max_epochs == 3


# ---------------------------------------------------------------- what is bound to the length


def test_scale():
    scale = Scale(300, 30)
    assert [scale.point(280), scale.point(5), scale.point(5, 1)] == [28, 0, 1]
    assert [scale.length(15), scale.length(1)] == [2, 1]
    assert [scale.interval(10), scale.interval(50)] == [1, 5]
    assert [Scale(10, 100).interval(5), Scale(10, 100).point(8)] == [5, 80]
    assert Scale(300, 3).point(299) == 2  # a point within the run stays within it


def hooks(config: Config, *entries: dict[str, Any], epochs: int = 3) -> list[Any]:
    config.custom_hooks = list(entries)
    return with_schedule(config, Finetune(epochs)).custom_hooks


def test_recipes_at_the_same_epoch_become_one(config):
    recipes = [dict(action_epoch=21, batch_augments=None), dict(action_epoch=11, batch_augments=1, loss=2),
               dict(action_epoch=5, loss=1, train_pipeline=[])]
    found, = hooks(config, dict(type='SwitchRecipeHook', schedule=recipes))
    assert found.schedule == [dict(action_epoch=1, batch_augments=1, loss=2, train_pipeline=[]),
                              dict(action_epoch=2, batch_augments=None)]


def test_averages_warm_up_and_forget_sooner(config):
    first, second, third = hooks(
        config, dict(type='EMAHook', momentum=1e-4), dict(type='EMAHook', ema_type='MomentumAnnealingEMA', gamma=50),
        dict(type='EMAHook', momentum=0.05, begin_epoch=20))
    assert first.momentum == pytest.approx(1e-3) and 'gamma' not in first
    assert second.momentum == pytest.approx(2e-3) and second.gamma == 5  # mmengine's own momentum is 2e-4
    assert third.momentum == 0.1 and third.begin_epoch == 2
    longer, = hooks(config, dict(type='EMAHook', momentum=1e-4), epochs=60)
    assert longer == dict(type='EMAHook', momentum=1e-4)


def test_intervals_of_hooks(config):
    config.default_hooks.checkpoint.interval = 10
    fitted = with_schedule(config, Finetune(6))
    assert fitted.default_hooks.checkpoint.interval == 2
    assert fitted.default_hooks.logger == config.default_hooks.logger
    found, = hooks(config, dict(type='PreciseBNHook', num_samples=100, interval=5))
    assert found == dict(type='PreciseBNHook', num_samples=100, interval=1)


def library(name: str) -> Config:
    pytest.importorskip(name.split('::')[0])
    return read_config(name)


def hook(config: Config, kind: str) -> Any:
    found, = [entry for entry in config.custom_hooks if str(entry.type).endswith(kind)]
    return found


def test_yolox():
    fitted = with_schedule(library('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'), Finetune(30))
    assert fitted.optim_wrapper.optimizer.lr == pytest.approx(0.001)
    assert fitted.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0., bias_decay_mult=0.)
    assert [entry.type for entry in fitted.param_scheduler] == ['LinearLR', 'CosineAnnealingLR']
    assert hook(fitted, 'YOLOXModeSwitchHook').num_last_epochs == 2  # of 15
    average = hook(fitted, 'EMAHook')
    assert average.momentum == pytest.approx(0.001) and average.gamma == 200  # of 0.0001; of the class's own 2000
    assert fitted.train_cfg.val_interval == 1 and fitted.train_cfg.max_epochs == 30
    assert fitted.default_hooks.checkpoint.interval == 1


def test_rtmdet():
    fitted = with_schedule(library('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'), Finetune(15))
    assert hook(fitted, 'PipelineSwitchHook').switch_epoch == 14  # of 280
    assert fitted.train_cfg.dynamic_intervals == [(14, 1)]
    assert fitted.optim_wrapper.optimizer == dict(type='AdamW', lr=pytest.approx(0.0004), weight_decay=0.05)


def test_deeplab():
    fitted = with_schedule(library('mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py'),
                           Finetune(1000))
    assert fitted.train_cfg.max_iters == 1000 and fitted.train_cfg.val_interval == 100  # of 40,000 and 4,000
    assert fitted.default_hooks.checkpoint.interval == 100
    assert fitted.optim_wrapper.optimizer.lr == pytest.approx(0.001)


def test_pose():
    fitted = with_schedule(library('mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py'),
                           Finetune(42))
    assert hook(fitted, 'PipelineSwitchHook').switch_epoch == 39  # of 390
    assert fitted.train_cfg == dict(by_epoch=True, max_epochs=42, val_interval=1)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(('arguments', 'text'), [
    ((0, ), 'epochs should be an integer of at least 1, but got 0'),
    ((-3, ), 'got -3'),
    ((2.5, ), 'got 2.5'),
    ((True, ), 'got True'),
    ((3, 0), r"lr_scale \(--lr-scale\) is a factor of the config's own .* at most 10, but got 0"),
    ((3, -0.1), 'got -0.1'),
    ((3, float('nan')), 'got nan'),
    ((3, float('inf')), 'got inf'),
    ((3, 1e9), 'got 1000000000'),
    ((3, '0.1'), "got '0.1'"),
])
def test_values_out_of_range(arguments, text):
    with pytest.raises(ConfigError, match=text):
        Finetune(*arguments)


@pytest.mark.parametrize(('change', 'text'), [
    (lambda config: config.pop('optim_wrapper'), 'has no optim_wrapper'),
    (lambda config: setattr(config, 'optim_wrapper', dict(first=dict(optimizer=dict()))), 'one optimizer only'),
    (lambda config: config.optim_wrapper.update(optimizer=dict(type='LBFGS', lr=None)), 'no learning rate to scale'),
    (lambda config: setattr(config, 'train_cfg', dict(by_epoch=True)), 'neither max_epochs nor max_iters'),
    (lambda config: config.pop('train_cfg'), 'neither max_epochs nor max_iters'),
])
def test_configs_that_say_too_little(config, change, text):
    change(config)
    with pytest.raises(ConfigError, match=text):
        with_schedule(config, Finetune(3))


def test_written_config_can_be_read(config, tmp_path: Path):
    fitted = with_schedule(config, Finetune(3))
    (tmp_path / 'c.py').write_text(fitted.pretty_text)
    assert Config.fromfile(tmp_path / 'c.py').to_dict() == fitted.to_dict()
