"""Nothing is pruned from random weights without a word."""
from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmprune_ext.algorithms import L1Norm
from mmprune_ext.algorithms.loading import built_for_a_run, tensor_names, watched_loading
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.engine import runs
from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import MODELS
from tests.runs import state


def build(config: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


@pytest.fixture
def logged(monkeypatch) -> list[tuple[int, str]]:
    lines = []
    monkeypatch.setattr('mmprune_ext.algorithms.base.print_log',
                        lambda text, logger, level=logging.INFO: lines.append((level, text)))
    return lines


@pytest.fixture
def of_backbone(dense_checkpoint, tmp_path) -> Callable[..., Path]:
    """Return a function that writes the weights of the backbone alone, as an ImageNet checkpoint holds them."""
    def write(*without: str) -> Path:
        found = {key: value for key, value in state(dense_checkpoint).items()
                 if key.startswith('backbone.') and not key.startswith(without)}
        torch.save({'state_dict': found}, tmp_path / 'backbone.pth')
        return tmp_path / 'backbone.pth'
    return write


def by_init_cfg(pruning_config: Callable[..., Config], path: Path) -> Config:
    config = pruning_config({'model.checkpoint': None})
    config.model.architecture.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    return config


REFUSED = ('L1Norm: there are no trained weights to prune; set model.checkpoint .*, or load_from where tools/train.py '
           '.*, or init_cfg .* from_scratch=True in the model section')


@pytest.mark.parametrize('options', [{}, {'model.units': 'units.json'}], ids=['scored', 'channels of a file'])
def test_random_weights_are_refused(pruning_config, pruned, options, monkeypatch, logged):
    """In a run of the tools when the model is built; by other tools, which tell nothing of it, when it is trained."""
    monkeypatch.chdir(pruned)
    config = pruning_config({'model.checkpoint': None, **options})
    with built_for_a_run(), pytest.raises(ConfigError, match=REFUSED):
        build(config)
    assert logged == []
    model = build(config)
    assert logged[0][0] == logging.WARNING and logged[0][1].startswith('L1Norm: there are no trained weights to prune')
    with pytest.raises(ConfigError, match=REFUSED):
        model.init_weights()


def test_from_scratch_says_so(pruning_config, logged):
    build(pruning_config({'model.checkpoint': None, 'model.from_scratch': True}))
    level, text = logged[0]
    assert level == logging.WARNING and text.startswith(
        'L1Norm: 0 of 37 tensors of the dense model were loaded, for neither checkpoint nor init_cfg names weights; '
        'not backbone.conv1.weight, backbone.layer1.0.conv1.weight, backbone.layer1.0.bn1.weight and 34 more')


def test_from_scratch_beside_a_checkpoint(pruning_config):
    with pytest.raises(ConfigError, match=r'from_scratch=True .* checkpoint \(.*epoch_3.pth\) names others; take one'):
        build(pruning_config({'model.from_scratch': True}))


def test_the_share_of_a_checkpoint(pruning_config, dense_checkpoint, logged):
    build(pruning_config())
    assert logged[0] == (logging.INFO, f'L1Norm: 37 of 37 tensors of the dense model were loaded, from '
                                       f'{dense_checkpoint}')


def test_init_cfg_of_the_part_that_is_pruned(pruning_config, of_backbone, dense_checkpoint, logged):
    model = build(by_init_cfg(pruning_config, of_backbone()))
    assert logged[0][1] == ('L1Norm: 35 of 37 tensors of the dense model were loaded, as init_cfg says; not '
                            'head.fc.weight, head.fc.bias')
    kept = model.units['backbone.conv1'].indices
    assert torch.equal(model.backbone.conv1.weight, state(dense_checkpoint)['backbone.conv1.weight'][kept])


def test_init_cfg_that_leaves_pruned_layers_at_random(pruning_config, of_backbone):
    config = by_init_cfg(pruning_config, of_backbone('backbone.layer2.0.conv1', 'backbone.layer3.0'))
    with pytest.raises(ConfigError, match=r'L1Norm: \d of the \d+ layers to prune have random weights, .*: '
                       r'backbone.layer2.0.conv1, backbone.layer3.0.conv1'):
        build(config).init_weights()
    config.model.from_scratch = True
    assert build(config).backbone.layer3[0].conv1.out_channels < 32


def test_weights_of_a_model_that_is_given_stay(pruning_config, dense_checkpoint):
    """They may have been loaded by hand, which nothing tells."""
    config = pruning_config()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build_architecture(config.model.architecture, config.data_preprocessor)
        model.load_state_dict(state(dense_checkpoint))
        given = copy.deepcopy(model.backbone.conv1.weight)
        pruned = L1Norm(model, config.model.mutator, 0.5)
    assert torch.equal(pruned.backbone.conv1.weight, given[pruned.units['backbone.conv1'].indices])


def test_a_network_that_loads_while_it_is_built(pruning_config, dense_checkpoint):
    """As timm's do."""
    from mmpretrain.models import ImageClassifier

    class Loads(ImageClassifier):
        def __init__(self, **settings) -> None:
            super().__init__(**settings)
            self.load_state_dict(state(dense_checkpoint))
            self._is_init = True

    config = pruning_config({'model.checkpoint': None})
    MODELS.register_module(module=Loads)
    try:
        config.model.architecture.type = 'mmprune_ext.Loads'
        model = build(config)
    finally:
        MODELS.module_dict.pop('Loads')
    kept = model.units['backbone.conv1'].indices
    assert torch.equal(model.backbone.conv1.weight, state(dense_checkpoint)['backbone.conv1.weight'][kept])


def test_load_from_is_pruned_not_loaded_afterwards(pruning_config, dense_checkpoint):
    config = pruning_config({'model.checkpoint': None})
    config.load_from = str(dense_checkpoint)
    assert runs.set_start(config) is None
    assert (config.model.checkpoint, config.load_from) == (str(dense_checkpoint), None)


def test_watching_ends_with_its_block():
    """A tensor of another shape is not loaded, whatever was asked for."""
    own, other = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = nn.Module._load_from_state_dict
    with watched_loading() as loaded, pytest.raises(RuntimeError, match='size mismatch'):
        own.load_state_dict(other.state_dict(), strict=False)
    names = {name for name, value in tensor_names(own).items() if value in loaded}
    assert names == {'0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var'}
    assert nn.Module._load_from_state_dict is before
