"""Every toy net has exactly the channel units that follow from its architecture."""

import pytest

from mmprune_ext.units import trace_units
from tests.test_units.toy_nets import TOYS, member_text


@pytest.mark.parametrize('name', TOYS)
def test_units(name):
    toy = TOYS[name]
    units = trace_units(toy.build(), toy.example(1))
    found = {unit.name: (unit.num_channels, unit.reason) for unit in units.values()}
    assert found == toy.units, {u.name: u.detail for u in units.values() if u.detail}
    assert {unit: member_text(units[unit]) for unit in toy.members} == toy.members
