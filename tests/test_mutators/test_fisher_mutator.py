"""What Fisher's sums are divided by, counted by hand."""
from __future__ import annotations

import pytest
import torch

from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators import FisherMutator
from mmprune_ext.mutators.calibration import Calibration, scores_of
from mmprune_ext.mutators.gate_gradients import GateGradients
from tests.test_mutators.gated_networks import SIZE, batches, network

# Of the depthwise network on 8 x 8: the stem gives 6 x 6 values a channel for 3 * 9 products each, the depthwise
# layer behind it 4 x 4 for 9, the pointwise layer 4 x 4 for 6 to 5 channels, the last layer 4 for 5.
COSTS = {
    None: {'stem': 1, 'point': 1},
    'memory': {'stem': 36 + 16, 'point': 16},
    'macs': {'stem': 36 * 27 + 16 * 9 + 16 * 5, 'point': 16 * 6 + 4},
    'params': {'stem': 27 + 1 + 9 + 1 + 5, 'point': 6 + 1 + 4}}


@pytest.mark.parametrize('cost', COSTS)
def test_scores_are_sums_by_cost(cost):
    model = network('depthwise').float()
    data = [{key: value.float() if key == 'inputs' else value for key, value in batch.items()} for batch in batches(3)]
    mutator = FisherMutator(dict(num_batches=1, dataloader=data), cost, scope='all', demo_inputs=SIZE)
    units = mutator.prepare(model)
    sums = scores_of(GateGradients(model, units), Calibration(1, data))
    scores = mutator.scores(model)
    assert list(scores) == ['stem', 'point']
    for name in scores:
        torch.testing.assert_close(scores[name], sums[name] / COSTS[cost][name], rtol=1e-12, atol=0)
    assert mutator.score_settings() == {'num_batches': 1, 'seed': 0, 'cost': cost}


def test_an_unknown_cost():
    with pytest.raises(ConfigError, match="cost should be one of memory, macs, params, or None, but got 'flops'"):
        FisherMutator(cost='flops')
