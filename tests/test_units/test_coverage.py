"""Which share of a model's parameters the units cover, and why the rest is beside them."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmprune_ext.analysis import units_table
from mmprune_ext.compact import CompactModel
from mmprune_ext.errors import PruningError
from mmprune_ext.mutators import CHIPMutator
from mmprune_ext.mutators.l1_mutator import L1Mutator
from mmprune_ext.units import trace_units
from tests.test_units.reference import assert_close, outputs_of
from tests.test_units.toy_attention import OwnForward
from tests.test_units.toy_nets import TOYS


class OfAll(nn.Module):
    """A layer of each kind that no unit covers, beside one that a unit does."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)  # 32 and 18 parameters
        self.attention = OwnForward(8, 2, batch_first=True)  # 288
        self.never, self.slope = nn.Linear(8, 8), nn.PReLU()  # 72 and 1
        self.scale, self.merged = nn.Parameter(torch.ones(1)), nn.Parameter(torch.randn(64))
        self.unused, self.places = nn.Parameter(torch.ones(4, 5)), nn.Parameter(torch.randn(36, 36))  # 20 and 1296

    def forward(self, x):
        x = self.places.softmax(-1) @ (self.slope(self.conv(x)) * self.scale).flatten(2).transpose(1, 2)
        x = F.conv2d(x.transpose(1, 2).unflatten(2, (6, 6)), self.merged.view(8, 8, 1, 1))
        return self.head(self.attention(x.flatten(2).transpose(1, 2)).mean(1))


def test_what_is_beside_the_units():
    coverage = trace_units(OfAll(), (6, 6)).coverage
    assert coverage.total == 32 + 18 + 288 + 72 + 1 + 1 + 64 + 20 + 1296
    why = {name: reason for name, (_, reason) in coverage.beside.items()}
    assert {name.split('.')[0] for name in why} == {
        'attention', 'never', 'slope', 'scale', 'merged', 'unused', 'places'}
    assert why['attention.in_proj_weight'] == 'the inside of OwnForward is not followed'
    assert why['never.weight'] == 'no pass of the demo inputs reaches this layer'
    assert why['slope.weight'] == why['scale'] == 'one value for all channels'
    assert why['merged'] == 'the dimensions of its weight cannot be told'
    assert why['places'] == 'it mixes positions, which are no channels'
    assert why['unused'].startswith('no pass of the demo inputs uses it')
    assert coverage.unexplained == 0


def test_a_layer_that_code_computes_with_is_not_one_that_nothing_reaches():
    toy = TOYS['WeightInAProduct']
    why = trace_units(toy.build(), toy.example(1)).coverage.beside
    assert why == {'a.weight': (48, 'code computes with its weight itself, in a way that is not followed')}


def test_the_table_says_so():
    text = units_table(trace_units(OfAll(), (6, 6)))
    assert '1792 parameters: 2.8% in units, 97.2% beside them, 0.0% without a reason' in text
    assert '  288: attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight and 1 more: ' in text
    assert '100.0% in units, 0.0% beside them' in units_table(trace_units(TOYS['OwnConvs'].build(), (8, 8)))


@torch.no_grad()
@pytest.mark.parametrize('name', ['OwnConvs', 'OwnTransposed', 'OwnProducts', 'OwnNormalised', 'OwnShared', 'OwnGroups',
                                  'OwnKernels', 'OwnEquations', 'OwnLowRank', 'OwnMask'])
def test_own_layers_are_scored_slimmed_and_built_anew(name):
    toy = TOYS[name]
    model, x = toy.build(), toy.example()
    mutator = L1Mutator('all', toy.example(1))
    mutator.prepare(model)
    scores = mutator.scores(model)
    if name == 'OwnConvs':
        torch.testing.assert_close(scores['a.weight'].float(), model.a.weight.abs().sum((1, 2, 3)))
    if name == 'OwnTransposed':
        torch.testing.assert_close(scores['weight'].float(), model.weight.abs().sum((0, 2, 3)))
    mutator.choose(model, 0.5, scores=scores)
    compact = CompactModel(copy.deepcopy(model), mutator.units)
    again = CompactModel(toy.build(), mutator.units.to_json())
    again.load_state_dict(compact.state_dict())
    again.eval()
    assert_close(outputs_of(again(x)), outputs_of(compact(x)), 1e-6)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())


def test_methods_that_read_outputs_of_layers_leave_them_whole():
    toy = TOYS['OwnConvs']
    units = CHIPMutator(scope='all', demo_inputs=toy.example(1)).trace(toy.build())
    assert list(units.prunable) == ['c']
    assert 'a.weight is a parameter that code uses itself' in units['a.weight'].why()
    with pytest.raises(PruningError, match='cannot be pruned'):
        units['a.weight'].choose([0])
