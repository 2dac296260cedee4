"""Training images as testing takes them."""
from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config

from mmprune_ext.settings.as_tested import training_images

TRAIN, TEST = [dict(type='RandomCrop')], [dict(type='PackInputs')]


def config(scope: str = 'mmpretrain', **sections: Any) -> Config:
    loader = dict(batch_size=2, dataset=dict(pipeline=TRAIN))
    return Config(dict(default_scope=scope, train_dataloader=loader, **sections))


def test_the_pipeline_is_that_of_the_validation_images():
    given = config(val_dataloader=dict(dataset=dict(pipeline=TEST)), test_dataloader=dict(dataset=dict(pipeline=[])))
    assert training_images(given) == dict(batch_size=2, dataset=dict(pipeline=TEST))
    assert given.train_dataloader.dataset.pipeline == TRAIN


def test_of_the_test_images_without_these_and_in_wrapped_datasets():
    given = config(val_dataloader=None, test_dataloader=dict(dataset=dict(dataset=dict(pipeline=TEST))))
    given.train_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dict(pipeline=TRAIN)))
    assert training_images(given) == dict(dataset=dict(type='RepeatDataset', times=2, dataset=dict(pipeline=TEST)))


@pytest.mark.parametrize('given', [
    config('mmdet', val_dataloader=dict(dataset=dict(pipeline=TEST))), config(),
    config(val_dataloader=dict(dataset=dict(type='Own'))),
    config(val_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[dict(pipeline=TEST)])))],
    ids=['another library', 'nothing is tested', 'no pipeline', 'several datasets'])
def test_else_it_is_as_it_is(given):
    assert training_images(given) == given.train_dataloader
    assert training_images(Config(dict(default_scope='mmpretrain'))) is None
