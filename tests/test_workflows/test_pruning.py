"""Which method `prune.py --algorithm` names, and pruning by the choice of another model."""
from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmprune_ext.algorithms import CHIP, L1Norm, OneShotAlgorithm
from mmprune_ext.compact.checkpoint import read_checkpoint
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import MODELS
from mmprune_ext.units import UnitSet
from mmprune_ext.workflows.pruning import mutator_config, one_shot_algorithm, prune_by_units
from tests.kept_rows import assert_kept


def test_methods_by_their_short_names():
    assert one_shot_algorithm('l1') is L1Norm and one_shot_algorithm('chip') is CHIP
    with pytest.raises(ConfigError, match='unknown algorithm "dcff"; choose from .*chip, fisher, l1'):
        one_shot_algorithm('dcff')


def test_a_method_that_custom_imports_brings():
    class Own(OneShotAlgorithm):
        short_name = 'own'
        mutator_type = 'mmprune_ext.L1Mutator'

    MODELS.register_module(module=Own)
    try:
        assert one_shot_algorithm('own') is Own
    finally:
        MODELS.module_dict.pop('Own')


def test_options_reach_the_mutator_of_the_method(tiny_config):
    settings = {'scope': None, 'divisor': 4, 'calibration': {'num_batches': 2}, 'options': {'cost': 'macs'}}
    found = mutator_config(tiny_config(), one_shot_algorithm('fisher'), settings, (32, 32))
    mutator = MODELS.build(found)
    assert (mutator.cost, mutator.divisor, mutator.calibration.num_batches) == ('macs', 4, 2)


# ---------------------------------------------------------------- the choice of another model


@pytest.mark.parametrize(('source', 'batches'), [('file', 0), ('file', 2), ('checkpoint', 0)])
def test_prune_by_units(tiny_config, pruned, pruning_run, tmp_path, source, batches):
    """The dense weights of another model, for another number of classes, at the channels that were chosen."""
    config = tiny_config({'model.head.num_classes': 12})
    path = {'file': pruned / 'units.json', 'checkpoint': pruning_run / 'epoch_1.pth'}[source]
    chosen = UnitSet.load(path) if source == 'file' else read_checkpoint(path)['run_units']
    kept = {name: unit.indices for name, unit in chosen.prunable.items()}
    torch.manual_seed(1)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dense = build_architecture(config.model.to_dict(), config.data_preprocessor).state_dict()
        torch.save(dict(state_dict=dense, meta=dict(dataset_meta=dict(classes=('a', 'b')))), tmp_path / 'dense.pth')
        written = prune_by_units(config, str(tmp_path / 'dense.pth'), tmp_path / 'out', str(path),
                                 input_size=(32, 32), bn_batches=batches)
        compact = Config.fromfile(written.config)
        model = MODELS.build({**compact.model, 'data_preprocessor': compact.data_preprocessor})
    assert_kept(model.state_dict(), dense, kept, statistics=batches == 0)
    same = torch.equal(model.backbone.bn1.running_mean, dense['backbone.bn1.running_mean'][kept['backbone.conv1']])
    assert same == (batches == 0)
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 12)
    units = UnitSet.load(written.units)
    assert {name: unit.indices for name, unit in units.prunable.items()} == kept
    assert units['head.fc'].num_channels == 12
    assert torch.load(written.checkpoint, weights_only=False)['meta']['dataset_meta']['classes'] == ('a', 'b')
