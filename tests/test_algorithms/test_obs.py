"""OBS as a run builds it."""
from __future__ import annotations

import pytest
import torch
from mmengine.registry import DefaultScope

from mmprune_ext.algorithms import OBS
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators import OBSMutator
from mmprune_ext.registry import MODELS
from mmprune_ext.workflows.pruning import one_shot_algorithm


def test_a_model_is_pruned_while_it_is_built(tiny_config, dense_checkpoint):
    config = tiny_config()
    config.model = {
        'type': 'mmprune_ext.OBS', 'architecture': config.model, 'checkpoint': str(dense_checkpoint),
        'mutator': dict(type='mmprune_ext.OBSMutator', demo_inputs=[32, 32]),
        'calibration': dict(num_batches=2, dataloader=config.train_dataloader), 'budget': dict(flops=0.5)}
    models = []
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for _ in range(2):
            models.append(MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor}))
    assert isinstance(models[0], OBS)
    kept = {name: unit.indices for name, unit in models[0].units.prunable.items()}
    assert any(len(indices) < models[0].units[name].num_channels for name, indices in kept.items())
    assert kept == {name: unit.indices for name, unit in models[1].units.prunable.items()}
    compact = models[0].export_model().eval()
    assert compact(torch.randn(2, 3, 32, 32), mode='tensor').shape == (2, 10)


def test_by_its_short_name():
    assert one_shot_algorithm('obs') is OBS


def test_calibration_of_a_mutator_that_is_built_already():
    with pytest.raises(ConfigError, match='OBS: give calibration to the mutator'):
        OBS(torch.nn.Conv2d(3, 3, 1), OBSMutator(), calibration={})
