"""How a config trains, as reports and tools tell it."""
from __future__ import annotations

from dataclasses import replace

import pytest
from mmengine.optim import CosineAnnealingLR

from mmprune_ext.analysis.report import Training
from mmprune_ext.compact.training import training_of

SGD = dict(optimizer=dict(type='SGD', lr=0.2, momentum=0.9))


def test_schedule_of_epochs():
    config = dict(optim_wrapper=SGD, train_cfg=dict(by_epoch=True, max_epochs=40), param_scheduler=[
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=500),
        dict(type='CosineAnnealingLR', T_max=40, by_epoch=True, convert_to_iter_based=True)])
    found = training_of(config, 'the dense model')
    assert found == Training('SGD', 0.2, pytest.approx(0.002), 40, 'epochs', ('LinearLR', 'CosineAnnealingLR'),
                             'the dense model', False)
    first, second = found.lines()
    assert first == ('compact_config.py trains 40 epochs by SGD, learning rate 0.2 (0.002 in the first iteration), '
                     'LinearLR, CosineAnnealingLR')
    assert second.startswith('warning: this is the schedule of the dense model') and '--finetune EPOCHS' in second


@pytest.mark.parametrize(('schedule', 'rate', 'first', 'names'), [
    (None, 0.2, 0.2, ()),
    ([], 0.2, 0.2, ()),
    (dict(type='MultiStepLR', milestones=[3]), 0.2, 0.2, ('MultiStepLR', )),
    (dict(type=CosineAnnealingLR, T_max=5), 0.2, 0.2, ('CosineAnnealingLR', )),
    # Its peak counts, and it starts from a 25th of that.
    (dict(type='OneCycleLR', eta_max=0.1, by_epoch=True, convert_to_iter_based=True), 0.1, 0.004, ('OneCycleLR', )),
    # Of a user's own, which cannot be built here.
    (dict(type='OwnLR', secret=3), 0.2, None, ('OwnLR', )),
])
def test_schedules(schedule, rate, first, names):
    config = dict(optim_wrapper=SGD, train_cfg=dict(max_epochs=5), param_scheduler=schedule)
    found = training_of(config, 'the dense model')
    assert (found.learning_rate, found.schedulers) == (rate, names)
    assert found.first_learning_rate == (first if first is None else pytest.approx(first))


def test_fitted_schedule_is_not_warned_of():
    config = dict(optim_wrapper=SGD, train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
                  finetune=dict(epochs=1, lr_scale=0.1, notes=['a: 3 -> 1']))
    found = training_of(config, 'the dense model')
    assert found.lines() == ['compact_config.py trains 1 iteration by SGD, learning rate 0.2, constant']
    assert found.fitted and found.notes == ('a: 3 -> 1', )
    assert len(replace(found, fitted=False).lines()) == 2


@pytest.mark.parametrize('config', [
    dict(), dict(optim_wrapper=SGD), dict(train_cfg=dict(max_epochs=3)),
    dict(optim_wrapper=dict(a=SGD, b=SGD), train_cfg=dict(max_epochs=3)),
])
def test_configs_that_do_not_say_how_to_train(config):
    assert training_of(config, 'the dense model') is None
