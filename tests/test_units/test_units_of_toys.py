"""Every toy net has exactly the channel units that follow from its architecture."""

import pytest
import torch

from mmprune_ext.units import trace_units
from tests.test_units.toy_nets import TOYS, member_text


@pytest.mark.parametrize('name', TOYS)
def test_units(name):
    toy = TOYS[name]
    units = trace_units(toy.build(), toy.example(1))
    found = {unit.name: (unit.num_channels, unit.reason) for unit in units.values()}
    assert found == toy.units, {u.name: u.detail for u in units.values() if u.detail}
    assert {unit: member_text(units[unit]) for unit in toy.members} == toy.members
    assert units.coverage.unexplained == 0, units.coverage.lines()


@pytest.mark.parametrize('name', ['Chain', 'Residual', 'DenseConcat', 'GlobalPool', 'PoolKinds',
                                  'SqueezeExciteConv', 'SqueezeExciteLinear', 'ChannelShuffle',
                                  'FlattenLinear', 'PixelShuffle', 'PreallocatedBuffer'])
def test_units_with_channels_last(name):
    """Another memory format takes other operators and gives the same units."""
    toy, form = TOYS[name], torch.channels_last
    units = trace_units(toy.build().to(memory_format=form), toy.example(1).to(memory_format=form))
    assert {unit.name: (unit.num_channels, unit.reason) for unit in units.values()} == toy.units


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_units_of_other_precisions(dtype):
    """Tracing computes in float32 whatever the model holds, and leaves it as it is."""
    model = TOYS['Chain'].build().to(dtype)
    assert list(trace_units(model, (8, 8)).prunable) == ['conv1', 'conv2']
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
